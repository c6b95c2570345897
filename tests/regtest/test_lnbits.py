"""A real LNbits on the real lnd: its words, and purchases through it while it is killed, cut off, or its node is.

What the fake is held to as well is in `LnbitsContract` and `WalletContract`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Ledger, LightningFundingSource, PaymentPendingError, PaymentState, Routeweiler, RouteweilerError
from tests.support.lnbits_contract import ContractLnbits, LnbitsContract
from tests.support.wallet_contract import AMOUNT_MSAT, PATIENCE_S, payments, ready, send, settled, track

from .real_wallets import Lnbits, lnbits as real_lnbits
from .world import World

NETWORK = "bitcoin-regtest"
PAGE = "service-a"  # 10 sat
THREADS = 64

pytestmark = pytest.mark.usefixtures("lnbits_installed")


@pytest.fixture
def wallet(world: World) -> Iterator[Lnbits]:
    with real_lnbits(world) as wallet:
        assert isinstance(wallet, Lnbits)
        yield wallet


class Shopper:
    """A session that buys from aperture with the wallet, and the books that must agree with LNbits' own list."""

    def __init__(self, wallet: Lnbits, folder: Path) -> None:
        self.wallet, self.ledger_url = wallet, str(folder / "ledger.db")
        self.known = {payment.payment_hash for payment in wallet.own_list()}

    def session(self, **options: Any) -> Routeweiler:
        source = LightningFundingSource(client=self.wallet.client, network=NETWORK)
        return Routeweiler(funding=[source], ledger=self.ledger_url, **options)

    def get(self, **options: Any) -> Any:
        with self.session(**options) as session:
            try:
                return session.get(self.wallet.world.url(PAGE), timeout=PATIENCE_S)
            except RouteweilerError as error:
                return error

    def until_served(self) -> Any:
        ends = []
        for _ in range(4):
            ends.append(self.get())
            if getattr(ends[-1], "status_code", None) == 200:
                return ends[-1]
        raise AssertionError(ends)

    def check(self, *, payments: int) -> None:
        """Ledger and LNbits agree to the msat, and lnd has paid as often."""
        listed = [each for each in self.wallet.own_list() if each.payment_hash not in self.known and each.status == "SUCCEEDED"]
        ledger = Ledger.open(self.ledger_url)
        rows = [row for row in ledger.payments() if row.state is PaymentState.SETTLED]
        ledger.close()
        assert {(row.payment_hash, row.amount_msat, row.fee_msat) for row in rows} == {
            (each.payment_hash, each.amount_msat, each.fee_msat) for each in listed
        }
        assert len(listed) == payments
        keys = {each.payment_hash for each in listed}
        assert (
            sum(
                payment["status"] == "SUCCEEDED"
                for payment in self.wallet.world.payer.list_payments()
                if payment["payment_hash"] in keys
            )
            == payments
        )


@pytest.fixture
def shopper(wallet: Lnbits, tmp_path: Path) -> Shopper:
    return Shopper(wallet, tmp_path)


class TestLnbits(LnbitsContract):
    @pytest.fixture
    def lnbits(self, wallet: Lnbits) -> ContractLnbits:
        return wallet


def test_a_page_is_bought_once_and_had_again(shopper: Shopper) -> None:
    """The least that a wallet is for."""
    for reused in (False, True, True):
        assert shopper.get().payment.reused is reused
    shopper.check(payments=1)


def test_many_threads_that_want_one_page_pay_once(shopper: Shopper) -> None:
    """A crawler's threads meet one paywall at the same moment."""
    barrier, ends = threading.Barrier(THREADS), list[int]()
    with shopper.session() as session:

        def want() -> None:
            barrier.wait(PATIENCE_S)
            ends.append(session.get(shopper.wallet.world.url(PAGE), timeout=PATIENCE_S).status_code)

        threads = [threading.Thread(target=want) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
    assert ends == [200] * THREADS
    shopper.check(payments=1)


@pytest.mark.parametrize("lost", ["answer", "order"])
def test_an_answer_or_an_order_that_is_lost_costs_nothing(shopper: Shopper, lost: str) -> None:
    """A second payment, or a lost token, would be the user's loss."""
    wallet = shopper.wallet
    with wallet.lose_answer(times=1) if lost == "answer" else wallet.lose_order(times=1):
        shopper.get()
    shopper.until_served()
    shopper.check(payments=1)


@pytest.mark.slow
def test_lnbits_killed_while_the_htlc_is_held_tells_of_it_later(wallet: Lnbits) -> None:
    """lnd pays on without LNbits; its row, written before, finds the payment again."""
    bolt11 = wallet.make_invoice(AMOUNT_MSAT)
    with wallet.hold():
        sender = threading.Thread(target=lambda: send(wallet.client, bolt11, timeout_s=10))
        sender.start()
        _until(lambda: any(payment.status == "IN_FLIGHT" for payment in payments(wallet, bolt11)))
        _until(lambda: bool(wallet.world.payer.list_payments()[-1]["htlcs"]))
        wallet.stop()
        sender.join(PATIENCE_S)
        wallet.start()
    ready(wallet)
    answer = settled(wallet, bolt11)
    [listed] = payments(wallet, bolt11)
    assert (listed.status, listed.fee_msat) == ("SUCCEEDED", answer.fee_msat)


@pytest.mark.slow
def test_lnbits_killed_in_the_midst_of_a_purchase_costs_one_payment(shopper: Shopper) -> None:
    """The row stays open until LNbits is back, and is finished then without another payment."""
    wallet, ends = shopper.wallet, list[Any]()
    with wallet.hold():
        buyer = threading.Thread(target=lambda: ends.append(shopper.get(payment_timeout=10)))
        buyer.start()
        _until(lambda: any(each.payment_hash not in shopper.known for each in wallet.own_list()))
        time.sleep(1)  # the HTLC leaves within milliseconds; nothing shows it for an invoice that only aperture knows
        wallet.stop()
        buyer.join(PATIENCE_S)
        wallet.start()
    assert isinstance(ends[0], PaymentPendingError), ends
    ready(wallet)
    shopper.until_served()
    shopper.check(payments=1)


@pytest.mark.slow
def test_a_node_that_is_cut_off_with_the_htlc_out_leaves_the_payment_open_until_it_is_back(shopper: Shopper) -> None:
    """A frozen lnd neither answers nor refuses: LNbits says pending, and later what became of the payment.

    (Frozen before the order has reached it, lnd may never get it: then the payment is pending for ever.)
    """
    wallet, world, ends = shopper.wallet, shopper.wallet.world, list[Any]()
    with wallet.hold():
        buyer = threading.Thread(target=lambda: ends.append(shopper.get(payment_timeout=10)))
        buyer.start()
        _until(lambda: any(each.payment_hash not in shopper.known for each in wallet.own_list()))
        time.sleep(1)  # the HTLC leaves within milliseconds; nothing shows it for an invoice that only aperture knows
        world.payer.freeze()
        try:
            buyer.join(PATIENCE_S)
        finally:
            world.payer.thaw()
    assert isinstance(ends[0], PaymentPendingError), ends
    shopper.until_served()
    shopper.check(payments=1)


@pytest.mark.slow
def test_a_held_payment_is_followed_over_lnbits_slow_lookups(shopper: Shopper) -> None:
    """A look-up of a pending payment takes half a minute with lnd: the call that waits for it gets its page."""
    wallet, ends = shopper.wallet, list[Any]()
    with wallet.hold() as release:
        buyer = threading.Thread(target=lambda: ends.append(shopper.get(payment_timeout=90)))
        buyer.start()
        time.sleep(8)  # past LNbits' own wait of five seconds
        release()
        buyer.join(2 * PATIENCE_S)
    assert getattr(ends[0], "status_code", None) == 200, ends
    shopper.check(payments=1)


@pytest.mark.slow
def test_the_service_fee_is_in_cap_and_fee(world: World, wallet: Lnbits) -> None:
    """Its admin may take a share: it is told before, and booked after."""
    server = wallet.server
    taker = server.new_wallet()
    server.restart(LNBITS_SERVICE_FEE=2, LNBITS_SERVICE_FEE_WALLET=taker.id)
    try:
        bolt11 = wallet.make_invoice(1_000_000)
        assert wallet.client.own_fee_cap_msat(bolt11, timeout_s=PATIENCE_S) == 10_000 + 20_000
        answer = send(wallet.client, bolt11)
        [listed] = payments(wallet, bolt11)
        assert answer.fee_msat == listed.fee_msat == 20_000 + 1_001
        assert track(wallet.client, bolt11).fee_msat == listed.fee_msat
        assert server.balance_msat(taker) == 20_000
    finally:
        del server.settings["LNBITS_SERVICE_FEE"], server.settings["LNBITS_SERVICE_FEE_WALLET"]
        server.restart()


def _until(predicate: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not predicate():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.05)
