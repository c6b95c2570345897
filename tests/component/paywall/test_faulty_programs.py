"""Faults of the program around a payment: its log, its trace sink, its open files. None costs a payment or a page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from routeweiler_sync import InvoicePaymentError, PaymentPendingError, Routeweiler, RouteweilerError
from routeweiler_sync._core import preload
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace.sink_jsonl import JsonlSink
from tests.support.accounts import Books


class BrokenHandler(logging.Handler):
    """A handler of a program that raises, as those do whose `handleError` raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError


@pytest.fixture
def _broken_log() -> Iterator[None]:
    log = logging.getLogger("routeweiler_sync")
    handler, level = BrokenHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.mark.usefixtures("_broken_log")
def test_a_log_handler_that_raises_costs_no_payment(make_session, lnd: FakeLnd, books: Books) -> None:
    """Raised after the intent is written, its exception would leave the payment open and the caller with a foreign error."""
    session = make_session(payment_timeout=1)
    with Paywall(lnd, price_msat=10_000, dynamic=True) as paywall:
        assert session.get(paywall.url).status_code == 200
        lnd.fail_next()
        with pytest.raises(InvoicePaymentError):
            session.get(paywall.url_for("/fails"))
        lnd.hang_next()
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url_for("/hangs"))
    assert [payment.status for payment in lnd.payments].count("SUCCEEDED") == 1
    assert len(books.lines) == 3


def test_a_log_message_names_the_line_that_wrote_it(
    session: Routeweiler, paywall: Paywall, caplog: pytest.LogCaptureFixture
) -> None:
    """A format with %(filename)s is of no use where it always names the same file."""
    with caplog.at_level(logging.DEBUG, "routeweiler_sync"):
        session.get(paywall.url)
    ours = [record for record in caplog.records if record.name == "routeweiler_sync"]
    assert ours
    assert "log.py" not in {record.filename for record in ours}
    assert "__init__.py" not in {record.filename for record in ours}


class ForgetfulSink(JsonlSink):
    """A sink of a program's own: it writes nothing at first, and can't say what it has written."""

    emits = False

    def emit(self, event: Any) -> bool:
        return super().emit(event) if self.emits else False

    def reports(self, payment_hash: str) -> bool:
        raise KeyError(payment_hash)


def test_a_sink_that_cannot_say_what_it_holds_costs_no_page(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """It is asked when a token is used whose payment no event has reported yet."""
    sink = ForgetfulSink(books.trace_path)
    assert make_session(trace_sink=sink).get(paywall.url).status_code == 200
    sink.emits = True
    assert make_session(trace_sink=sink).get(paywall.url).status_code == 200
    assert len(lnd.orders) == 1
    assert [line["payment"]["reused"] for line in books.lines] == [False]


@pytest.mark.parametrize("cause", [OSError(24, "Too many open files"), ImportError("no module")])
def test_what_paying_needs_and_cannot_be_imported_is_an_error_of_ours(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    """It is imported at the first 402, perhaps in a process that may open no more files. The next call tries again."""

    def fails(names: object) -> None:
        raise cause

    with monkeypatch.context() as patched:
        patched.setattr(preload, "_done", {"session"})
        patched.setattr(preload, "_load", fails)
        with pytest.raises(RouteweilerError, match="imported") as raised:
            session.get(paywall.url)
    assert raised.value.spent is False
    assert not lnd.orders
    assert session.get(paywall.url).status_code == 200
    assert len(books.lines) == 2
