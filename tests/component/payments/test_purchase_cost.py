"""What a purchase asks of its ledger: as few transactions as its promises allow, because all buyers of a ledger share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from routeweiler_sync import Ledger, Routeweiler, TraceSink
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.types import UNTRACED
from routeweiler_sync.testing import FakeLnd, Paywall


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[str]]:
    """Yield the statements that the ledger, which is open, runs in the block."""
    seen: list[str] = []
    store: Any = ledger._store
    lines = [line.connection for line in (store._writer, store._reader)]
    for connection in lines:
        connection.set_trace_callback(seen.append)
    yield seen
    for connection in lines:
        connection.set_trace_callback(None)


def told(ledger: Ledger) -> list[int]:
    """Return what each payment's row says about its report."""
    return [row["told"] for row in ledger._store.ask("SELECT told FROM payments ORDER BY created_at_ms, payment_hash")]


@pytest.fixture
def wall() -> Iterator[Paywall]:
    with FakeLnd() as lnd, Paywall(lnd, dynamic=True) as wall:
        yield wall


@pytest.fixture
def ledger(tmp_path: Any) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def session(wall: Paywall, ledger: Ledger, **arguments: Any) -> Routeweiler:
    return Routeweiler(funding=[wall.lnd.funding()], ledger=ledger, **arguments)


@pytest.mark.parametrize("traced", [False, True])
def test_a_purchase_looks_once_and_waits_for_the_disk_twice(wall: Paywall, ledger: Ledger, tmp_path: Any, traced: bool) -> None:
    """Else each buyer of a busy ledger keeps all others waiting for longer than its promises need."""
    sink = {"trace_sink": TraceSink.jsonl(tmp_path / "trace.jsonl")} if traced else {}
    with session(wall, ledger, **sink) as buyer:
        buyer.get(wall.url_for("/first"))
        with statements(ledger) as seen:
            buyer.get(wall.url_for("/second"))
        assert seen.count("BEGIN") == 1, "looks up all it needs at one moment"
        notes = 1 + traced  # that the token was accepted; that the trace reports the payment, once it does
        assert seen.count("BEGIN IMMEDIATE") == 2 + notes
        assert seen.count("PRAGMA synchronous=NORMAL") == notes, "notes don't wait for the disk"
    assert told(ledger) == ([1, 1] if traced else [UNTRACED, UNTRACED])


def test_that_no_trace_will_report_a_payment_is_noted_at_the_end_if_it_could_not_be_before(
    wall: Paywall, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the audit of a shared ledger would miss the payment in the traces of others."""
    mark: Callable[..., None] = ledger.mark
    refused: list[str] = []

    def refuse_once(payment_hash: str, **noted: bool) -> None:
        if not refused:
            refused.append(payment_hash)
            raise LedgerError("The disk is full.", advice="")
        mark(payment_hash, **noted)

    monkeypatch.setattr(ledger, "mark", refuse_once)
    with session(wall, ledger) as buyer:
        assert buyer.get(wall.url_for("/page")).status_code == 200
    assert len(refused) == 1
    assert told(ledger) == [UNTRACED]


def test_a_payment_that_a_trace_will_report_is_not_noted_as_untraced(wall: Paywall, ledger: Ledger, tmp_path: Any) -> None:
    """Else a session without a trace, which uses the token of one that has died, would take its payment out of the trace."""
    with session(wall, ledger, trace_sink=TraceSink.jsonl(tmp_path / "trace.jsonl")) as buyer:
        buyer.get(wall.url_for("/page"))
    with session(wall, ledger) as other:
        assert other.get(wall.url_for("/page")).payment.reused
    assert told(ledger) == [1]
