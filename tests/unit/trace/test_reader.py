"""What traces tell of payments is read from what the sinks write, of either kind, and from what a killed writer leaves."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.trace import TracePayment
from routeweiler_sync.trace.reader import ReportedPayment, TraceUnreadableError, read_traces
from routeweiler_sync.trace.sink import TraceSink
from tests.support.trace_events import END, HASH, PREIMAGE, failed_event, free_event, paid_event

KINDS = ["jsonl", "sqlite"]


def sink_of(kind: str, path: Path, **kwargs: Any) -> TraceSink:
    return TraceSink.jsonl(path, **kwargs) if kind == "jsonl" else TraceSink.sqlite(path, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_payments_are_read_as_they_were_told(tmp_path: Path, kind: str) -> None:
    """What is read wrongly would be a difference that isn't there. The name doesn't tell the kind, and the sink is still open."""
    sink = sink_of(kind, tmp_path / "trace #1?.log")
    for event in (free_event(), paid_event(), paid_event("r3"), failed_event("no")):
        assert sink.emit(event)
    reused = TracePayment(payment_hash="12" * 32, amount_msat=1, reused=True)
    assert sink.emit(paid_event("r4", payment=reused, timestamp_end=END - timedelta(hours=1)))
    account = read_traces([sink.path])
    told = ReportedPayment(amount_msat=10_001, fee_msat=1_000, booked_minor_units=Decimal("11.001"), currency="sat", proof=PREIMAGE)
    assert account.payments == {HASH: (told,)}
    assert (account.lines, account.unreadable) == (5, 0)
    assert account.since_s == (END - timedelta(hours=1)).timestamp()
    assert PREIMAGE not in repr(account)
    sink.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_that_leaves_things_out_tells_amounts_all_the_same(tmp_path: Path, kind: str) -> None:
    """redact and url_mode="drop" are for traces that are handed on; their sums must still be comparable."""
    sink = sink_of(kind, tmp_path / "trace", redact=True, url_mode="drop")
    assert sink.emit(paid_event())
    sink.close()
    ((told,),) = read_traces([sink.path]).payments.values()
    assert (told.amount_msat, told.fee_msat, told.proof) == (10_001, 1_000, None)


def test_amounts_that_no_double_holds_are_read_exactly(tmp_path: Path) -> None:
    """A millionth off would be a difference."""
    sink = sink_of("jsonl", tmp_path / "trace")
    exact = Decimal("123456789012.123457")
    payment = TracePayment(payment_hash=HASH, amount_msat=1, amount_envelope=exact, amount_envelope_currency="jpy")
    assert sink.emit(paid_event(payment=payment))
    sink.close()
    assert [told.booked_minor_units for (told,) in read_traces([sink.path]).payments.values()] == [exact]


def test_rotated_files_are_read_together(tmp_path: Path) -> None:
    """Each alone would lack the other's payments."""
    paths = [tmp_path / "trace.1", tmp_path / "trace"]
    for at, (path, kind) in enumerate(zip(paths, KINDS, strict=True)):
        sink = sink_of(kind, path)
        assert sink.emit(paid_event(payment=TracePayment(payment_hash=f"{at}" * 64, amount_msat=at + 1)))
        sink.close()
    account = read_traces(paths)
    assert {h[0]: told.amount_msat for h, (told,) in account.payments.items()} == {"0": 1, "1": 2}
    assert account.files == tuple(os.fspath(path) for path in paths)


@pytest.mark.parametrize(
    "line",
    [b'{"payment": {"paymentHash": "ab', b"\xff\xfe", b"[]", b"null", b'"text"', b'{"payment": 1, "timestampEnd": 5}']
    + [b"[" * 100_000]
    + [
        json.dumps({**paid_event().to_json_dict(), "payment": payment}).encode()
        for payment in (1, [], {"reused": False}, {**paid_event().to_json_dict()["payment"], "amountEnvelope": "much"})
    ]
    + [
        json.dumps(paid_event().to_json_dict()).replace(f'"{name}": ', f'"{name}": {figure}, "was": ').encode()
        for name in ("amountMsat", "feeMsat", "amountEnvelope")
        for figure in ("1e99", "1e999999999", '"sNaN"', "NaN", "Infinity", "[]")
    ],
)
def test_lines_that_arent_events_are_counted_and_stop_nothing(tmp_path: Path, line: bytes) -> None:
    """A killed writer leaves half a line, a vandal figures that fill a machine; what stands behind them counts all the same."""
    sink = sink_of("jsonl", tmp_path / "trace")
    sink.path.write_bytes(line + b"\n\n")
    assert sink.emit(paid_event())
    sink.close()
    account = read_traces([sink.path])
    assert (account.lines, account.unreadable, list(account.payments)) == (1, 1, [HASH])


def test_a_trace_that_cant_be_read_is_named(tmp_path: Path) -> None:
    """A typing error in a path must not look like a trace that tells nothing. And nothing is made there."""
    with pytest.raises(TraceUnreadableError, match="missing"):
        read_traces([tmp_path / "missing"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceUnreadableError, match="can't be read"):
        read_traces([tmp_path])
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"SQLite format 3\x00" + b"\x01" * 4_000)
    with pytest.raises(TraceUnreadableError, match="damaged"):
        read_traces([damaged])


@pytest.mark.skipif(os.name == "nt", reason="pipes with a name are POSIX's")
@pytest.mark.parametrize("name", ["fifo", "a\0b", "/dev/null"])
def test_a_trace_that_keeps_nothing_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """An audit with ROUTEWEILER_TRACE=/dev/stdout would wait for ever for somebody who writes to it."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TraceUnreadableError, match="can't be read"):
        read_traces([tmp_path / name])


@pytest.mark.parametrize(
    "misplaced", ["0201036c6e64" + "ab" * 60, "hex:" + "0201036c6e64" + "cd" * 40, "lndconnect://host?macaroon=AgEDbG5k"]
)
def test_a_secret_in_place_of_a_trace_is_not_repeated(misplaced: str) -> None:
    """Else ROUTEWEILER_TRACE with a macaroon in it puts the macaroon into every report of the audit."""
    with pytest.raises(TraceUnreadableError) as caught:
        read_traces([misplaced])
    assert misplaced not in str(caught.value)
    assert "AgEDbG5k" not in str(caught.value)
