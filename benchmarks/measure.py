"""Measure things in turns, state how sure a figure is, print it, write it as JSON, and judge it by its goal.

All benchmarks use this one arithmetic:

- Things that are compared take turns within one run (`in_turns`). Which is first is drawn by lot, and the next round has the
  reverse order (A B B A), so what makes the machine slower for a while, or ever slower, strikes them alike.
- A **block** is one round, or several that use the same objects (where its buffers lie in memory makes one session faster than
  an equal one by a percent or two). A block gives one number for each thing: the median of its rounds.
- The value of a thing is the median of its blocks' numbers; a ratio or a difference is that of two such values.
- The interval beside it has the ratio in 95 of 100 resamples (bootstrap): as many blocks as there were are drawn with
  replacement, both things of a block together, and the ratio is calculated again.

A benchmark is a module with a `main` that makes its options with `options`, collects each `Figure` (`compare`, `single`), and
ends with `finish`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

OURS = "routeweiler_sync"
#: The first rounds aren't counted: connections are opened, caches filled, and modules imported in them.
WARM_UP = 20
RESAMPLES = 2_000
#: How many of a second are one of the unit.
UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}
#: What a figure can depend on, beside Python.
LIBRARIES = ["requests", "urllib3", "grpcio", "protobuf", "bolt11", "bitstring", "pymacaroons", "psycopg"]
SIZES = ["full", "short", "tiny"]
FSYNC_S = 0.5
#: Of other work that this many processors do when a benchmark starts, its JSON and its table speak.
QUIET_LOAD = 0.5
TABLE_CHARS = 160


# -- the arithmetic -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, and the interval in which 95 of 100 resamples have it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure must be: its ``ratio``, ``difference`` or own ``value`` at most, or at least, this number."""

    of: Literal["ratio", "difference", "value"]
    most: float | None = None
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What this package needed (``ours``, in ``unit``); if it was compared, what the other did (``theirs``) and both relations."""

    name: str
    unit: str
    ours: Estimate
    against: str | None = None
    theirs: Estimate | None = None
    ratio: Estimate | None = None
    difference: Estimate | None = None
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the figure itself (not only an end of its interval) meets the goal; None without a goal."""
        judged = self.judged
        if self.goal is None or judged is None:
            return None
        return (self.goal.most is None or judged <= self.goal.most) and (self.goal.least is None or judged >= self.goal.least)

    @property
    def judged(self) -> float | None:
        """The number that the goal is for; None without a goal."""
        if self.goal is None:
            return None
        judged = {"ratio": self.ratio, "difference": self.difference, "value": self.ours}[self.goal.of]
        assert judged is not None, f"{self.name}: the goal is for the {self.goal.of}, which isn't there"
        return judged.value


Blocks = Sequence[float] | Sequence[Sequence[float]]


def compare(
    name: str, ours: Blocks, theirs: Blocks, *, against: str, unit: str = "us", goal: Goal | None = None, scale: float | None = None
) -> Figure:
    """Return the figure of two things that took turns.

    ``ours`` and ``theirs`` have the seconds of each round, or of each block its rounds; the same place in both was measured at the
    same time. For anything that isn't seconds, give ``scale`` (1 leaves the numbers as they are).
    """
    factor = UNITS[unit] if scale is None else scale
    pairs = list(zip(_numbers(ours, factor), _numbers(theirs, factor), strict=True))

    def median_of(side: int, some: Sequence[tuple[float, float]]) -> float:
        return median(pair[side] for pair in some)

    return Figure(
        name=name,
        unit=unit,
        against=against,
        goal=goal,
        ours=estimate(lambda some: median_of(0, some), pairs),
        theirs=estimate(lambda some: median_of(1, some), pairs),
        ratio=estimate(lambda some: median_of(0, some) / median_of(1, some), pairs),
        difference=estimate(lambda some: median_of(0, some) - median_of(1, some), pairs),
    )


def single(name: str, ours: Blocks, *, unit: str, goal: Goal | None = None, scale: float | None = None) -> Figure:
    """Return the figure of one thing that isn't compared. The numbers are seconds if no ``scale`` is given."""
    numbers = _numbers(ours, UNITS[unit] if scale is None else scale)
    return Figure(name=name, unit=unit, goal=goal, ours=estimate(median, numbers))


def estimate(of: Callable[[Sequence[Any]], float], blocks: Sequence[Any]) -> Estimate:
    """Return the value of ``of(blocks)``, and the interval of its values for resamples of ``blocks``."""
    lot = random.Random(1)  # the same resamples for all figures
    again = sorted(of(lot.choices(blocks, k=len(blocks))) for _ in range(RESAMPLES))
    return Estimate(value=of(blocks), low=again[RESAMPLES * 25 // 1000], high=again[RESAMPLES * 975 // 1000])


def _numbers(blocks: Blocks, factor: float) -> list[float]:
    return [factor * (float(each) if isinstance(each, int | float) else median(each)) for each in blocks]


# -- turns ----------------------------------------------------------------------------------------------------------------


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield the order of each round: by lot, then its reverse, then another by lot, and so on."""
    order = list(names)
    for n in range(rounds):
        order = order[::-1] if n % 2 else random.sample(list(names), len(names))
        yield order


def in_turns(
    things: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Call all ``things`` in turns, ``rounds`` times each. Return the seconds of each call; ``before`` runs before it, untimed.

    The garbage collector stays on, because what a call leaves to it is part of its cost; what was there before the first counted
    round is put out of its sight, so that no call pays for the benchmark's own objects.
    """
    took: dict[str, list[float]] = {name: [] for name in things}
    for order in orders(list(things), warm_up):
        for name in order:
            before()
            things[name]()
    with settled_heap():
        for order in orders(list(things), rounds):
            for name in order:
                call = things[name]
                before()
                began_s = clock()
                call()
                took[name].append(clock() - began_s)
    return took


@contextlib.contextmanager
def settled_heap() -> Iterator[None]:
    """Collect all garbage, and keep what is left out of the collector's later rounds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- options, table, JSON -------------------------------------------------------------------------------------------------


def options(doc: str | None, *, cpu: bool = False) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks understand, and ``--cpu`` if it makes sense for this one.

    The description is the first line of ``doc``, the module's docstring.
    """
    parser = argparse.ArgumentParser(description=str(doc).partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full", help="how much is measured; tiny shows only that it works")
    parser.set_defaults(cpu=False)
    if cpu:
        parser.add_argument("--cpu", action="store_true", help="count processor time instead of the time on the clock")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and facts of the machine to FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal isn't met")
    return parser


def clock_of(given: argparse.Namespace) -> Callable[[], float]:
    """Return the clock that ``--cpu`` chose."""
    return time.process_time if given.cpu else time.perf_counter


def finish(benchmark: str, given: argparse.Namespace, figures: Sequence[Figure], notes: Sequence[str] = ()) -> int:
    """Print the table, write the JSON, and return the exit code: 1 if ``--check`` is given and a goal isn't met.

    ``notes`` say what a figure can't, such as why a peer was left out.
    """
    facts = machine()
    show(benchmark, figures)
    load = facts["load_before"]
    if isinstance(load, float) and load > QUIET_LOAD:
        notes = [*notes, f"The machine did other work (load {load:.1f}): rely on the ratios, and on nothing else."]
    for note in notes:
        print(note)
    if given.json:
        found = {
            "benchmark": benchmark,
            "size": given.size,
            "clock": "processor time" if given.cpu else "wall clock",
            "taken": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": facts,
            "figures": [as_data(figure) for figure in figures],
            "notes": list(notes),
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = [figure for figure in figures if figure.met is False]
    for figure in missed if given.check else []:
        print(f"goal missed: {figure.name} against {figure.against}: {goal_text(figure)}", file=sys.stderr)
    return int(given.check and bool(missed))


def as_data(figure: Figure) -> dict[str, object]:
    """Return ``figure`` as JSON has it."""
    return {**dataclasses.asdict(figure), "met": figure.met}


def from_data(data: Mapping[str, Any]) -> Figure:
    """Return the figure that `as_data` wrote."""

    def estimate(name: str) -> Estimate | None:
        return Estimate(**data[name]) if data[name] else None

    return Figure(
        name=data["name"],
        unit=data["unit"],
        ours=Estimate(**data["ours"]),
        against=data["against"],
        theirs=estimate("theirs"),
        ratio=estimate("ratio"),
        difference=estimate("difference"),
        goal=Goal(**data["goal"]) if data["goal"] else None,
    )


HEADINGS = ["", "against", "ours", "theirs", "ratio", "95 %", "difference", "95 %", "goal", ""]
#: The columns of numbers.
NUMBERS = range(2, 8)


def columns(figures: Sequence[Figure]) -> tuple[list[list[str]], list[bool]]:
    """Return the table's columns that aren't empty, each with its heading first, and which of them have numbers."""
    rows = [HEADINGS, *(cells(figure) for figure in figures)]
    shown = [place for place in range(len(HEADINGS)) if place == 0 or any(row[place] for row in rows[1:])]
    return [[row[place] for row in rows] for place in shown], [place in NUMBERS for place in shown]


def cells(figure: Figure) -> list[str]:
    """Return the texts of a figure's row in a table, under `HEADINGS`."""
    texts = [figure.name, figure.against or "", f"{number(figure.ours.value)} {figure.unit}"]
    if figure.theirs and figure.ratio and figure.difference:
        texts += [
            f"{number(figure.theirs.value)} {figure.unit}",
            f"{figure.ratio.value:.3f}",
            f"{figure.ratio.low:.3f} to {figure.ratio.high:.3f}",
            f"{number(figure.difference.value)} {figure.unit}",
            f"{number(figure.difference.low)} to {number(figure.difference.high)}",
        ]
    else:
        texts += ["", "", f"{number(figure.ours.low)} to {number(figure.ours.high)}", "", ""]
    return [*texts, goal_text(figure), {None: "", True: "met", False: "missed"}[figure.met]]


def goal_text(figure: Figure) -> str:
    """Return the goal in words, such as ``ratio ≤ 1.05``; empty without one."""
    goal = figure.goal
    if goal is None:
        return ""
    unit = "" if goal.of == "ratio" else f" {figure.unit}"
    what = "" if goal.of == "value" else f"{goal.of} "
    bounds = [
        f"≤ {goal.most:,g}{unit}" if goal.most is not None else "",
        f"≥ {goal.least:,g}{unit}" if goal.least is not None else "",
    ]
    return what + " and ".join(filter(None, bounds))


def judged_text(figure: Figure) -> str:
    """Return the number that the goal is for, with its unit; empty without a goal."""
    if figure.goal is None or figure.judged is None:
        return ""
    return f"{figure.judged:.3f}" if figure.goal.of == "ratio" else f"{number(figure.judged)} {figure.unit}"


def number(value: float) -> str:
    """Return ``value`` with as many digits as mean something."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: not -0.00


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown, numbers = columns(figures)
    for column, has_numbers in zip(shown, numbers, strict=True):
        table.add_column(column[0], justify="right" if has_numbers else "left")
    for row in list(zip(*shown, strict=True))[1:]:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=TABLE_CHARS)).print(table)


# -- the machine ----------------------------------------------------------------------------------------------------------


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


_LOAD_BEFORE = _load()


def machine() -> dict[str, object]:
    """Return what a figure depends on: processor, system, Python, libraries, file system. No name of a host, no path."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "libraries": versions,
        "fsyncs_per_s": round(fsyncs_per_s()),
        "load_before": _LOAD_BEFORE,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fsyncs_per_s(folder: str | None = None) -> float:
    """Return how many appends of 4 KiB the disk below ``folder`` (that of temporary files) keeps in a second, one after another."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        done, began_s = 0, time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < FSYNC_S:
            file.write(bytes(4096))
            os.fsync(file.fileno())
            done += 1
    return done / took_s
