"""A wallet of Alby's service SDK on a real lnd: its words, and purchases while answers, orders and the service itself are lost.

lnd's own list is the judge, to the msat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import BudgetEnvelope, Funding, Ledger, PaymentPendingError, PaymentState, Routeweiler
from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.nwc import order as order_module
from routeweiler_sync.funding.nwc.client import NwcClient
from routeweiler_sync.funding.nwc.replies import UNKNOWN_HASH
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from tests.support.wallet_contract import payment_hash_of, ready

from .nwc_server import METHODS
from .processes import wait_for
from .real_wallets import Nwc, nwc
from .world import World

pytestmark = pytest.mark.usefixtures("nwc_installed")

THREADS = 64
CAP_MSAT = 10_000
PRICE_MSAT = 10_000
R = WalletReply


@pytest.fixture
def wallet(world: World) -> Iterator[Nwc]:
    with nwc(world) as wallet:
        assert isinstance(wallet, Nwc)
        ready(wallet)
        yield wallet
        usual = {"BUDGET_MSAT": "", "METHODS": METHODS}
        if wallet.server.settings != wallet.server.settings | usual:
            wallet.server.restart(**usual)


def order(wallet: Nwc, bolt11: str, *, timeout_s: float = 60.0) -> WalletAnswer:
    answer: WalletAnswer = wallet.client.send(
        bolt11, payment_hash=payment_hash_of(bolt11), max_fee_msat=CAP_MSAT, timeout_s=timeout_s
    )
    return answer


def payments(wallet: Nwc, bolt11: str) -> list[dict[str, Any]]:
    return wallet.world.payer.payments_of(payment_hash_of(bolt11).hex())


# Its words


def test_a_payment_and_what_is_told_of_it(wallet: Nwc) -> None:
    """Preimage, amount and fee are lnd's own."""
    bolt11 = wallet.make_invoice(21_000)
    answer = order(wallet, bolt11)
    [paid] = payments(wallet, bolt11)
    assert (answer.reply, answer.preimage) == (R.SUCCEEDED, bytes.fromhex(paid["payment_preimage"]))
    assert (answer.amount_msat, answer.fee_msat) == (int(paid["value_msat"]), int(paid["fee_msat"]))


def test_it_says_of_itself_what_paying_needs(wallet: Nwc) -> None:
    """Network and methods come with get_info, NIP-44 with the info event."""
    info = wallet.client.get_info()
    assert info.network == "bitcoin-regtest"
    assert "pay_invoice" in wallet.client.get_methods()
    assert wallet.client._pool._state().nip44
    assert wallet.client.spendable_msat(timeout_s=20) == int(wallet.world.payer.lncli("channelbalance")["local_balance"]["msat"])


def test_a_second_order_is_refused_by_its_text_alone(wallet: Nwc) -> None:
    """ "Already paid" comes as INTERNAL, from lnd itself."""
    bolt11 = wallet.make_invoice(21_000)
    assert order(wallet, bolt11).reply is R.SUCCEEDED
    again = order(wallet, bolt11)
    assert again.reply is R.EXISTS
    assert again.reason is not None
    assert "already paid" in again.reason
    assert len(payments(wallet, bolt11)) == 1


def test_a_payment_in_flight_is_one(wallet: Nwc) -> None:
    """Look-ups say so while the HTLC is held, and a second order is told that it is in transition."""
    bolt11 = wallet.make_invoice(21_000)
    with wallet.hold() as release:
        assert order(wallet, bolt11, timeout_s=3).reply in (R.UNKNOWN, R.IN_FLIGHT)
        assert wallet.client.track(payment_hash_of(bolt11), timeout_s=20, follow=False).reply is R.IN_FLIGHT
        assert order(wallet, bolt11).reply is R.EXISTS
        release()
        followed = wallet.client.track(payment_hash_of(bolt11), timeout_s=60, follow=True)
    assert followed.reply is R.SUCCEEDED


def test_no_route_is_a_failure_that_is_not_final(wallet: Nwc) -> None:
    """PAYMENT_FAILED, and a look-up that says "failed"."""
    answer = order(wallet, bolt11 := wallet.make_unpayable_invoice(21_000))
    assert answer.reply is R.FAILED_SO_FAR
    assert answer.reason is not None
    assert answer.reason.startswith("PAYMENT_FAILED: FAILURE_REASON_NO_ROUTE")
    assert wallet.client.track(payment_hash_of(bolt11), timeout_s=20, follow=True).reply is R.FAILED_SO_FAR


def test_an_expired_invoice_is_a_failure_that_is_not_final(wallet: Nwc) -> None:
    """INTERNAL with lnd's text, and no payment of this hash."""
    answer = order(wallet, wallet.make_expired_invoice(21_000))
    assert answer.reply is R.FAILED_SO_FAR
    assert answer.reason is not None
    assert answer.reason.startswith("INTERNAL: invoice expired")
    assert UNKNOWN_HASH in answer.reason


def test_an_unknown_hash_may_still_be_on_its_way(wallet: Nwc) -> None:
    """NOT_FOUND proves nothing."""
    answer = wallet.client.track(b"\x05" * 32, timeout_s=20, follow=True)
    assert (answer.reply, answer.reason) == (R.FAILED_SO_FAR, UNKNOWN_HASH)


def test_refusals_before_the_start(wallet: Nwc) -> None:
    """A budget, a balance, and a method that the connection doesn't have: nothing has begun."""
    bolt11 = wallet.make_invoice(21_000)
    wallet.server.restart(BUDGET_MSAT=20_000)
    answer = order(wallet, bolt11)
    assert (answer.reply, (answer.reason or "").partition(":")[0]) == (R.REFUSED, "QUOTA_EXCEEDED")
    beyond = wallet.make_invoice(wallet.beyond_balance_msat())
    wallet.server.restart(BUDGET_MSAT="")
    answer = wallet.client.send(beyond, payment_hash=payment_hash_of(beyond), max_fee_msat=10**9, timeout_s=60)
    assert (answer.reply, (answer.reason or "").partition(":")[0]) == (R.REFUSED, "INSUFFICIENT_BALANCE")
    assert payments(wallet, bolt11) == payments(wallet, beyond) == []
    wallet.server.restart(METHODS="pay_invoice lookup_invoice")
    with closing(NwcClient(wallet.server.uri)) as client:
        assert client.get_methods() == {"pay_invoice", "lookup_invoice"}  # get_info is NOT_IMPLEMENTED: the info event tells
        assert client.spendable_msat(timeout_s=20) is None
        with pytest.raises(FundingError, match="list_transactions"):
            list(client.list_payments())
        assert order(wallet, bolt11).reply is R.SUCCEEDED
    wallet.server.restart(METHODS="pay_invoice get_info")
    with closing(NwcClient(wallet.server.uri)) as client, pytest.raises(FundingError, match="lookup_invoice"):
        client.check_ready(20)


def test_an_order_that_is_delivered_twice_is_paid_once(wallet: Nwc) -> None:
    """Alby's SDK handles one event twice; lnd refuses the second payment, and the refusal may come first."""
    bolt11, relay = wallet.make_invoice(21_000), wallet.server.relay
    heard, relay.heard = relay.heard, lambda event: wallet.server._is(event) == "order" and relay.publish(event)
    try:
        assert order(wallet, bolt11).reply in (R.SUCCEEDED, R.EXISTS)
    finally:
        relay.heard = heard
    assert wallet.client.track(payment_hash_of(bolt11), timeout_s=60, follow=True).reply is R.SUCCEEDED
    assert len([each for each in payments(wallet, bolt11) if each["status"] == "SUCCEEDED"]) == 1


def test_the_list_is_lnds_own(wallet: Nwc) -> None:
    """Page by page, newest first."""
    listed = {each.payment_hash: each for each in wallet.client.list_payments()}
    own = {each.payment_hash: each for each in wallet.own_list()}
    assert {key: (each.status, each.amount_msat) for key, each in listed.items()} == {
        key: (each.status, each.amount_msat) for key, each in own.items()
    }


# Purchases


class Shop:
    """Sessions on one ledger that buy from aperture, and what lnd has paid since."""

    def __init__(self, wallet: Nwc, folder: Path) -> None:
        self.wallet, self.ledger = wallet, folder / "ledger.db"
        self._before = {each.payment_hash for each in wallet.own_list()}

    def session(self, client: Any = None, **settings: Any) -> Routeweiler:
        funding = Funding.lightning(client=client or self.wallet.client, network="bitcoin-regtest")
        settings.setdefault("payment_timeout", 60)
        return Routeweiler(
            funding=[funding], ledger=self.ledger, budget_envelope=BudgetEnvelope(id="e", cap_minor_units=10_000), **settings
        )

    @property
    def url(self) -> str:
        return f"{self.wallet.world.aperture.url}/service-a/{time.time_ns()}"

    def paid(self) -> list[Any]:
        return [each for each in self.wallet.own_list() if each.payment_hash not in self._before]

    def check(self, payments: int) -> None:
        """The ledger agrees with lnd's list: one payment each, to the msat."""
        paid = [each for each in self.paid() if each.status == "SUCCEEDED"]
        with closing(Ledger.open(self.ledger)) as ledger:
            rows = [row for row in ledger.payments() if row.state in (PaymentState.SETTLED, PaymentState.RETIRED)]
        assert len(paid) == len(rows) == payments
        booked = {row.payment_hash: (row.amount_msat, row.fee_msat) for row in rows}
        assert booked == {each.payment_hash: (each.amount_msat, each.fee_msat) for each in paid}


@pytest.fixture
def shop(wallet: Nwc, tmp_path: Path) -> Shop:
    return Shop(wallet, tmp_path)


def test_a_purchase_and_the_token_again(shop: Shop) -> None:
    """The first call pays, all others use its token."""
    with shop.session() as session:
        for _ in range(3):
            assert session.get(shop.url).status_code == 200
    with shop.session() as session:
        assert session.get(shop.url).status_code == 200
    shop.check(payments=1)


def test_many_threads_pay_once(shop: Shop) -> None:
    """All at once want the page: one buys, the others wait for its token."""
    statuses, barrier = list[int](), threading.Barrier(THREADS)
    with shop.session() as session:

        def work() -> None:
            barrier.wait(60)
            statuses.append(session.get(shop.url).status_code)

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert statuses == [200] * THREADS
    shop.check(payments=1)


def test_a_lost_answer_costs_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up within the same call."""
    monkeypatch.setattr(order_module, "LOOK_AFTER_S", 0.5)
    with shop.wallet.lose_answer(), shop.session() as session:
        assert session.get(shop.url).status_code == 200
    shop.check(payments=1)


def test_a_lost_order_is_never_sent_again(shop: Shop) -> None:
    """It may arrive yet, so the call stays pending; nothing is paid, however often the page is asked for."""
    with shop.wallet.lose_order(times=1), shop.session(payment_timeout=3) as session:
        for _ in range(3):
            with pytest.raises(PaymentPendingError):
                session.get(shop.url)
    assert shop.paid() == []
    [lost] = shop.wallet.server.orders()[-1:]
    shop.wallet.server.publish_again(lost)  # late, but in time
    with shop.session() as session:
        wait_for("it arrives", lambda: session.get(shop.url).status_code == 200, watched=[shop.wallet.server.daemon])
    shop.check(payments=1)


def test_a_service_that_is_killed_with_the_htlc_held_is_asked_again(shop: Shop) -> None:
    """lnd pays on: the next call finds the payment, by the same wallet's word."""
    wallet, url = shop.wallet, shop.url
    with wallet.hold() as release:
        with shop.session(payment_timeout=3) as session, pytest.raises(PaymentPendingError):
            session.get(url)
        wallet.stop()
        with shop.session(payment_timeout=3) as session, pytest.raises((PaymentPendingError, FundingError)):
            session.get(url)
        wallet.start()
        release()
    ready(wallet)
    with shop.session() as session:
        assert session.get(url).status_code == 200
    shop.check(payments=1)


def test_a_relay_that_is_cut_while_paying_loses_nothing(shop: Shop) -> None:
    """Both connections break, the wallet's too; both come back."""
    wallet, url, ends = shop.wallet, shop.url, list[Any]()
    with shop.session() as session:

        def work() -> None:
            with suppress(PaymentPendingError):
                ends.append(session.get(url).status_code)

        with wallet.hold() as release:
            buyer = threading.Thread(target=work)
            buyer.start()
            wait_for("the order is in flight", lambda: bool(shop.paid()), watched=[wallet.server.daemon])
            wallet.server.relay.stop()
            release()
            wallet.server.relay.start()
            buyer.join(120)
        ready(wallet)
        assert session.get(url).status_code == 200
    shop.check(payments=1)
