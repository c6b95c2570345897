"""The benchmarks work, and count and judge as they say. How fast anything is isn't tested here."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as all_of_them, measure, page
from benchmarks.measure import Figure, Goal
from routeweiler_sync.audit import compare
from routeweiler_sync.ledger.ledger import Ledger

COMMANDS = sorted(
    path.stem for path in Path(measure.__file__).parent.glob("*.py") if "measure.options(" in path.read_text(encoding="utf-8")
)
#: What makes the smallest form still smaller, or independent of what may not be here.
ARGUMENTS = {
    "free_traffic": ["--imports", "1"],
    "ledger_cost": ["--backend", "sqlite"],
    "many_rows": ["--backend", "sqlite"],
    "purchase": ["--peers", "nowhere", "--only", "cold"],
    "purchase_counts": ["--backend", "sqlite"],
    "threads": ["--threads", "4"],
    "throughput": ["--backend", "sqlite"],
}


def test_each_benchmark_is_shown_on_the_page() -> None:
    """One that is forgotten there is measured for nobody."""
    assert len({section.name for section in page.SECTIONS}) == len(page.SECTIONS)
    assert set(COMMANDS) == {section.module[0].removeprefix("benchmarks.") for section in page.SECTIONS}


@pytest.fixture(autouse=True)
def _short_look_at_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FSYNC_S", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_runs_in_its_smallest_form(name: str, tmp_path: Path) -> None:
    """Else it is found broken on the day when its figures are wanted."""
    file = tmp_path / "figures.json"
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.main(["--size", "tiny", "--json", str(file), *ARGUMENTS.get(name, [])]) == 0
    found = json.loads(file.read_text())
    assert found["benchmark"] == name
    assert found["figures"] or found["notes"]
    for figure in map(measure.from_data, found["figures"]):
        for each in (figure.ours, figure.theirs, figure.ratio, figure.difference):
            assert each is None or (math.isfinite(each.value) and each.low <= each.high)
        assert name == "memory" or figure.ours.value > 0
    assert found["machine"]["fsyncs_per_s"] > 0
    assert str(Path.cwd()) not in file.read_text()


def test_the_past_that_a_database_makes_itself_is_that_of_the_other_benchmarks(tmp_path: Path) -> None:
    """Else the figures of many rows would be those of rows that no ledger has, or that its audit finds wrong."""
    from benchmarks.ledger_cost import PAST, past
    from benchmarks.many_rows import ORIGIN, fill

    file, rows = tmp_path / "ledger.db", 2_000
    fill("sqlite", str(file), rows)
    with contextlib.closing(sqlite3.connect(file)) as database:
        made = database.execute(f"SELECT {PAST} FROM payments ORDER BY rowid").fetchall()
    expected = list(past(rows, ORIGIN, time.time()))
    assert [row[:-2] for row in made] == [row[:-2] for row in expected]
    assert all(abs(row[-2] - other[-2]) < 600_000 for row, other in zip(made, expected, strict=True))  # type: ignore[operator]
    with contextlib.closing(Ledger.open(file)) as ledger:
        assert compare(ledger.snapshot(), trace=None, node=None, now_s=time.time()).agrees


def test_a_library_that_isnt_there_is_left_out_and_the_output_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A table without the peers must not look as if they had been measured."""
    from benchmarks import purchase

    here, notes = purchase.installed_peers(tmp_path)
    assert not here
    assert all(name in notes[0] for name in purchase.PEERS)


def test_the_interval_holds_the_true_ratio_in_most_runs_and_is_narrow_where_there_is_little_noise() -> None:
    """A figure with too narrow an interval would be believed where it is chance."""
    lot, held = random.Random(7), 0
    for _ in range(30):
        loads = [lot.uniform(1, 1.5) for _ in range(25)]  # what slows both of a pair
        ours, theirs = ([load * lot.gauss(mean, 0.05) for load in loads] for mean in (1.1, 1.0))
        figure = measure.compare("x", ours, theirs, against="y")
        assert figure.ratio is not None
        held += figure.ratio.low <= 1.1 <= figure.ratio.high
        assert figure.ratio.high - figure.ratio.low < 0.25
    assert held >= 25


def test_a_ratio_and_a_difference_are_those_of_the_medians_of_the_blocks_medians() -> None:
    """One slow call in a block, and one slow block, change nothing."""
    figure = measure.compare("x", [[1e-6, 2e-6, 9.0], [2e-6], [5.0]], [[1e-6], [1e-6, 7.0, 1e-6], [1e-6]], against="y")
    assert figure.theirs is not None
    assert figure.ratio is not None
    assert figure.difference is not None
    assert (figure.ours.value, figure.theirs.value) == pytest.approx((2.0, 1.0))
    assert (figure.ratio.value, figure.difference.value) == pytest.approx((2.0, 1.0))


def test_each_round_has_all_and_the_next_the_reverse_order() -> None:
    """Else a machine that becomes slower all the time would make the one that is always last look slow."""
    rounds = list(measure.orders(["a", "b", "c"], 40))
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len(Counter(map(tuple, rounds))) > 2


def figure(value: float, goal: Goal | None, against: float | None = None) -> Figure:
    """A figure with this value, or this ratio."""
    if against is None:
        return measure.single("x", [value], unit="us", goal=goal, scale=1)
    return measure.compare("x", [value], [against], against="y", goal=goal, scale=1)


@pytest.mark.parametrize(
    ("shown", "met"),
    [
        (figure(2, None), None),
        (figure(2, Goal(of="value", most=2)), True),
        (figure(2, Goal(of="value", most=1.9)), False),
        (figure(2, Goal(of="value", least=2.1)), False),
        (figure(2, Goal(of="ratio", most=1.0), 2), True),
        (figure(2, Goal(of="ratio", most=1.0), 1.9), False),
        (figure(2, Goal(of="ratio", least=0.9), 2.5), False),
        (figure(7, Goal(of="difference", most=5), 1.9), False),
        (figure(7, Goal(of="difference", most=5), 2), True),
    ],
)
def test_check_fails_exactly_where_a_goal_is_missed(shown: Figure, met: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that can't fail is none."""
    assert shown.met is met
    assert measure.finish("x", measure.options("x").parse_args(["--check"]), [shown]) == (met is False)
    assert measure.finish("x", measure.options("x").parse_args([]), [shown]) == 0
    assert ("goal missed" in capsys.readouterr().err) == (met is False)
    assert measure.from_data(json.loads(json.dumps(measure.as_data(shown)))) == shown


def test_the_page_begins_with_every_goal_and_whether_it_is_met() -> None:
    """Else a reader would have to look for the missed ones in a dozen tables."""
    shown = [
        measure.compare("a call", [2], [1.9], against="requests", goal=Goal(of="ratio", most=1.0), scale=1),
        measure.compare("a page", [7], [3], against="a loop", unit="ms", goal=Goal(of="difference", most=5), scale=1),
        measure.single("no goal", [1], unit="us", scale=1),
    ]
    machine = {**measure.machine(), "load_before": None}
    run = {"size": "tiny", "taken": "2026-01-01", "machine": machine, "notes": [], "figures": [*map(measure.as_data, shown)]}
    goals = page.text({"threads": run}).partition("## The machine")[0].splitlines()
    assert [line for line in goals if line.startswith("| 64 threads")] == [
        "| 64 threads on one session | a call, against requests | 1.053 | ratio ≤ 1 | missed |",
        "| 64 threads on one session | a page, against a loop | 4.00 ms | difference ≤ 5 ms | met |",
    ]


def test_the_page_is_the_one_of_the_committed_figures() -> None:
    """Else the page would show numbers that no command made."""
    found: dict[str, Any] = json.loads(all_of_them.FIGURES.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.text(found), "run: python -m benchmarks --page"
