"""What a wallet is asked before an order, how often, and in which thread: what protects the money, and nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    FundingError,
    LedgerError,
    LndClient,
    Policy,
    PolicyRule,
    Routeweiler,
    RuleMatch,
)
from routeweiler_sync.funding import source as source_module
from routeweiler_sync.funding.lightning import LightningFundingSource, LnbitsClient
from routeweiler_sync.funding.lnd import node_client
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.testing import FakeLnbits, FakeLnd, FakeNwc, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import bare_environ
from tests.support.faulty_sockets import Proxy, listener

PATIENCE_S = 60.0
DENY = Policy(rules=[PolicyRule("no", when=RuleMatch(url_matches="*"), deny=True)])


@pytest.fixture(params=["gRPC", "REST"])
def make_client(request: pytest.FixtureRequest, lnd: FakeLnd) -> Callable[[], Any]:
    return lnd.client if request.param == "gRPC" else lnd.rest_client


def asked(lnd: FakeLnd) -> tuple[int, int]:
    """How often the node was asked for its state, and for its key."""
    return lnd.calls["GetState"], lnd.calls["GetInfo"]


def order(client: LndClient, lnd: FakeLnd) -> WalletReply:
    invoice = lnd.invoice(10_000)
    return client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=1_000, timeout_s=PATIENCE_S).reply


def test_a_purchase_asks_the_node_once_whether_it_is_ready(make_session, make_client, lnd: FakeLnd, books: Books) -> None:
    """Each further question is a round trip to the node, between the reservation and the order."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        session = make_session(funding=[lnd.funding(client=make_client())])
        for page in range(3):
            assert session.get(wall.url_for(f"/{page}")).status_code == 200
            assert asked(lnd) == (page + 1, 1)
    books.check()


def test_after_confirm_the_node_is_asked_anew(make_session, make_client, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """A person takes minutes to answer: the order would go into a connection that died meanwhile, and its outcome be unknown."""
    seen: list[tuple[int, int]] = []
    session = make_session(funding=[lnd.funding(client=make_client())], confirm=lambda _: seen.append(asked(lnd)) or True)
    assert session.get(paywall.url).status_code == 200
    assert (seen, asked(lnd)) == ([(1, 1)], (2, 1))
    books.check()


def test_a_connection_that_dies_during_confirm_is_found_before_the_order(make_session, lnd: FakeLnd, paywall: Paywall) -> None:
    """Sent all the same, the order would be in doubt, and the user couldn't be told that nothing was spent."""
    proxy = Proxy(lnd.port)
    client = lnd.client(grpc_port=proxy.port)
    session = make_session(funding=[lnd.funding(client=client)], confirm=lambda _: proxy.freeze() or True, payment_timeout=1)
    with pytest.raises(FundingError, match="Nothing was spent"):
        session.get(paywall.url)
    proxy.close()
    assert not lnd.orders


def test_an_order_that_was_expected_goes_without_a_question_and_the_next_one_does_not(make_client, lnd: FakeLnd) -> None:
    """An answer to an earlier purchase says nothing about the connection that the next order goes over."""
    client = make_client()
    client.check_ready(PATIENCE_S)
    client.expect_order()
    assert (order(client, lnd), lnd.calls["GetState"]) == (WalletReply.SUCCEEDED, 1)
    assert (order(client, lnd), lnd.calls["GetState"]) == (WalletReply.SUCCEEDED, 2)


def test_an_expected_order_that_comes_late_asks(make_client, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a slow disk or exchange the node's answer is old."""
    monkeypatch.setattr(node_client, "READY_S", 0.0)
    client = make_client()
    client.check_ready(PATIENCE_S)
    client.expect_order()
    assert (order(client, lnd), lnd.calls["GetState"]) == (WalletReply.SUCCEEDED, 2)


def test_an_expected_order_over_another_connection_asks(lnd: FakeLnd) -> None:
    """The answer came over the old connection. Whether the new one reaches a node that is ready isn't known."""
    client = lnd.client()
    client.check_ready(PATIENCE_S)
    client.expect_order()
    client.close()
    assert (order(client, lnd), lnd.calls["GetState"]) == (WalletReply.SUCCEEDED, 2)
    client.expect_order()
    client._connection._pid = -1  # as in a forked child, whose connection is the parent's
    assert (order(client, lnd), lnd.calls["GetState"]) == (WalletReply.SUCCEEDED, 3)


@pytest.mark.parametrize("method", ["prepare", "expect_order"])
def test_a_programs_time_limit_passes_wherever_a_wallet_may_fail(
    make_session, lnd: FakeLnd, paywall: Paywall, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Taken for a fault of the wallet, the limit would be lost, and the page bought after it."""

    class TimeLimitError(Exception):
        pass

    def strike(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGINT, strike)
    try:
        monkeypatch.setattr(LndClient, method, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(TimeLimitError):
            make_session(funding=[lnd.funding(client=lnd.client())]).get(paywall.url)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not lnd.orders


# Asked ahead, while a new ledger is made


@pytest.fixture
def waits_for_node(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The first look into the ledger waits until the node has told its key. In the list: whether it has."""
    waited: list[bool] = []
    found = Ledger.found

    def slow(self: Ledger, **asked_for: Any) -> Any:
        ends = time.monotonic() + PATIENCE_S
        while not waited and not lnd.calls["GetInfo"] and time.monotonic() < ends:
            time.sleep(0.005)
        waited.append(lnd.calls["GetInfo"] > 0)
        return found(self, **asked_for)

    monkeypatch.setattr(Ledger, "found", slow)
    return waited


def test_the_first_purchase_asks_its_wallet_while_it_makes_the_ledger(
    make_session, make_client, lnd: FakeLnd, paywall: Paywall, books: Books, waits_for_node: list[bool]
) -> None:
    """One after the other, the two take twice as long, while the page waits."""
    assert make_session(funding=[lnd.funding(client=make_client())]).get(paywall.url).status_code == 200
    assert waits_for_node[0]
    assert asked(lnd) == (1, 1)
    books.check()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"policy": DENY}, id="policy"),
        pytest.param({"budget_envelope": BudgetEnvelope("o", allowed_origins_glob=())}, id="origins"),
        pytest.param({"budget_envelope": BudgetEnvelope("r", allowed_rails=())}, id="rails"),
        pytest.param({"budget_envelope": "not there"}, id="no envelope"),
    ],
)
def test_what_is_refused_by_the_settings_asks_no_wallet(make_session, lnd: FakeLnd, paywall: Paywall, settings) -> None:
    """A server that may not be paid could have the node called by each of its answers."""
    with pytest.raises(Exception, match="Nothing was spent"):
        make_session(**settings).get(paywall.url)
    assert not lnd.calls


def test_what_is_free_or_only_quoted_asks_no_wallet(make_session, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Whoever only reads prices, or has the token already, would wake the node."""
    assert make_session().quote("GET", paywall.url).amount_msat == 10_000
    assert not lnd.calls
    assert make_session().get(paywall.url).status_code == 200
    before = dict(lnd.calls)
    fresh = make_session(funding=[lnd.funding(client=lnd.client())])
    fresh.auth = lambda request: request
    assert fresh.get(paywall.url).status_code == 200
    assert lnd.calls == before
    books.check()


def test_what_the_wallet_refuses_ahead_refuses_the_purchase(make_session, make_client, lnd: FakeLnd, paywall: Paywall) -> None:
    """Forgotten in its thread, the refusal would be a reservation, an order, or a second wait of the same length."""
    lnd.lock()
    with pytest.raises(FundingError, match=r"locked.*Nothing was spent"):
        make_session(funding=[lnd.funding(client=make_client())]).get(paywall.url)
    lnd.unlock()
    other = lnd.funding(client=make_client(), node_pubkey="02" * 33)
    with pytest.raises(FundingError, match=r"The node's key is .* but node_pubkey is"):
        make_session(funding=[other]).get(paywall.url)
    assert not lnd.orders


class OwnClient(LndClient):
    """A program's own, which notes by which thread it is asked."""

    threads: list[int]

    def check_ready(self, timeout_s: float) -> None:
        self.threads.append(threading.get_ident())
        super().check_ready(timeout_s)


def test_a_programs_own_client_is_asked_in_the_callers_thread_alone(make_session, lnd: FakeLnd, paywall: Paywall) -> None:
    """It may hold what belongs to one thread: an event loop, an SQLite connection."""
    client = lnd.client()
    client.__class__ = OwnClient
    client.threads = []  # type: ignore[attr-defined]
    assert make_session(funding=[lnd.funding(client=client)]).get(paywall.url).status_code == 200
    assert set(client.threads) == {threading.get_ident()}  # type: ignore[attr-defined]


def test_an_answer_that_was_asked_ahead_counts_once_and_not_for_long(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later purchase would rely on what the node said before it was locked."""
    source = lnd.funding()
    source.ask_ahead(PATIENCE_S)
    assert (source.ready(PATIENCE_S), asked(lnd)) == (lnd.node_pubkey, (1, 1))
    assert (source.ready(PATIENCE_S), asked(lnd)) == (lnd.node_pubkey, (2, 1))
    assert not source.can_ask_ahead
    monkeypatch.setattr(source_module, "AHEAD_S", 0.0)
    source.ask_ahead(PATIENCE_S)
    assert (source.ready(PATIENCE_S), asked(lnd)) == (lnd.node_pubkey, (4, 1))
    lnd.lock()
    source.ask_ahead(PATIENCE_S)
    lnd.wait_for(lambda lnd: source._ahead is not None and source._ahead._answered_s is not None)
    lnd.unlock()
    assert source.ready(PATIENCE_S) == lnd.node_pubkey


def test_a_forked_child_asks_for_itself(lnd: FakeLnd) -> None:
    """The thread that asks ahead isn't there in the child, which would wait for it until its time is up."""
    source = lnd.funding()
    source.ask_ahead(PATIENCE_S)
    assert source._ahead is not None
    source._ahead._call._pid = -1  # as a child sees it
    assert source.ready(PATIENCE_S) == lnd.node_pubkey


#: Is interrupted while it waits for what was asked ahead, and buys afterwards.
INTERRUPTED = """
import signal, sys
from routeweiler_sync import Funding, LndClient, Routeweiler

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
with Routeweiler(funding=funding, ledger=sys.argv[2]) as session:
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        session.get(sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    sys.stdin.readline()
    print(session.get(sys.argv[1]).status_code, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here that send a signal")
def test_an_interrupt_while_the_wallet_is_asked_ahead_leaves_a_session_that_pays(
    lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """Ctrl-C in a notebook would make the next purchase hang, or the program crash on its way out."""
    lnd.set_state("WAITING_TO_START")
    command = [sys.executable, "-c", INTERRUPTED, paywall.url, str(books.ledger_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buyer = subprocess.Popen(command, env=bare_environ(**lnd.environ), text=True, **pipes)  # type: ignore[call-overload]
    try:
        assert buyer.stdout.readline() == "interrupted\n"
        lnd.set_state("SERVER_ACTIVE")
        out, errors = buyer.communicate("\n", timeout=PATIENCE_S)
    finally:
        buyer.kill()
    assert (out, errors, buyer.returncode) == ("200\n", "", 0)
    books.check()


def test_a_wallet_that_stays_silent_ahead_is_refused_in_time(make_session, lnd: FakeLnd, paywall: Paywall) -> None:
    """payment_timeout holds for what is asked ahead too, and isn't waited for twice."""
    with listener("frozen") as port:
        session: Routeweiler = make_session(funding=[lnd.funding(client=lnd.client(grpc_port=port))], payment_timeout=1)
        began = time.monotonic()
        with pytest.raises(FundingError, match="Nothing was spent"):
            session.get(paywall.url)
    assert time.monotonic() - began < 10


def test_the_question_of_a_patient_session_is_not_waited_for_by_another(
    make_session, lnd: FakeLnd, paywall: Paywall, tmp_path: Path
) -> None:
    """A session with a short payment_timeout would hang for the time of another one, which asked their wallet and then failed."""
    ledger = Ledger.open(tmp_path / "made.db")
    ledger.check_writable()  # this one isn't new: nothing is asked ahead
    (tmp_path / "file").touch()
    with listener("frozen") as port:
        source = lnd.funding(client=lnd.client(grpc_port=port))
        with pytest.raises(LedgerError, match="Nothing was spent"):
            make_session(funding=[source], ledger=tmp_path / "file" / "no.db", payment_timeout=PATIENCE_S).get(paywall.url)
        assert source._ahead is not None
        hurried = make_session(funding=[source], ledger=ledger, payment_timeout=1)
        began = time.monotonic()
        with pytest.raises(FundingError, match="Nothing was spent"):
            hurried.get(paywall.url)
    assert time.monotonic() - began < 10


def test_calls_that_fail_at_once_leave_one_question_behind(
    make_session, lnd: FakeLnd, paywall: Paywall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop over a ledger that can't be made would leave a thread for each try, as long as the wallet is silent."""
    begun: list[object] = []
    begin = source_module.BegunCall.__init__

    def counted(self: Any, *args: Any, **settings: Any) -> None:
        begun.append(self)
        begin(self, *args, **settings)

    monkeypatch.setattr(source_module.BegunCall, "__init__", counted)
    (tmp_path / "file").touch()
    with listener("frozen") as port:
        session = make_session(funding=[lnd.funding(client=lnd.client(grpc_port=port))], ledger=tmp_path / "file" / "no.db")
        for _ in range(5):
            with pytest.raises(LedgerError, match="Nothing was spent"):
                session.get(paywall.url)
    assert len(begun) == 1


def test_the_failed_question_of_a_hurried_session_refuses_no_other(lnd: FakeLnd) -> None:
    """A node that takes a while would fail a purchase that has the time, because another session's question got too little."""
    lnd.set_state("WAITING_TO_START")
    source = lnd.funding()
    source.ask_ahead(0.2)
    assert source._ahead is not None
    while source._ahead._answered_s is None:
        time.sleep(0.005)
    lnd.set_state("SERVER_ACTIVE")
    assert source.ready(PATIENCE_S) == lnd.node_pubkey


#: Buys with a library that can't be loaded.
CRIPPLED = """
import sys
sys.modules["grpc"] = None
from routeweiler_sync import Funding, FundingError, LndClient, Routeweiler

funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
try:
    Routeweiler(funding=funding, ledger=sys.argv[2]).get(sys.argv[1])
except FundingError as error:
    print(error)
"""


def test_a_client_that_cannot_import_what_it_needs_is_refused_as_a_wallet(lnd: FakeLnd, paywall: Paywall, tmp_path: Path) -> None:
    """A program that catches errors of requests would end by an ImportError, though only while its ledger is new."""
    command = [sys.executable, "-c", CRIPPLED, paywall.url, str(tmp_path / "new.db")]
    done = subprocess.run(command, env=bare_environ(**lnd.environ), capture_output=True, text=True, timeout=PATIENCE_S)
    assert "grpc" in done.stdout
    assert "Nothing was spent" in done.stdout
    assert not done.stderr


def test_wallets_that_need_no_grpc_do_not_import_it() -> None:
    """Each process that pays by LNbits, NWC or REST would import grpc first, and wait for it with its first page."""
    script = """
import sys
from routeweiler_sync._core.preload import prepare_session, prepare_to_pay
prepare_session()
prepare_to_pay()
assert "routeweiler_sync.paywall.handler" in sys.modules
assert not {"grpc", "google.protobuf"} & set(sys.modules)
prepare_to_pay("funding.lnd.rest_channel")
assert "google.protobuf" in sys.modules
assert "grpc" not in sys.modules
prepare_to_pay("funding.lnd.channel")
assert "grpc" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_S)


def test_the_first_question_to_an_http_wallet_is_asked_once(lnd: FakeLnd) -> None:
    """Whether it is ready and who it is are one question here: a second round trip would tell nothing new."""
    with FakeLnbits(lnd) as lnbits:
        source = LightningFundingSource(client=lnbits.client(), network=None)
        key = source.ready(PATIENCE_S)
        assert lnbits.calls.total() == 1
        assert source.ready(PATIENCE_S) == key
        assert lnbits.calls.total() == 2
    with FakeNwc(lnd) as nwc:
        LightningFundingSource(client=nwc.client(), network=None).ready(PATIENCE_S)
        assert [request.method for request in nwc.requests] == ["get_info"]


def test_a_subclass_of_an_http_wallet_is_asked_by_its_own_check(lnd: FakeLnd) -> None:
    """A program's own check before paying, such as its balance, would be left out."""

    class Checked(LnbitsClient):
        def check_ready(self, timeout_s: float) -> None:
            raise FundingError("Not today.", advice="")

    with FakeLnbits(lnd) as lnbits:
        client = lnbits.client()
        client.__class__ = Checked
        with pytest.raises(FundingError, match="Not today"):
            LightningFundingSource(client=client, network=None).ready(PATIENCE_S)


@pytest.mark.parametrize("kind", ["LndClient", "LndRestClient"])
def test_the_first_question_imports_nothing_of_its_own(lnd: FakeLnd, kind: str) -> None:
    """It is asked in a worker thread. A fork in the midst of an import there leaves the child with a half-made module for ever."""
    script = f"""
import sys
from routeweiler_sync import Funding, {kind}
from routeweiler_sync._core.preload import prepare_session, prepare_to_pay
prepare_session()
prepare_to_pay()
client = {kind}.from_env()
client.prepare()
before = set(sys.modules)
Funding.lightning(client=client, network=None).ready(30)
print(sorted(set(sys.modules) - before))
"""
    environ = bare_environ(**(lnd.environ if kind == "LndClient" else lnd.rest_environ))
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
