"""Long traces, and the time and memory that a report on one takes. `benchmarks.report` measures a million events.

Four of five calls paid, at 40 origins. A million events are a trace of 1 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
#: The span of the trace.
DAYS = 180
#: A process that hangs is ended.
TIMEOUT_S = 1_800


class Load(NamedTuple):
    """What one report took, and what it said."""

    seconds: float
    cpu_seconds: float
    mib: float
    told: dict[str, Any]


def write_trace(path: Path, events: int) -> int:
    """Write a trace of so many calls. Return what they have spent, in msat."""
    from tests.support.trace_events import paid_event

    event = paid_event().to_json_dict()
    spent_msat = 0
    with path.open("w", encoding="ascii") as file:
        for number in range(events):
            at = START + timedelta(days=DAYS * number / events)
            event["requestId"] = f"{number:032x}"
            event["timestampStart"] = event["timestampEnd"] = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
            event["url"] = f"https://api{number % 40}.example/v1/page/{number}"
            payment = None
            if number % 5:
                # The digits are turned around, so that hashes aren't in order.
                payment = {**paid_payment(number), "paymentHash": f"{number:064x}"[::-1]}
                spent_msat += payment["amountMsat"] + payment["feeMsat"]
            event["payment"] = payment
            event["challenge"] = None if payment is None else challenge(event["url"], payment, number)
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
    return spent_msat


def paid_payment(number: int) -> dict[str, Any]:
    amount_msat, fee_msat = 1_000 * (number % 250 + 1), number % 3 * 1_001
    return {
        "paymentHash": "",
        "proofType": "preimage",
        "proofValue": "cd" * 32,
        "amountNative": amount_msat // 1_000,
        "amountMsat": amount_msat,
        "feeMsat": fee_msat,
        "amountNativeCurrency": "btc-lightning",
        "amountEnvelope": (amount_msat + fee_msat) / 1_000,
        "amountEnvelopeCurrency": "sat",
        "fmvQuality": "exact",
        "settlementLatencyMs": number % 5_000,
        "reused": False,
    }


def challenge(url: str, payment: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "scheme": "L402",
        "url": url,
        "amountMsat": payment["amountMsat"],
        "network": "bitcoin",
        "paymentHash": payment["paymentHash"],
        "expiresAt": None,
        "scope": f"/v1/page/{number}",
        "description": f"page {number}",
    }


def report(*arguments: str) -> Load:
    """Run ``routeweiler-sync report`` with ``arguments`` in a process of its own, and measure it."""
    measure = (
        "import resource, sys; from routeweiler_sync.cli import main\n"
        "try: main(sys.argv[1:], prog_name='routeweiler-sync')\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", measure, "report", *arguments],
        env={**os.environ, "ROUTEWEILER_TRACE": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(f"the report failed: {done.stderr}")
    cpu_seconds, most = done.stderr.split()[-2:]
    kib = int(most) / (1024 if sys.platform == "darwin" else 1)
    return Load(seconds, float(cpu_seconds), kib / 1024, json.loads(done.stdout) if done.stdout.startswith("{") else {})
