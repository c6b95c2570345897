"""A fleet with two nodes on one PostgreSQL ledger: whose row is whose, deaths, a database that goes away; all at random, too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Ledger, PaymentPendingError, PaymentState, Routeweiler, TraceSink, payment_of
from routeweiler_sync.ledger.postgres import store as postgres
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.crashing_buyer import DIED
from tests.torture.fleet import CLOSING, CLOSING_CAP_SAT, Network, run, told
from tests.torture.fleet_judge import MICRO

from .server import Server

WAIT_S = 60.0
PROCESSES, LOAD_S, SEED = 16, 12.0, 5


@pytest.fixture
def network() -> Iterator[Network]:
    with Network.make() as network:
        yield network


@pytest.fixture
def wall(network: Network) -> Iterator[Paywall]:
    with Paywall(network, price_msat=10_000) as wall:
        yield wall


@pytest.fixture
def over(url: str, tmp_path: Path) -> Iterator[Callable[..., Routeweiler]]:
    """A session on the shared ledger, over this node."""
    made: list[Routeweiler] = []

    def make(node: FakeLnd, **arguments: Any) -> Routeweiler:
        trace = TraceSink.jsonl(tmp_path / "trace.jsonl")
        made.append(Routeweiler(**{"funding": [node.funding()], "ledger": url, "trace_sink": trace, **arguments}))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def worker(wall: Paywall, url: str, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """A process that buys the page over this node, and dies at a point."""

    def start(node: FakeLnd, point: str = "none") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.crashing_buyer", wall.url, url, os.fspath(tmp_path / "trace.jsonl"), point]
        return subprocess.Popen(command, env={**os.environ, **node.environ}, stdout=subprocess.DEVNULL)

    return start


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before its order left", "in flight"])
def test_a_dead_workers_purchase_is_carried_on_over_its_own_node_alone(
    network: Network,
    wall: Paywall,
    url: str,
    over: Callable[..., Routeweiler],
    worker: Callable[..., subprocess.Popen[bytes]],
    when: str,
) -> None:
    """Else a worker's death would stop the whole fleet at its page; or another node, which knows nothing of it, would pay again."""
    own, other = network.nodes
    if when == "in flight":
        own.hang_next()
        process = worker(own)
        own.wait_for(lambda node: len(node.payments) == 1, WAIT_S)
        process.kill()
        process.wait(WAIT_S)
    else:
        assert worker(own, "Source.send:before").wait(WAIT_S) == DIED
    (row,) = Ledger.open(url).unfinished()
    assert (row.state, row.node_pubkey) == (PaymentState.OPEN, own.node_pubkey)

    with pytest.raises(PaymentPendingError) as pending:
        over(other, payment_timeout=2.0).get(wall.url)
    assert pending.value.spent is None
    assert pending.value.payment_hash == row.payment_hash
    over(other).recover()

    waiter = worker(other)
    own.release()
    page = over(own).get(wall.url)
    assert (page.status_code, payment_of(page).payment_hash) == (200, row.payment_hash)  # type: ignore[union-attr]
    assert waiter.wait(WAIT_S) == 0
    assert over(other).get(wall.url).status_code == 200
    assert [payment.status for payment in own.payments] == ["SUCCEEDED"]
    assert {order.bolt11 for order in own.orders} == {row.bolt11}
    assert (other.orders, other.payments, other.calls["SendPaymentV2"], other.calls["TrackPaymentV2"]) == ([], [], 0, 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is down isn't waited for as long as in earnest."""
    monkeypatch.setattr(postgres, "PATIENCE_S", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_database_that_dies_between_payment_and_settlement_leaves_it_pending_and_then_found(
    network: Network, wall: Paywall, url: str, over: Callable[..., Routeweiler], server: Server
) -> None:
    """Else a paid token would be lost with the database's outage, or bought again after it."""
    own = network.nodes[0]
    own.hang_next()
    raised: list[BaseException] = []

    def buy() -> None:
        try:
            over(own).get(wall.url)
        except BaseException as error:
            raised.append(error)

    call = threading.Thread(target=buy, daemon=True)
    call.start()
    own.wait_for(lambda node: len(node.payments) == 1, WAIT_S)
    server.stop("immediate")
    try:
        own.release()
        call.join(WAIT_S)
    finally:
        server.start()
    (error,) = raised
    assert isinstance(error, PaymentPendingError)
    assert error.spent is True, "the node has said so; only the booking is missing"
    ledger = Ledger.open(url)
    assert [row.payment_hash for row in ledger.unfinished()] == [error.payment_hash]
    page = over(own).get(wall.url)
    assert (page.status_code, page.payment.payment_hash) == (200, error.payment_hash)
    assert len(own.payments) == 1
    (envelope,) = ledger.envelopes()
    assert (envelope.reserved_minor_units, envelope.settled_minor_units) == (0, 10)


@pytest.mark.usefixtures("impatient")
def test_a_page_that_came_isnt_lost_with_the_database(
    network: Network, wall: Paywall, over: Callable[..., Routeweiler], server: Server, url: str
) -> None:
    """Else a token would be used up, or an order placed, and its caller be told that the ledger can't be read."""
    over(network.nodes[0]).get(wall.url)
    server.admin("UPDATE payments SET told = 0", url.rpartition("/")[2].partition("?")[0])  # as where its buyer died
    session = over(network.nodes[1])

    def goes_down(request: Any) -> tuple[int, dict[str, str], bytes]:
        server.stop()
        return 200, {}, b"the page"

    wall.respond = goes_down
    try:
        assert session.get(wall.url).content == b"the page"
    finally:
        server.start()
    wall.respond = None
    assert session.get(wall.url).status_code == 200  # and tells of the payment now
    assert list(session._payer.ledger.unreported()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_whose_order_has_left_is_never_told_that_nothing_was_spent(
    network: Network,
    wall: Paywall,
    over: Callable[..., Routeweiler],
    worker: Callable[..., subprocess.Popen[bytes]],
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a caller would buy elsewhere what their order has just paid for: another has ended the row, and nobody can read how."""
    own = network.nodes[0]
    own.drop_next("before_init")
    session = over(own)
    count_send = session._payer.ledger.count_send

    def overtaken(payment_hash: str, draw: Any = None) -> Any:
        assert worker(own).wait(WAIT_S) == 0
        ended = count_send(payment_hash)
        server.stop()
        return ended

    monkeypatch.setattr(session._payer.ledger, "count_send", overtaken)
    try:
        with pytest.raises(PaymentPendingError) as pending:
            session.get(wall.url)
    finally:
        server.start()
    assert pending.value.spent is None
    assert [(each.payment_hash, each.status) for each in own.payments] == [(pending.value.payment_hash, "SUCCEEDED")]


@pytest.mark.slow
@pytest.mark.timeout(240, func_only=True)
def test_a_fleet_at_its_limits_overspends_nothing_pays_each_need_once_and_stays_with_its_nodes(
    server: Server, tmp_path: Path
) -> None:
    """Else, of a hundred workers on many machines, deaths and outages would find the gap that single tests have missed."""
    fleet = run(server, tmp_path, processes=PROCESSES, seconds=LOAD_S, seed=SEED)
    print(told(fleet))
    assert fleet.findings == []
    sight = fleet.reader.envelopes[CLOSING]
    assert (sight.settled_micro, sight.reserved_micro) == (CLOSING_CAP_SAT * MICRO, 0)
    figures = fleet.figures
    assert figures["payments"] > CLOSING_CAP_SAT // 10
    assert figures["budget_exceeded/False"] > PROCESSES
    assert figures["server restarts"] == 2
    assert min(figures["worker killed"], figures["stream dropped"], figures["reader's looks"]) > 0
