"""A session with several wallets of one network: which one pays, and which one finishes what was begun."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from routeweiler_sync import (
    Funding,
    FundingError,
    LightningFundingSource,
    PaymentPendingError,
    PaymentState,
    Routeweiler,
)
from routeweiler_sync.funding.lnd import rights
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

pytestmark = pytest.mark.usefixtures("asks_at_once")

PRICE_MSAT = 10_000


@pytest.fixture
def second(lnd: FakeLnd) -> Iterator[FakeLnd]:
    """Another node, with channels of its own to the payee that ``lnd`` pays."""
    with FakeLnd() as node:
        book, other = node._book, lnd._book
        book.payee_key, book.payee_pubkey = other.payee_key, other.payee_pubkey
        book.invoices, book.settled = other.invoices, other.settled
        yield node


@pytest.fixture
def both(make_session: Callable[..., Routeweiler], lnd: FakeLnd, second: FakeLnd) -> Callable[..., Routeweiler]:
    """Makes a session that has ``lnd`` first, then ``second``."""

    def make(**kwargs: Any) -> Routeweiler:
        return make_session(**{"funding": [Funding.lightning(client=node.client()) for node in (lnd, second)]} | kwargs)

    return make


def paid_by(*nodes: FakeLnd) -> list[int]:
    """How many payments each node has made."""
    return [sum(payment.status == "SUCCEEDED" for payment in node.payments) for node in nodes]


def drain(node: FakeLnd, left_msat: int = 0) -> None:
    """Leave ``left_msat`` on the node's side of its channels."""
    with node._book.changed:
        node._book.balance_msat = left_msat


def buys(session: Routeweiler, paywall: Paywall) -> None:
    assert session.get(paywall.url).status_code == 200


def test_the_first_wallet_pays_while_it_can(both, lnd: FakeLnd, second: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Else money would leave a wallet that was meant for emergencies."""
    with both() as session:
        buys(session, paywall)
        buys(session, paywall)
    assert paid_by(lnd, second) == [1, 0]
    assert [row.node_pubkey for row in books.rows] == [lnd.node_pubkey]
    books.check()


def _down(node: FakeLnd) -> None:
    node.stop()


def _locked(node: FakeLnd) -> None:
    node.lock()


def _empty(node: FakeLnd) -> None:
    drain(node, PRICE_MSAT - 1)


@pytest.mark.parametrize("hinder", [_down, _locked, _empty])
def test_the_second_wallet_pays_where_the_first_can_not(
    both, lnd: FakeLnd, second: FakeLnd, paywall: Paywall, books: Books, hinder: Callable[[FakeLnd], None]
) -> None:
    """Else a program with money in two wallets stops when one of them does."""
    hinder(lnd)
    with both() as session:
        buys(session, paywall)
        buys(session, paywall)
    assert paid_by(lnd, second) == [0, 1]
    assert [row.node_pubkey for row in books.rows] == [second.node_pubkey]


def test_a_wallet_that_may_not_tell_its_balance_is_taken_to_have_enough(
    make_session, lnd: FakeLnd, second: FakeLnd, paywall: Paywall
) -> None:
    """The least macaroon doesn't permit the question. Such a wallet would never be bought with."""
    payer = lnd.client(macaroon_path=lnd.bake_macaroon(*rights.PAYING))
    with make_session(funding=[Funding.lightning(client=payer), Funding.lightning(client=second.client())]) as session:
        buys(session, paywall)
    assert paid_by(lnd, second) == [1, 0]


def test_where_no_wallet_can_pay_each_says_why(both, lnd: FakeLnd, second: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Whoever reads of one wallet alone mends that one, and is refused again."""
    lnd.lock()
    drain(second)
    with both() as session, pytest.raises(FundingError) as refused:
        session.get(paywall.url)
    assert refused.value.spent is False
    for text in ("(1) ", "locked", "(2) ", "can spend 0 sat"):
        assert text in str(refused.value)
    assert books.rows == []


def test_a_payment_is_finished_by_the_wallet_that_began_it(
    both, lnd: FakeLnd, second: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """The first wallet comes back while the payment of the second one is open. To pay there too would be to pay twice."""
    lnd.lock()
    second.hang_next()
    with both(payment_timeout=1) as session:
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url)
        lnd.unlock()
        second.release()
        buys(session, paywall)
    assert paid_by(lnd, second) == [0, 1]
    assert lnd.orders == []
    assert [(row.node_pubkey, row.state) for row in books.rows] == [(second.node_pubkey, PaymentState.SETTLED)]


def test_while_the_wallet_of_an_open_payment_is_down_no_other_one_pays(
    both, lnd: FakeLnd, second: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """What the first wallet is still paying would be paid by the second one as well."""
    lnd.hang_next()
    with both(payment_timeout=1) as session:
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url)
        lnd.lock()
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url)
        assert second.orders == []
        lnd.unlock()
        lnd.release()
        buys(session, paywall)
    assert paid_by(lnd, second) == [1, 0]
    assert [(row.node_pubkey, row.state) for row in books.rows] == [(lnd.node_pubkey, PaymentState.SETTLED)]


@pytest.mark.parametrize("reverse", [False, True])
def test_recover_asks_each_payment_s_own_wallet(
    make_session, both, lnd: FakeLnd, second: FakeLnd, books: Books, reverse: bool
) -> None:
    """Another wallet says "unknown", and the payment would be taken for one that was never made."""
    nodes = [lnd, second]
    with Paywall(lnd, price_msat=PRICE_MSAT, sells="path") as paywall:
        for hung, page in ((lnd, "/a"), (second, "/b")):
            other = nodes[1 - nodes.index(hung)]
            other.lock()
            hung.hang_next()
            with both(payment_timeout=1) as session, pytest.raises(PaymentPendingError):
                session.get(paywall.url_for(page))
            other.unlock()
    for node in nodes:
        node.release()
    funding = [Funding.lightning(client=node.client()) for node in (nodes[::-1] if reverse else nodes)]
    with make_session(funding=funding) as session:
        assert {row.state for row in session.recover()} == {PaymentState.SETTLED}
    assert paid_by(lnd, second) == [1, 1]
    assert {row.node_pubkey for row in books.rows} == {lnd.node_pubkey, second.node_pubkey}


def test_tokens_of_every_wallet_are_used_by_all(both, make_session, lnd: FakeLnd, second: FakeLnd, paywall: Paywall) -> None:
    """A token is paid for, whoever paid: to buy it again from another wallet is to pay twice."""
    lnd.lock()
    with both() as session:
        buys(session, paywall)
    lnd.unlock()
    with make_session(funding=[Funding.lightning(client=lnd.client())]) as session:
        buys(session, paywall)
    assert paid_by(lnd, second) == [0, 1]


# One source for whatever network the wallet is on


def test_a_source_without_a_network_pays_on_the_network_of_its_wallet(make_session, lnd: FakeLnd, paywall: Paywall) -> None:
    """A program needn't know the network that its wallet knows."""
    source = Funding.lightning(client=lnd.client(), max_fee_msat=2_000)
    assert (source.network, source.max_fee_msat, source.node_pubkey) == (None, 2_000, None)
    assert isinstance(source, LightningFundingSource)
    with make_session(funding=[source]) as session:
        buys(session, paywall)
    assert lnd.payments[0].fee_msat <= 2_000


def test_it_refuses_an_invoice_of_another_network(make_session, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """An order for mainnet to a node of a test network costs time at best."""
    paywall.faults.currency = "bc"
    with (
        make_session(funding=[Funding.lightning(client=lnd.client())]) as session,
        pytest.raises(FundingError) as refused,
    ):
        session.get(paywall.url)
    assert "bitcoin-regtest" in str(refused.value)
    assert refused.value.spent is False
    assert lnd.orders == []
    assert books.rows == []


@pytest.mark.parametrize("network", ["mainnet", "", "regtest", 5])
def test_an_unknown_network_is_refused_at_once(lnd: FakeLnd, network: Any) -> None:
    """A misspelt network would be found out at the first payment, at night."""
    with pytest.raises(ValueError, match="network must be one of"):
        Funding.lightning(client=lnd.client(), network=network)


def test_an_unfinished_payment_is_not_continued_by_another_node_at_the_same_address(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, second: FakeLnd, books: Books
) -> None:
    """A node is replaced while the program runs. The new one knows nothing of the old one's payment, and would pay it again."""

    class Replaced:
        def __init__(self, first: Any, then: Any) -> None:
            self.now, self._then = first, then

        def replace(self) -> None:
            self.now = self._then

        def send(self, bolt11: str, **kwargs: Any) -> Any:
            return self.now.send(bolt11, **kwargs)

        def track(self, payment_hash: bytes, **kwargs: Any) -> Any:
            return self.now.track(payment_hash, **kwargs)

        def check_ready(self, timeout_s: float) -> None:
            self.now.check_ready(timeout_s)

        def get_info(self, *, timeout_s: float | None = None) -> Any:
            return self.now.get_info(timeout_s=timeout_s)

    wallet = Replaced(lnd.client(), second.client())
    session = make_session(funding=[Funding.lightning(client=wallet, network="bitcoin-regtest")], payment_timeout=3)
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        buys(session, paywall)
    wallet.replace()
    with pytest.raises(PaymentPendingError, match="key"):
        buys(session, paywall)
    session.recover()
    assert second.orders == []
    wallet.now = lnd.client()
    lnd.release()
    buys(session, paywall)
    assert len(lnd.payments) == 1
    books.check()
