"""Measure ``routeweiler-sync report`` on a trace of many events: the HTML page, and the CSV file.

    python -m benchmarks.report [--size full|short|tiny] [--json FILE] [--check] [--cpu]

``full`` has 1,000,000 events (a trace of 1 GB in the folder for temporary files), ``short`` 100,000. Four of five calls paid, at 40
origins, within 180 days. Each report is made by a process of its own, whose time from start to end and whose greatest memory are
the figures; what it says is compared with what was written.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Figure, Goal
from tests.support.report_load import Load, report, write_trace

SIZES = {"full": 1_000_000, "short": 100_000, "tiny": 500}
#: The goals, for the full size.
SECONDS_MAX, MIB_MAX = 30, 1024


def figures(name: str, load: Load, events: int, *, cpu: bool) -> list[Figure]:
    """Return the time and the memory of one report."""
    is_full = events == SIZES["full"]
    name = f"{name} of {events:,} events"
    took = [load.cpu_seconds if cpu else load.seconds]
    return [
        measure.single(f"{name}, time", took, unit="s", goal=Goal(of="value", most=SECONDS_MAX) if is_full else None),
        measure.single(
            f"{name}, memory", [load.mib], unit="MiB", scale=1, goal=Goal(of="value", most=MIB_MAX) if is_full else None
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code: 1 if ``--check`` is given and a goal isn't met."""
    given = measure.options(__doc__, cpu=True).parse_args(arguments)
    events = SIZES[given.size]
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        trace, page, sheet = (Path(folder) / name for name in ("trace.jsonl", "report.html", "report.csv"))
        spent_msat = write_trace(trace, events)
        of_page = report("--json", "--html", str(page), "--trace", str(trace))
        of_sheet = report("--csv", str(sheet), "--trace", str(trace))
        with sheet.open(encoding="utf-8", newline="") as file:
            rows = sum(1 for _ in csv.reader(file)) - 1
    if of_page.told["spentMsat"] != spent_msat or of_page.told["payments"] != rows:
        raise SystemExit("the figures of the report are wrong")
    return measure.finish(
        "report",
        given,
        [*figures("page", of_page, events, cpu=given.cpu), *figures("CSV", of_sheet, events, cpu=given.cpu)],
    )


if __name__ == "__main__":
    sys.exit(main())
