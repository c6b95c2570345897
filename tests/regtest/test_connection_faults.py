"""The real lnd, cut off, frozen and overtaken: the page is paid once, and what the error says of the money is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    InvoicePaymentError,
    Ledger,
    LndClient,
    PaymentPendingError,
    Quote,
)
from tests.support.connection_sweep import SEED, offsets, sweep, whole_purchase
from tests.support.tcp_relay import Way, Wire

from .processes import wait_for
from .purchases import MakeSession, check, paid, sessions
from .world import World

pytestmark = pytest.mark.slow

ENVELOPE = BudgetEnvelope("faults", cap_minor_units=10**6)
TIMEOUT_S, SHORT_TIMEOUT_S = 30.0, 3.0
#: A frozen connection is told by time alone, so each point costs this much; paying takes some 0.2 s.
FROZEN_TIMEOUT_S = 1.5
POINTS = {"rst": 8, "fin": 8, "wire freeze": 4}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    wire = Wire(world.payer.grpc_port)
    yield wire
    wire.close()


@pytest.fixture
def make_session(world: World, tmp_path: Path) -> Iterator[MakeSession]:
    """A session with a client of its own, over ``port``; keyword arguments are Routeweiler's."""
    macaroon = world.payer.bake()

    def make_client(port: int) -> LndClient:
        return LndClient("127.0.0.1", port, macaroon, tls_cert_path=world.payer.tls_cert_path)

    with sessions(
        make_client, world.payer.grpc_port, ledger=tmp_path / "ledger.db", envelope=ENVELOPE, timeout_s=TIMEOUT_S
    ) as make:
        yield make


@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("way", ["to lnd", "from lnd"])
def test_wherever_the_connection_to_lnd_breaks_a_purchase_is_made_once_and_told_truly(
    world: World, ledger: Ledger, wire: Wire, make_session: MakeSession, how: str, way: Way
) -> None:
    """A VPN that drops, a laptop that sleeps, at any byte: else the page is paid twice, or paid and lost, or the error lies."""
    url = world.url("service-a", "swept")
    total = whole_purchase(wire, make_session(wire.port), url)
    for row in ledger.payments():
        ledger.forget(row.payment_hash)
    timeout_s = FROZEN_TIMEOUT_S if how == "wire freeze" else TIMEOUT_S
    outcomes = sweep(
        wire,
        how=how,
        way=way,
        at_bytes=offsets(total[way], POINTS[how], seed=f"{SEED}:{how}:{way}"),
        new_session=lambda: make_session(wire.port, payment_timeout=timeout_s),
        healthy=make_session,
        ledger=ledger,
        url=url,
        paid=lambda: paid(world),
    )
    assert outcomes["FundingError"], outcomes  # else no strike came before the order
    check(world, ledger, ENVELOPE)


@pytest.mark.parametrize("name", ["router", "payee"])
def test_a_payment_that_stays_in_flight_is_pending_in_time_and_found_by_a_later_run(
    world: World, ledger: Ledger, make_session: MakeSession, name: str
) -> None:
    """A node on the way hangs: told as failed, the next call would pay a second time; without a bound, the program would hang."""
    url, before = world.url("service-a", "held"), paid(world)

    def freeze(quote: Quote) -> bool:
        getattr(world, name).freeze()
        return True

    with pytest.raises(PaymentPendingError) as caught:
        make_session(confirm=freeze, payment_timeout=SHORT_TIMEOUT_S).get(url)
    assert caught.value.spent is None
    assert ledger.envelope("faults").reserved_minor_units > 10
    getattr(world, name).thaw()
    response = make_session().get(url)
    assert response.status_code == 200
    assert paid(world) - before == {caught.value.payment_hash}
    check(world, ledger, ENVELOPE)


def test_a_payee_that_is_gone_costs_nothing_and_the_next_call_buys(world: World, ledger: Ledger, make_session: MakeSession) -> None:
    """FAILED after an HTLC that came back is final: the reservation returns, and a new invoice may be paid."""
    url, before = world.url("service-a", "gone"), paid(world)

    def stop(quote: Quote) -> bool:
        world.payee.stop()
        channels = lambda: world.router.lncli("listchannels")["channels"]  # noqa: E731
        wait_for("the router has noticed", lambda: not all(c["active"] for c in channels()), watched=[world.router.daemon])
        return True

    with pytest.raises(InvoicePaymentError) as caught:
        make_session(confirm=stop).get(url)
    assert (caught.value.spent, caught.value.failure_reason) == (False, "NO_ROUTE")
    assert ledger.envelope("faults").reserved_minor_units == 0
    world.mend()
    response = make_session().get(url)
    assert response.status_code == 200
    assert caught.value.payment_hash not in paid(world) - before
    check(world, ledger, ENVELOPE)


def test_an_order_that_arrives_after_its_senders_death_is_the_one_payment(
    world: World, ledger: Ledger, wire: Wire, make_session: MakeSession
) -> None:
    """lnd executes a dead client's order, after it has said NOT_FOUND: a new invoice bought meanwhile would be a second payment."""
    url, before = world.url("service-a", "late"), paid(world)
    sender = make_session(wire.port, payment_timeout=SHORT_TIMEOUT_S, confirm=lambda quote: wire.hold() or True)
    with pytest.raises(PaymentPendingError) as caught:
        sender.get(url)
    assert caught.value.spent is None
    assert world.payer.payments_of(caught.value.payment_hash) == []  # lnd knows nothing of it, and asking proves nothing
    assert make_session().recover()[0].unfinished
    wire.release(order_alone=True)
    wait_for("the order is carried out", lambda: paid(world) - before, watched=[world.payer.daemon])
    assert make_session().get(url).status_code == 200
    assert paid(world) - before == {caught.value.payment_hash}
    check(world, ledger, ENVELOPE)
