"""Many events: the report streams. `python -m benchmarks.report` measures a million of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from routeweiler_sync import Ledger
from routeweiler_sync.ledger import statement
from tests.support import report_load
from tests.support.ledger_builders import draw, intent, limits, settle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no resource module")]


def test_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    """A trace of years must not need a machine's whole memory: a tenth of a KiB for each event is kept, and no event itself."""
    loads = []
    for events in (1_000, 40_000):
        trace = tmp_path / f"{events}.jsonl"
        spent_msat = report_load.write_trace(trace, events)
        loads.append(report_load.report("--json", "--trace", str(trace)))
        assert loads[-1].told["spentMsat"] == spent_msat
        assert loads[-1].told["calls"]["all"] == events
    # The batch of payments that is about to be written, and a cache of SQLite's that is bounded, come on top.
    assert loads[1].mib - loads[0].mib < 120
    assert loads[1].seconds < 60


def test_a_long_ledger_is_read_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a page nothing is lost or read twice, also if all rows are of one moment."""
    monkeypatch.setattr(statement, "PAGE_ROWS", 7)
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger._clock = lambda: 1_800_000_000.0
    for n in range(1, 23):
        ledger.open_payment(intent(n), draw(limits(), session_started_s=1_800_000_000.0))
        settle(ledger, n)
    lines = list(ledger.statement())
    assert len(lines) == len({line.payment_hash for line in lines}) == 22
