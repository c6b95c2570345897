"""An interrupt in the midst of a payment: it goes on unchanged, and the user is told what it means for the money."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from routeweiler_sync import Funding, PaymentPendingError, PaymentStatus, Routeweiler
from routeweiler_sync.paywall.negotiation import Negotiation
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.fake_wallets import FakeWallet
from tests.support.wallet_market import WalletMarket


class Alarm(BaseException):
    """Not an Exception, as a green thread's timeout isn't one."""


class Node:
    """A wallet of a program's own, before the fake lnd. ``act`` is called before ``pay_invoice`` or ``track_payment``."""

    def __init__(self, lnd: FakeLnd) -> None:
        self.client = lnd.client()
        self.before_paying: Callable[[], object] = lambda: None
        self.after_paying: Callable[[], object] = lambda: None
        self.before_tracking: Callable[[], object] = lambda: None
        self.before_key: Callable[[], object] = lambda: None

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        self.before_paying()
        preimage = self.client.pay_invoice(bolt11, max_fee_msat=max_fee_msat)
        self.after_paying()
        return preimage

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        self.before_tracking()
        return self.client.track_payment(payment_hash)

    def get_node_pubkey(self) -> str:
        self.before_key()
        return self.client.get_node_pubkey()


@pytest.fixture
def node(lnd: FakeLnd) -> Node:
    return Node(lnd)


def raiser(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def funded(node: Node) -> list[Any]:
    return [Funding.lightning_lnd(client=node, network="bitcoin-regtest")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Alarm])
@pytest.mark.parametrize("moment", ["before_paying", "after_paying"])
def test_an_interrupt_while_paying_says_what_it_means_for_the_money(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    node: Node,
    lnd: FakeLnd,
    books: Books,
    caplog: pytest.LogCaptureFixture,
    moment: str,
    kind: type[BaseException],
) -> None:
    """Who stops a notebook's cell believes that nothing more happens, and pays somewhere else."""
    error = kind()
    setattr(node, moment, raiser(error))
    with (
        make_session(funding=funded(node)) as session,
        caplog.at_level(logging.WARNING),
        pytest.warns(RuntimeWarning) as told,
        pytest.raises(kind) as raised,
    ):
        session.get(paywall.url)
    assert raised.value is error
    (warning,) = [each for each in told if "Interrupted" in str(each.message)]
    payment_hash = books.rows[0].payment_hash
    for text in (str(warning.message), caplog.text):
        assert payment_hash in text
        assert "session.recover()" in text
        assert "call again" in text
    assert warning.filename == __file__, "the line of the program that was interrupted"
    setattr(node, moment, lambda: None)
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_warnings_that_are_errors_dont_hide_the_interrupt(
    make_session: Callable[..., Routeweiler], paywall: Paywall, node: Node
) -> None:
    """``python -W error``: Ctrl-C must still end the program."""
    node.before_paying = raiser(KeyboardInterrupt())
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error")
        make_session(funding=funded(node)).get(paywall.url)


def test_an_interrupt_while_an_old_payment_is_asked_about_is_told_too(
    make_session: Callable[..., Routeweiler], paywall: Paywall, node: Node, lnd: FakeLnd
) -> None:
    """The order of an earlier run is as much in doubt as one's own."""
    lnd.drop_next("before_init", times=None)
    session = make_session(funding=funded(node), payment_timeout=2)
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    lnd.clear_faults()
    node.before_tracking = raiser(KeyboardInterrupt())
    with pytest.warns(RuntimeWarning, match="Interrupted"), pytest.raises(KeyboardInterrupt):
        session.get(paywall.url)


@pytest.mark.parametrize("moment", ["node", "confirm", "page"])
def test_an_interrupt_without_money_in_doubt_says_nothing(
    make_session: Callable[..., Routeweiler], paywall: Paywall, node: Node, lnd: FakeLnd, moment: str
) -> None:
    """A warning at each Ctrl-C would soon be read by nobody."""
    interrupt = raiser(KeyboardInterrupt())
    arguments: dict[str, Any] = {"funding": funded(node)}
    if moment == "node":
        node.before_key = interrupt
    elif moment == "confirm":
        arguments["confirm"] = lambda quote: interrupt()
    session = make_session(**arguments)
    if moment == "page":
        session.hooks["response"].append(lambda response, **kwargs: interrupt())
    with warnings.catch_warnings(record=True) as told, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("always")
        session.get(paywall.url)
    assert not [each for each in told if "Interrupted" in str(each.message)]
    assert len(lnd.payments) == (1 if moment == "page" else 0)


@pytest.mark.parametrize("answer_takes_s", [0.3, 1.2])
def test_calls_with_a_second_each_end_an_old_payment(
    make_session: Callable[..., Routeweiler], paywall: Paywall, node: Node, lnd: FakeLnd, books: Books, answer_takes_s: float
) -> None:
    """Each call would wait for other programs, have no time left to ask the node, and give up: for ever."""
    lnd.drop_next("before_init", times=None)
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1).get(paywall.url)
    lnd.clear_faults()
    node.before_tracking = lambda: time.sleep(answer_takes_s)
    session = make_session(funding=funded(node), payment_timeout=1)
    begun = time.monotonic()
    for _ in range(3):
        try:
            assert session.get(paywall.url).status_code == 200
            break
        except PaymentPendingError:
            continue
    else:
        pytest.fail("the old payment doesn't end")
    assert time.monotonic() - begun < 20
    assert len(lnd.payments) == 1
    books.check()


def test_recover_with_little_time_asks_the_node(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """A hundredth of a second is enough for no node, and the row would stay as it is."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1).get(paywall.url)
    lnd.release()
    lnd.wait_for(lambda seen: seen.payments[0].status == "SUCCEEDED")
    (row,) = make_session(payment_timeout=0.001).recover()
    assert row.state == "settled"
    books.check()


def test_an_interrupt_between_purchase_and_first_use_doesnt_hold_the_token_back(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next call of the same thread, a second after Ctrl-C, is refused the token that is paid for."""
    with Paywall(lnd) as paywall:
        session = make_session()
        with monkeypatch.context() as patch:
            patch.setattr(Negotiation, "note_offer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.get(paywall.url)
        assert session.get(paywall.url).status_code == 200
        assert len(lnd.payments) == 1


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


class TimeLimit(Exception):
    """What an engine's signal handler raises once a task has had its time: an Exception, as Celery's SoftTimeLimitExceeded is."""


@pytest.fixture
def time_is_over() -> Iterator[Callable[[], None]]:
    """Lets the time limit of this "task" come now."""

    def handler(number: int, frame: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGUSR1, handler)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
@pytest.mark.parametrize("moment", ["before_key", "before_paying", "after_paying", "before_tracking"])
def test_a_tasks_time_limit_isnt_taken_for_the_wallets_fault(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    node: Node,
    lnd: FakeLnd,
    books: Books,
    time_is_over: Callable[[], None],
    moment: str,
) -> None:
    """Else the limit would be forgotten: the call would go on until the engine kills its process, or tell of an absent node."""
    setattr(node, moment, time_is_over)
    session = make_session(funding=funded(node))
    with warnings.catch_warnings(record=True) as told, pytest.raises(TimeLimit):
        warnings.simplefilter("always")
        session.get(paywall.url)
    assert any("Interrupted" in str(each.message) for each in told) == (moment != "before_key")
    setattr(node, moment, lambda: None)
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")
def test_a_time_limit_ends_the_wait_for_a_payment_in_flight(
    each_wallet: FakeWallet, market: WalletMarket, time_is_over: Callable[[], None], lnd: FakeLnd
) -> None:
    """Of each wallet: a task would wait on for its payment until its process is killed, and whoever is to clean up with it."""
    lnd.hang_next()
    session = market.session(payment_timeout=60)
    limit = threading.Timer(0.0, lambda: (lnd.wait_for(lambda node: bool(node.payments), 60), time_is_over()))
    limit.start()
    with pytest.warns(RuntimeWarning, match="Interrupted"), pytest.raises(TimeLimit):
        session.get(market.paywall.url)
    limit.join()
    lnd.release()
    assert session.get(market.paywall.url).status_code == 200
    assert len(lnd.payments) == 1


def test_a_wallets_own_error_is_no_time_limit_though_a_handler_is_there(
    make_session: Callable[..., Routeweiler], paywall: Paywall, node: Node, time_is_over: Callable[[], None]
) -> None:
    """Else an error of a wallet would leave the call as it is, and its caller not learn what it means for the money."""
    node.after_paying = raiser(TimeLimit())
    assert make_session(funding=funded(node)).get(paywall.url).status_code == 200
