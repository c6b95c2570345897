"""Measure what a line of the trace costs.

    python -m benchmarks.trace_lines [--size full|short|tiny] [--json FILE] [--check] [--cpu]

- A **call**: a `Routeweiler` with a trace and a `requests.Session` fetch the same page in turns, as in `benchmarks.free_traffic`.
  Nothing is bought, so each call has one line. The same with the trace in a database, which has no goal.
- A **line**: from the end of a call until its line is written, one after another in one process: of a free call, and of one that
  used a token. `time.process_time` counts here in any case: a line waits for nothing.
- **Lines a second** that one process writes, and that eight write together to one file, all of them whole.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from benchmarks import measure
from benchmarks.free_traffic import PREIMAGE, TOKEN, plain, server
from benchmarks.measure import Figure, Goal
from routeweiler_sync import Routeweiler, TraceSink
from routeweiler_sync.payments.token import Token
from routeweiler_sync.paywall.call import CallContext

WARM_UP = 50
#: Pairs of sessions, pairs of requests of each; blocks of lines, lines of each; seconds that processes write.
SIZES = {"full": (20, 200, 20, 1_000, 2.0), "short": (10, 60, 10, 300, 0.5), "tiny": (2, 3, 2, 5, 0.05)}
PROCESSES = 8
URL = "http://127.0.0.1:12345/page"
TIMEOUT_S = 120
SPAWN = multiprocessing.get_context("spawn")


def calls(kind: str, url: str, folder: Path, size: str, clock: Callable[[], float], goal: Goal | None) -> Figure:
    """Compare calls with a trace of this ``kind`` with those of `requests`."""
    sessions, rounds, *_ = SIZES[size]
    took: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for number in range(sessions):
        sink = getattr(TraceSink, kind)(folder / f"{kind}-{number}")
        with Routeweiler(ledger=folder / "none.db", trace_sink=sink) as ours, plain(folder) as theirs:
            things = {"ours": lambda ours=ours: ours.get(url), "theirs": lambda theirs=theirs: theirs.get(url)}
            for side, seconds in measure.in_turns(things, rounds, warm_up=WARM_UP, clock=clock).items():
                took[side].append(seconds)
    return measure.compare(f"a free call with a trace ({kind})", took["ours"], took["theirs"], against="requests", goal=goal)


def a_call(sink: TraceSink, *, uses_token: bool = False) -> Callable[[], None]:
    """Return what ends a call whose line goes to ``sink``."""
    request = requests.Request("GET", URL).prepare()
    response = requests.Response()
    response.status_code = 200
    payer: Any = SimpleNamespace(
        trace_sink=sink, tallies=(), agent_id=None, session_id=None, envelope_id="default", policy_hash=None
    )
    token = a_token()

    def end() -> None:
        context = CallContext(payer, request)
        with context:
            context.response = response
            if uses_token:
                context.record.add_reuse(token, URL, is_guess=True)

    return end


def a_token() -> Token:
    """Return a token that was bought and reported before."""
    return Token(
        payment_hash="ab" * 32,
        origin="http://127.0.0.1:12345",
        scope="services=page:0",
        scheme="L402",
        token=TOKEN,
        preimage=PREIMAGE,
        amount_msat=10_000,
        fee_msat=1_000,
        node_pubkey="02" * 33,
        amount_minor_units=Decimal(11),
        currency="sat",
        rate_quality="exact",
        valid_until=None,
        accepted=True,
        reported=True,
    )


def line(name: str, end: Callable[[], None], size: str) -> Figure:
    """Measure the time from the end of a call until its line is written."""
    *_, blocks, lines, _ = SIZES[size]
    for _ in range(WARM_UP):
        end()
    took = []
    with measure.settled_heap():
        for _ in range(blocks):
            began_s = time.process_time()
            for _ in range(lines):
                end()
            took.append((time.process_time() - began_s) / lines)
    return measure.single(name, took, unit="us", goal=Goal(of="value", most=50))


def write(path: Path, seconds: float, barrier: Any, counts: Any) -> None:
    """Write lines for so many seconds, as a process of its own. Put how many it were into ``counts``."""
    sink = TraceSink.jsonl(path)
    end = a_call(sink)
    barrier.wait(TIMEOUT_S)
    count, end_s = 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        end()
        count += 1
    counts.put(count)
    sink.close()


def together(processes: int, folder: Path, seconds: float) -> Figure:
    """Return how many lines a second ``processes`` write to one file. Raises: ValueError if one isn't whole, or is missing."""
    path = folder / f"{processes}.jsonl"
    barrier, counts = SPAWN.Barrier(processes), SPAWN.Queue()
    writers = [SPAWN.Process(target=write, args=(path, seconds, barrier, counts), daemon=True) for _ in range(processes)]
    for writer in writers:
        writer.start()
    written = [counts.get(timeout=TIMEOUT_S) for _ in writers]
    for writer in writers:
        writer.join(TIMEOUT_S)
    with path.open("rb") as file:
        whole = sum("requestId" in json.loads(text) for text in file)
    if whole != sum(written):
        raise ValueError(f"{sum(written)} lines were written, and {whole} are there")
    name = f"lines a second, {processes} process{'es' if processes > 1 else ''}"
    return measure.single(name, [sum(written) / seconds], unit="/s", scale=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code: 1 if ``--check`` is given and a goal isn't met."""
    given = measure.options(__doc__, cpu=True).parse_args(arguments)
    clock = measure.clock_of(given)
    with tempfile.TemporaryDirectory(prefix="trace-lines-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(server())
        figures = [
            calls("jsonl", url, folder, given.size, clock, Goal(of="ratio", most=1.05)),
            calls("sqlite", url, folder, given.size, clock, None),
            line("a line of a free call", a_call(TraceSink.jsonl(folder / "free.jsonl")), given.size),
            line("a line of a call with a token", a_call(TraceSink.jsonl(folder / "used.jsonl"), uses_token=True), given.size),
            *(together(processes, folder, SIZES[given.size][-1]) for processes in (1, PROCESSES)),
        ]
    return measure.finish("trace_lines", given, figures)


if __name__ == "__main__":
    sys.exit(main())
