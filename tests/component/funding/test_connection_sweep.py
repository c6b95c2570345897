"""The connection to a wallet cut or frozen after every so many bytes of a purchase: never paid twice, never lost, never a lie."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routeweiler_sync import BudgetEnvelope, Routeweiler
from tests.support.connection_sweep import SEED, offsets, sweep, whole_purchase
from tests.support.fake_wallets import FakeWallet
from tests.support.tcp_relay import Way, Wire
from tests.support.wallet_market import WalletMarket

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("asks_at_once")]

#: A frozen connection is told by time alone, so each point costs this much.
FROZEN_TIMEOUT_S = 0.6
TIMEOUT_S = 30.0
POINTS = {"rst": 36, "fin": 36, "wire freeze": 9}
ENVELOPE = BudgetEnvelope("sweep", cap_minor_units=10**6)


@pytest.fixture
def wire(each_wallet: FakeWallet) -> Iterator[Wire]:
    wire = Wire(each_wallet.port)
    yield wire
    wire.close()


@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("way", ["to lnd", "from lnd"])
def test_wherever_the_connection_breaks_a_purchase_is_made_once_and_its_error_is_true(
    market: WalletMarket, wire: Wire, how: str, way: Way
) -> None:
    """A VPN that drops, a laptop that sleeps, at any byte: else the page is paid twice, or paid and lost, or the error lies."""
    timeout_s = FROZEN_TIMEOUT_S if how == "wire freeze" else TIMEOUT_S
    recipe, url = market.wallet.through(wire.port), market.paywall.url

    def new_session(payment_timeout: float = timeout_s) -> Routeweiler:
        return market.session(client=recipe.build(), budget_envelope=ENVELOPE, payment_timeout=payment_timeout)

    ledger = market.books.ledger
    total = whole_purchase(wire, new_session(TIMEOUT_S), url)
    ledger.forget(*market.paid)
    outcomes = sweep(
        wire,
        how=how,
        way=way,
        at_bytes=offsets(total[way], POINTS[how], seed=f"{SEED}:{how}:{way}"),
        new_session=new_session,
        healthy=lambda: market.session(budget_envelope=ENVELOPE),
        ledger=ledger,
        url=url,
        paid=lambda: market.paid,
        sends_again=market.wallet.sends_again,
    )
    # Else the strikes miss the purchase: some come before the order, some under it, some after it.
    assert outcomes["FundingError"]
    assert outcomes["PaymentPendingError"] + outcomes["page"]
    assert max(payment.sends for payment in market.wallet.lnd.payments) <= 2
    market.books.check()
