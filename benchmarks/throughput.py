"""Measure how many purchases a second several processes make on one ledger, beside as many bare loops.

    python -m benchmarks.throughput [--backend sqlite|postgresql] [--processes N …] [--check]

All processes of this package share one ledger and one budget; those of the bare loop (`benchmarks.buyers`) share nothing and
write nothing. Both buy in turns, for the same time, from the same fake node and server, which have one process. PostgreSQL has its
default settings (``fsync`` and ``synchronous_commit`` on), and the memory of a small server. The disk's own fsyncs a second are
measured in the same run.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.ledger_cost import NO_POSTGRES, has_postgres
from benchmarks.measure import Figure, Goal
from benchmarks.purchase import Worker
from benchmarks.shop import Shop, open_shop

#: Processes, turns of each side, and the seconds of a turn.
SIZES: dict[str, tuple[list[int], int, float]] = {
    "full": ([1, 4, 8, 16], 8, 1.5),
    "short": ([1, 8], 5, 1.0),
    "tiny": ([2], 1, 0.2),
}
GOALS = {8: Goal(of="ratio", least=0.9)}
#: No process buys so many pages in a turn.
NUMBERS_A_TURN = 1_000_000


@contextlib.contextmanager
def new_ledger(backend: str) -> Iterator[str]:
    """Yield the URL or path of an empty ledger."""
    if backend == "sqlite":
        with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
            yield str(Path(folder) / "ledger.db")
        return
    from tests.postgres.server import Server

    with Server.make(fsync="on") as server:
        yield server.url(server.new_database())


def rate(workers: Sequence[Worker], seconds: float, numbers: Iterator[int]) -> float:
    """Let all ``workers`` buy at the same time. Return how many purchases a second they made together."""
    for worker in workers:
        worker.order(f"many {seconds} {next(numbers)}")
    return sum(worker.answer() for worker in workers)


def measure_processes(backend: str, count: int, shop: Shop, numbers: Iterator[int], turns: int, seconds: float) -> Figure:
    """Measure ``count`` processes of each side."""
    rates: dict[str, list[float]] = {measure.OURS: [], "bare loop": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
        file = shop.write(folder / "shop.json", stack.enter_context(new_ledger(backend)))
        sides = {
            name: [stack.enter_context(contextlib.closing(Worker(name, sys.executable, file))) for _ in range(count)]
            for name in rates
        }
        for workers in sides.values():
            for worker in workers:  # one after another: the first makes the ledger
                worker.buy("warm", shop.url(next(numbers)))
        for order in measure.orders(list(sides), turns):
            for name in order:
                rates[name].append(rate(sides[name], seconds, numbers))
    name = f"{backend}, {count} process{'es' if count > 1 else ''}"
    return measure.compare(
        name, rates[measure.OURS], rates["bare loop"], against="bare loop", unit="/s", scale=1, goal=GOALS.get(count)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], action="append", help="default: both")
    parser.add_argument("--processes", type=int, nargs="+", metavar="N")
    given = parser.parse_args(arguments)
    counts, turns, seconds = SIZES[given.size]
    figures, fsyncs, notes = [], [], []
    with open_shop("fake") as shop:
        numbers = itertools.count(step=NUMBERS_A_TURN)
        for backend in given.backend or ["sqlite", "postgresql"]:
            if backend == "postgresql" and not has_postgres():
                notes.append(NO_POSTGRES)
                continue
            for count in given.processes or counts:
                fsyncs.append(measure.fsyncs_per_s())
                figures.append(measure_processes(backend, count, shop, numbers, turns, seconds))
    figures.append(measure.single("fsyncs of the disk, one after another", fsyncs, unit="/s", scale=1))
    return measure.finish("throughput", given, figures, notes)


if __name__ == "__main__":
    sys.exit(main())
