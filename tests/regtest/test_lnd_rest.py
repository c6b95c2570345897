"""Purchases over the REST interface of the real lnd, cut off, killed and shared by many threads: lnd's own list is the judge."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from routeweiler_sync import BudgetEnvelope, Funding, FundingError, Ledger, LndClient, PaymentPendingError, Quote, Routeweiler
from routeweiler_sync.doctor.wallets import Examination
from routeweiler_sync.funding.lnd.rest import LndRestClient
from tests.support.connection_sweep import SEED, offsets, sweep, whole_purchase
from tests.support.tcp_relay import Way, Wire

from .processes import wait_for
from .purchases import MakeSession, check, paid, sessions
from .world import World

ENVELOPE = BudgetEnvelope("rest", cap_minor_units=10**6)
TIMEOUT_S, SHORT_TIMEOUT_S, FROZEN_TIMEOUT_S = 60.0, 3.0, 1.5
THREADS = 64
POINTS = {"rst": 6, "fin": 6, "wire freeze": 3}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture
def make_session(world: World, tmp_path: Path) -> Iterator[MakeSession]:
    """A session with a client of its own, over ``port``; keyword arguments are Routeweiler's."""
    macaroon = world.payer.bake()

    def make_client(port: int) -> LndRestClient:
        return LndRestClient(f"https://127.0.0.1:{port}", macaroon_path=macaroon, tls_cert_path=world.payer.tls_cert_path)

    with sessions(
        make_client, world.payer.rest_port, ledger=tmp_path / "ledger.db", envelope=ENVELOPE, timeout_s=TIMEOUT_S
    ) as make:
        yield make


def test_a_page_is_bought_once_and_its_token_used_again(world: World, ledger: Ledger, make_session: MakeSession) -> None:
    """The least macaroon is enough, as over gRPC."""
    url, before, session = world.url("service-a", "rest"), paid(world), make_session()
    assert [session.get(url).status_code for _ in range(3)] == [200] * 3
    assert len(paid(world) - before) == 1
    check(world, ledger, ENVELOPE)


def test_many_threads_that_want_one_page_pay_for_it_once(world: World, ledger: Ledger, make_session: MakeSession) -> None:
    """One session, and one client, in all threads."""
    url, before, session = world.url("service-a", "crowd"), paid(world), make_session()
    barrier = threading.Barrier(THREADS)

    def get(_: int) -> int:
        barrier.wait(TIMEOUT_S)
        return session.get(url).status_code

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(get, range(THREADS))) == [200] * THREADS
    assert len(paid(world) - before) == 1
    check(world, ledger, ENVELOPE)


def test_a_row_begun_over_one_interface_is_ended_over_the_other(
    world: World, ledger: Ledger, make_session: MakeSession, tmp_path: Path
) -> None:
    """It is the same node: a user who changes the interface mustn't pay again for what is under way."""
    url, before = world.url("service-a", "both"), paid(world)

    def freeze(quote: Quote) -> bool:
        world.payee.freeze()
        return True

    with pytest.raises(PaymentPendingError) as caught:
        make_session(confirm=freeze, payment_timeout=SHORT_TIMEOUT_S).get(url)
    world.payee.thaw()
    client = LndClient("127.0.0.1", world.payer.grpc_port, world.payer.bake(), tls_cert_path=world.payer.tls_cert_path)
    funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest")
    with Routeweiler(funding=[funding], ledger=tmp_path / "ledger.db", budget_envelope=ENVELOPE) as session:
        assert session.get(url).status_code == 200
    client.close()
    assert paid(world) - before == {caught.value.payment_hash}
    check(world, ledger, ENVELOPE)


@pytest.mark.slow
def test_an_lnd_that_is_killed_in_mid_payment_costs_one_payment(world: World, ledger: Ledger, make_session: MakeSession) -> None:
    """The stream breaks, the node is away, then starts: what it did with the order is known to it alone."""
    url, before = world.url("service-a", "killed"), paid(world)

    def freeze(quote: Quote) -> bool:
        world.payee.freeze()
        return True

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(make_session(confirm=freeze).get, url)
        htlc_out = lambda: any(  # noqa: E731
            htlc["incoming"] for channel in world.router.lncli("listchannels")["channels"] for htlc in channel["pending_htlcs"]
        )
        wait_for("the HTLC is with the router", htlc_out, watched=[world.payer.daemon])
        world.payer.kill()
        world.payee.thaw()
        world.payer.start()
        if (error := call.exception(TIMEOUT_S + SHORT_TIMEOUT_S)) is None:
            assert call.result().status_code == 200
        else:
            assert isinstance(error, PaymentPendingError)
    world.mend()
    assert make_session().get(url).status_code == 200
    assert len(paid(world) - before) == 1
    check(world, ledger, ENVELOPE)


def test_an_lnd_that_is_gone_is_told_before_anything_is_spent(world: World, ledger: Ledger, make_session: MakeSession) -> None:
    url, session = world.url("service-a", "rest-gone"), make_session()
    world.payer.kill()
    with pytest.raises(FundingError, match="nothing listens there") as caught:
        session.get(url)
    assert caught.value.spent is False
    world.mend()
    assert session.get(url).status_code == 200
    check(world, ledger, ENVELOPE)


@pytest.mark.slow
@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("way", ["to lnd", "from lnd"])
def test_wherever_the_connection_breaks_a_purchase_is_made_once_and_told_truly(
    world: World, ledger: Ledger, make_session: MakeSession, how: str, way: Way
) -> None:
    """A VPN that drops at any byte, the handshakes of each order included."""
    url = world.url("service-a", "rest-swept")
    with Wire(world.payer.rest_port) as wire:
        total = whole_purchase(wire, make_session(wire.port), url)
        for row in ledger.payments():
            ledger.forget(row.payment_hash)
        timeout_s = FROZEN_TIMEOUT_S if how == "wire freeze" else TIMEOUT_S
        outcomes = sweep(
            wire,
            how=how,
            way=way,
            at_bytes=offsets(total[way], POINTS[how], seed=f"{SEED}:rest:{how}:{way}"),
            new_session=lambda: make_session(wire.port, payment_timeout=timeout_s),
            healthy=make_session,
            ledger=ledger,
            url=url,
            paid=lambda: paid(world),
        )
    assert outcomes, outcomes
    check(world, ledger, ENVELOPE)


def test_doctor_finds_nothing_wrong_with_the_real_lnd(world: World) -> None:
    """What doctor asks over REST, the real gateway must answer in the same form as over gRPC."""
    client = LndRestClient(
        f"https://{world.payer.rest_address}", macaroon_path=world.payer.bake(), tls_cert_path=world.payer.tls_cert_path
    )
    source = Funding.lightning_lnd(client=client, network="bitcoin-regtest")
    found = {each.check: each.verdict.value for each in Examination([source], from_environment=False, look_s=10).findings()}
    assert "wrong" not in found.values(), found
    assert found["rights"] == found["state"] == found["node"] == "ok"
    client.close()
