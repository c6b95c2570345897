"""The connection to the node cut or frozen after every so many bytes of a purchase: never paid twice, never lost, never a lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.connection_sweep import SEED, offsets, sweep, whole_purchase
from tests.support.tcp_relay import Way, Wire

pytestmark = pytest.mark.slow

#: A frozen connection is told by time alone, so each point costs this much.
FROZEN_TIMEOUT_S = 0.6
TIMEOUT_S = 30.0
POINTS = {"rst": 36, "fin": 36, "wire freeze": 9}
ENVELOPE = BudgetEnvelope("sweep", cap_minor_units=10**6)


@pytest.fixture
def wire(lnd: FakeLnd) -> Iterator[Wire]:
    wire = Wire(lnd.port)
    yield wire
    wire.close()


@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("way", ["to lnd", "from lnd"])
def test_wherever_the_connection_breaks_a_purchase_is_made_once_and_its_error_is_true(
    lnd: FakeLnd, paywall: Paywall, books: Books, make_session: Callable[..., Routeweiler], wire: Wire, how: str, way: Way
) -> None:
    """A VPN that drops, a laptop that sleeps, at any byte: else the page is paid twice, or paid and lost, or the error lies."""
    lnd.fee_msat = 1_000
    timeout_s = FROZEN_TIMEOUT_S if how == "wire freeze" else TIMEOUT_S

    def new_session(payment_timeout: float = timeout_s) -> Routeweiler:
        funding = [lnd.funding(client=lnd.client(grpc_port=wire.port))]
        return make_session(funding=funding, budget_envelope=ENVELOPE, payment_timeout=payment_timeout)

    def paid() -> set[str]:
        return {payment.payment_hash for payment in lnd.payments if payment.status == "SUCCEEDED"}

    ledger = books.ledger
    total = whole_purchase(wire, new_session(TIMEOUT_S), paywall.url)
    ledger.forget(*paid())
    outcomes = sweep(
        wire,
        how=how,
        way=way,
        at_bytes=offsets(total[way], POINTS[how], seed=f"{SEED}:{how}:{way}"),
        new_session=new_session,
        healthy=lambda: make_session(budget_envelope=ENVELOPE),
        ledger=ledger,
        url=paywall.url,
        paid=paid,
    )
    # Else the strikes miss the purchase: some come before the order, some under it, some after it.
    assert outcomes["FundingError"]
    assert outcomes["PaymentPendingError"] + outcomes["page"]
    assert max(payment.sends for payment in lnd.payments) <= 2
    books.check()
