"""Measure 64 threads that use one session at once: calls without a 402, calls with a stored token, and purchases.

    python -m benchmarks.threads [--threads N] [--only TEXT] [--check]

Compared is one session of `requests` (for purchases, the bare loop of `benchmarks.buyers`) that as many threads use. Both have
pools of connections that are large enough. A figure is the time until all threads have done their calls.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from benchmarks import free_traffic, measure
from benchmarks.buyers import BareLoop, Ours
from benchmarks.measure import Figure
from benchmarks.shop import open_shop
from routeweiler_sync import PaywallAdapter

THREADS = 64
#: Pairs of turns, the calls of each thread in a turn, and pairs of turns with purchases (one of each thread).
SIZES = {"full": (40, 10, 15), "short": (12, 8, 6), "tiny": (2, 1, 1)}
#: Those of `benchmarks.free_traffic`, with their goals.
CASES = ["no ledger yet", "a stored token goes along"]


class Crowd:
    """Threads that wait for work."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def does(self, work: Callable[[], object]) -> Callable[[], None]:
        """Return a function in which each thread does ``work`` once, and which ends when all have."""

        def all_do() -> None:
            for done in [self._pool.submit(work) for _ in range(self.threads)]:
                done.result()

        return all_do

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def calls(crowd: Crowd, case: free_traffic.Case, turns: int, each: int, clock: Callable[[], float]) -> Figure:
    """Measure calls of a page that costs nothing, or that was paid for."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="threads-")))
        url = stack.enter_context(free_traffic.server())
        case.fill(folder / "ledger.db", url)
        ours, theirs = (stack.enter_context(make(folder / "ledger.db")) for make in (case.ours, case.theirs))
        ours.mount("http://", PaywallAdapter(pool_maxsize=crowd.threads))
        theirs.mount("http://", HTTPAdapter(pool_maxsize=crowd.threads))

        def some(session: requests.Session) -> Callable[[], None]:
            return crowd.does(lambda: [session.get(url) for _ in range(each)])

        took = measure.in_turns({"ours": some(ours), "theirs": some(theirs)}, turns, warm_up=1, clock=clock)
        case.check(ours.get(url))
    return measure.compare(
        f"{crowd.threads} threads, {case.name}", took["ours"], took["theirs"], against="requests", unit="ms", goal=case.goal
    )


def purchases(crowd: Crowd, turns: int, clock: Callable[[], float]) -> Figure:
    """Measure purchases, each of a page of its own."""
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(open_shop("fake"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="threads-")))
        place = shop.as_data()
        ours, theirs = (stack.enter_context(contextlib.closing(make(place, folder))) for make in (Ours, BareLoop))
        ours.session.mount("http://", PaywallAdapter(pool_maxsize=crowd.threads))
        theirs.session.mount("http://", HTTPAdapter(pool_maxsize=crowd.threads))
        numbers = itertools.count()

        def buy(buyer: Ours | BareLoop) -> Callable[[], None]:
            def one() -> None:
                assert buyer.get(shop.url(next(numbers))) == 200

            return crowd.does(one)

        took = measure.in_turns({"ours": buy(ours), "theirs": buy(theirs)}, turns, warm_up=1, clock=clock)
    return measure.compare(f"{crowd.threads} threads, purchases", took["ours"], took["theirs"], against="bare loop", unit="ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__, cpu=True)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--only", default="", help="run only the cases whose name contains this text")
    given = parser.parse_args(arguments)
    turns, each, bought = SIZES[given.size]
    clock = measure.clock_of(given)
    with contextlib.closing(Crowd(given.threads)) as crowd:
        cases = [case for case in free_traffic.CASES if case.name in CASES and given.only in case.name]
        figures = [calls(crowd, case, turns, each, clock) for case in cases]
        if given.only in "purchases":
            figures.append(purchases(crowd, bought, clock))
    return measure.finish("threads", given, figures)


if __name__ == "__main__":
    sys.exit(main())
