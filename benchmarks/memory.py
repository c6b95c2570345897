"""Measure whether memory, descriptors and threads grow with the number of calls and of purchases.

    python -m benchmarks.memory [--calls N] [--purchases N] [--check]

One session makes free calls; another buys pages, each for the first time. In the first two fifths bounded caches fill up, and the
allocator gets what it needs. After that the resident memory, open descriptors and threads of the process are read at `SAMPLES`
points. A figure is the slope of the line through the points (Theil and Sen: the median of the slopes between each two of them), and
its interval is that of `benchmarks.measure`, over points. The facts are read from ``/proc``, so this needs Linux.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations, count
from pathlib import Path
from statistics import median

from benchmarks import free_traffic, measure
from benchmarks.buyers import Ours
from benchmarks.measure import Figure, Goal
from benchmarks.shop import open_shop

SAMPLES = 16
WARM_UP_SHARE = 0.4
#: Calls and purchases.
SIZES = {"full": (100_000, 10_000), "short": (20_000, 3_000), "tiny": (30, 30)}
STATUS, DESCRIPTORS = Path("/proc/self/status"), Path("/proc/self/fd")
#: A megabyte in so many; no descriptor and no thread.
GOALS = {"call": 1e6 / 100_000, "purchase": 1e6 / 10_000}

Point = tuple[int, float]


def state() -> dict[str, float]:
    """Return what this process holds now, by unit."""
    gc.collect()
    status = dict(re.findall(r"^(\w+):\s+(\d+)", STATUS.read_text(encoding="ascii"), re.MULTILINE))
    descriptors = len(os.listdir(DESCRIPTORS))
    return {"bytes": float(status["VmRSS"]) * 1024, "descriptors": descriptors, "threads": float(status["Threads"])}


def slope(points: Sequence[Point]) -> float:
    """Return how much the second number grows with the first."""
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(points, 2) if x1 != x0]
    return median(slopes) if slopes else 0.0


def growth(what: str, work: Callable[[], object], times: int) -> list[Figure]:
    """Do ``work`` so many ``times``. Return how much the process grows with each."""
    points: dict[str, list[Point]] = {"bytes": [], "descriptors": [], "threads": []}
    first = int(times * WARM_UP_SHARE)
    marks = {first + (times - first) * n // SAMPLES for n in range(1, SAMPLES + 1)}
    with measure.settled_heap():
        for number in range(1, times + 1):
            work()
            if number in marks:
                for unit, value in state().items():
                    points[unit].append((number, value))
    return [
        Figure(
            name=f"{unit} a {what} adds, of {times:,}",
            unit=unit,
            ours=measure.estimate(slope, points[unit]),
            goal=Goal(of="value", most=GOALS[what] if unit == "bytes" else 0.0),
        )
        for unit in points
    ]


def free_calls(times: int) -> list[Figure]:
    """Measure calls of a page that costs nothing."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        url = stack.enter_context(free_traffic.server())
        session = stack.enter_context(free_traffic.ours(folder / "ledger.db"))
        return growth("call", lambda: session.get(url), times)


def purchases(times: int) -> list[Figure]:
    """Measure purchases, each of a page of its own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        shop = stack.enter_context(open_shop("fake"))
        buyer = stack.enter_context(contextlib.closing(Ours(shop.as_data(), folder)))
        numbers = count()

        def buy() -> None:
            assert buyer.get(shop.url(next(numbers))) == 200

        return growth("purchase", buy, times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--purchases", type=int)
    given = parser.parse_args(arguments)
    if not STATUS.exists():
        return measure.finish("memory", given, [], ["Not measured: there is no /proc here."])
    calls, bought = SIZES[given.size]
    figures = free_calls(given.calls or calls) + purchases(given.purchases or bought)
    return measure.finish("memory", given, figures)


if __name__ == "__main__":
    sys.exit(main())
