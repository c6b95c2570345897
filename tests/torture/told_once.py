"""Torture: processes on one ledger and one trace buy and use tokens while some of them are killed; each payment is reported once.

    python -m tests.torture.told_once --processes 8 --seconds 60 --seed 1

Processes get pages of two walls, one that sells each page for itself and one whose tokens soon expire. Some are killed -9 and
replaced at random instants. Then they stop, a fresh session recovers and uses every token, and the sums of trace, ledger and node
must be the same, to the msat, with one line ``reused: false`` for each payment. Choices come from the seed, instants from the
machine. Exit code 1 where a payment was reported twice, or never, or a sum differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from routeweiler_sync import Ledger
from routeweiler_sync.testing import FakeLnd, Paywall

from .told_once_worker import HTTP_TIMEOUT_S, PAGES, Job, buy

PRICE_MSAT, FEE_MSAT = 7_001, 3_000
#: Tokens of the second wall expire after this many seconds, so that they are bought again and again.
VALID_FOR_S = 4
KILL_EVERY_S = (0.02, 0.3)
END_S = 60.0
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(kw_only=True)
class Outcome:
    """What a run came to. ``wrong``: what broke a promise, a line each."""

    payments: int = 0
    calls: int = 0
    reused: int = 0
    kills: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.payments} payments, {self.reused} reuses, {self.kills} processes killed, "
            f"{len(self.wrong)} wrong"
        )


def torture(folder: Path, *, processes: int, seconds: float, seed: int, kind: str = "jsonl") -> Outcome:
    """Let so many processes buy for so long, killing some; then finish and judge."""
    outcome, draw = Outcome(), random.Random(seed)
    context = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload(["tests.torture.told_once_worker"])
    with (
        FakeLnd() as lnd,
        Paywall(lnd, price_msat=PRICE_MSAT, dynamic=True) as pages,
        Paywall(lnd, price_msat=PRICE_MSAT, valid_for_s=VALID_FOR_S) as whole,
    ):
        lnd.fee_msat = FEE_MSAT
        until_s = time.time() + seconds
        started = 0

        def start(until_s: float) -> BaseProcess:
            nonlocal started
            started += 1
            made = context.Process(target=buy, args=(job(until_s),), daemon=True)
            made.start()
            return made

        def job(until_s: float) -> Job:
            return Job(
                seed=(seed, started),
                until_s=until_s,
                walls=(pages.base_url, whole.base_url),
                lnd={
                    "grpc_host": lnd.host,
                    "grpc_port": lnd.port,
                    "macaroon_path": lnd.macaroon_path,
                    "tls_cert_path": lnd.tls_cert_path,
                },
                ledger=str(folder / "ledger.db"),
                trace=str(folder / f"trace.{kind}"),
            )

        buyers = [start(until_s) for _ in range(processes)]
        while time.time() < until_s:
            time.sleep(draw.uniform(*KILL_EVERY_S))
            at = draw.randrange(processes)
            if draw.random() < 0.5 and buyers[at].is_alive():
                buyers[at].kill()
                outcome.kills += 1
                buyers[at].join(END_S)
            if not buyers[at].is_alive() and time.time() < until_s:
                buyers[at] = start(until_s)
        for buyer in buyers:
            buyer.join(END_S)
            if buyer.is_alive():
                outcome.wrong.append("a buyer doesn't end")
                buyer.kill()
        with job(0.0).session() as last:
            last.recover()
            for wall in (pages, whole):
                for page in range(PAGES):  # this also sends what a buyer counted as sent and was killed before it left
                    last.get(f"{wall.base_url}/{page}", timeout=HTTP_TIMEOUT_S).raise_for_status()
            for row in last.recover():
                if row.unfinished:
                    outcome.wrong.append(f"payment {row.payment_hash} has no end")
        judge(folder, kind, lnd, outcome)
    return outcome


def judge(folder: Path, kind: str, lnd: FakeLnd, outcome: Outcome) -> None:
    """Hold trace, ledger and node against each other."""
    with closing(Ledger.open(folder / "ledger.db")) as ledger:
        rows = {row.payment_hash: row for row in ledger.payments() if row.settled_at is not None}
        unreported = [row.payment_hash for row in ledger.unreported()]
    paid = {each.payment_hash: each.amount_msat + each.fee_msat for each in lnd.payments if each.status == "SUCCEEDED"}
    told: Counter[str] = Counter()
    told_msat = 0
    for text in texts(folder / f"trace.{kind}"):
        outcome.calls += 1
        try:
            payment = json.loads(text)["payment"]
        except ValueError:  # half a line of a process that was killed
            continue
        if payment is not None and payment["reused"]:
            outcome.reused += 1
        elif payment is not None:
            told[payment["paymentHash"]] += 1
            told_msat += payment["amountMsat"] + payment["feeMsat"]
    outcome.payments = len(paid)
    booked_msat = sum(row.amount_msat + row.fee_msat for row in rows.values())
    outcome.wrong += [f"payment {each} is reported {told[each]} times" for each in sorted(rows) if told[each] != 1]
    outcome.wrong += [f"payment {each} is reported and not booked" for each in sorted(told.keys() - rows.keys())]
    outcome.wrong += [f"payment {each} is paid and not booked, or the reverse" for each in sorted(paid.keys() ^ rows.keys())]
    outcome.wrong += [f"payment {each} isn't marked as reported" for each in unreported]
    if not told_msat == booked_msat == sum(paid.values()):
        outcome.wrong.append(f"trace {told_msat} msat, ledger {booked_msat} msat, node {sum(paid.values())} msat")


def texts(path: Path) -> list[str | bytes]:
    """The JSON of the trace's events."""
    if path.suffix == ".jsonl":
        return [line for line in path.read_bytes().splitlines() if line]
    with closing(sqlite3.connect(path)) as database:
        return [text for (text,) in database.execute("SELECT payload FROM trace_events")]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.told_once", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=("jsonl", "db"), default="jsonl")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="told-once-") as folder:
        outcome = torture(Path(folder), processes=given.processes, seconds=given.seconds, seed=given.seed, kind=given.kind)
    print(outcome, *outcome.wrong, sep="\n", flush=True)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
