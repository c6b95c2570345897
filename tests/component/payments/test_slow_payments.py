"""A payment that takes long is reported once, while it lasts: in the log, and to the listeners."""

from __future__ import annotations

import logging
import threading

import pytest

from routeweiler_sync import Funding, PaymentPendingError, Routeweiler
from routeweiler_sync.payments import slow_payments
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

TIMEOUT_S = 60


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a listener is told. The first one fails, which must not matter."""
    texts: list[str] = []
    monkeypatch.setattr(slow_payments, "SLOW_S", 0.05)
    monkeypatch.setattr(slow_payments, "listeners", [lambda text: 1 / 0, texts.append])
    return texts


def session(lnd: FakeLnd, books: Books, payment_timeout: float = 60.0) -> Routeweiler:
    funding = [Funding.lightning_lnd(client=lnd.client(), network="bitcoin-regtest")]
    return Routeweiler(funding=funding, ledger=books.ledger_path, trace_sink=str(books.trace_path), payment_timeout=payment_timeout)


def test_a_slow_payment_is_reported_once_while_it_lasts(
    lnd: FakeLnd, paywall: Paywall, books: Books, heard: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A user who sees nothing for a minute takes the program for dead, and kills it in the midst of a payment."""
    caplog.set_level(logging.INFO, logger="routeweiler_sync")
    lnd.hang_next()
    with session(lnd, books) as paying:
        call = threading.Thread(target=paying.get, args=(paywall.url,), daemon=True)
        call.start()
        lnd.wait_for(lambda node: bool(node.payments) and bool(heard))
        payment_hash = lnd.payments[0].payment_hash
        lnd.release()
        call.join(TIMEOUT_S)
        assert not call.is_alive()
    assert len(heard) == 1
    assert heard[0].startswith(f"Still waiting for the payment of 10 sat to {paywall.base_url}: ")
    assert payment_hash in heard[0]
    reported = [record for record in caplog.records if "Still waiting" in record.getMessage()]
    assert [record.levelno for record in reported] == [logging.INFO]
    books.check()


def test_waiting_for_the_payment_of_another_call_is_reported_once(
    lnd: FakeLnd, paywall: Paywall, books: Books, heard: list[str]
) -> None:
    """The wait is as long, whoever has begun the payment; and two reports of one wait look like two payments."""
    lnd.hang_next(times=None)
    with session(lnd, books, payment_timeout=1) as paying, pytest.raises(PaymentPendingError):
        paying.get(paywall.url)
    before = len(heard)
    with session(lnd, books) as paying:
        call = threading.Thread(target=paying.get, args=(paywall.url,), daemon=True)
        call.start()
        lnd.wait_for(lambda node: len(heard) > before)
        lnd.release()
        call.join(TIMEOUT_S)
        assert not call.is_alive()
    assert len(heard) == before + 1
    assert len(lnd.payments) == 1
    books.check()


def test_a_payment_that_is_quick_is_not_reported(
    lnd: FakeLnd, paywall: Paywall, books: Books, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each payment would be noise."""
    monkeypatch.setattr(slow_payments, "SLOW_S", TIMEOUT_S)
    with session(lnd, books) as paying:
        assert paying.get(paywall.url).status_code == 200
    assert heard == []
