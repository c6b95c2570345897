"""Ctrl-C at any instant: the same session goes on afterwards, as it must in a notebook, and pays once.

The buyer is a process of its own: a fake lnd in the same process would share grpc's global locks with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import grpc
import pytest

from routeweiler_sync import FundingError
from routeweiler_sync.funding import worker_calls as outside
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import bare_environ

posix = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here that send a signal")

SEED, PAGES = 5, 600 if os.environ.get("ROUTEWEILER_DEEP_TESTS") == "1" else 60
AMOUNT_MSAT = 10_000

#: Buys ``pages`` pages, each interrupted at a random instant and then asked for again by the same session.
INTERRUPTED_BUYER = """
import faulthandler, json, random, signal, sys, time
from routeweiler_sync import Funding, LndClient, Routeweiler

base, folder, seed, pages = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)

def make():
    funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
    return Routeweiler(funding=funding, ledger=folder + "/ledger.db", payment_timeout=5)

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
took_s = []
for number in range(3):
    with make() as session:
        begun = time.monotonic()
        assert session.get(f"{base}/warm/{number}").status_code == 200
        took_s.append(time.monotonic() - begun)
told = {"interrupted": 0, "undisturbed": 0}
for number in range(pages):
    url = f"{base}/page/{number}"
    session = make()
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, 1.2 * min(took_s)))
        session.get(url)
        signal.setitimer(signal.ITIMER_REAL, 0)
        told["undisturbed"] += 1
    except KeyboardInterrupt:
        told["interrupted"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.dump_traceback_later(30, exit=True)
    assert session.get(url).status_code == 200, url
    session.close()
    faulthandler.cancel_dump_traceback_later()
print(json.dumps(told))
"""


@pytest.mark.slow
@posix
def test_an_interrupt_at_any_instant_leaves_a_session_that_pays_on(lnd: FakeLnd, books: Books) -> None:
    """Ctrl-C in a notebook would make the next purchase of the same session hang for ever, far past its payment_timeout."""
    folder = str(books.ledger_path.parent)
    with Paywall(lnd, price_msat=AMOUNT_MSAT, dynamic=True) as wall:
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED_BUYER, wall.base_url, folder, str(SEED), str(PAGES)],
            env=bare_environ(**lnd.environ),
            capture_output=True,
            text=True,
            timeout=280 if PAGES == 60 else 3_000,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["interrupted"] > PAGES // 2, told
    assert len([payment for payment in lnd.payments if payment.status == "SUCCEEDED"]) == PAGES + 3
    books.check()


#: Is interrupted while its payment is under way, and ends.
INTERRUPTED_AT_THE_END = """
import signal, sys
from routeweiler_sync import LndClient
client = LndClient.from_env()
client.get_info()

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    client.pay_invoice(sys.argv[1], max_fee_msat=1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
@posix
def test_a_program_that_is_interrupted_in_mid_payment_ends_quietly(lnd: FakeLnd) -> None:
    """The thread that still listens to lnd would keep the program from ending, or make it crash on its way out."""
    for _ in range(3):
        lnd.hang_next()
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED_AT_THE_END, lnd.invoice(AMOUNT_MSAT).bolt11],
            env=bare_environ(**lnd.environ),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
        assert time.monotonic() - begun < 30


class _Deaf:
    """A channel that takes a call and is never heard of again, not even at the call's deadline."""

    def __init__(self) -> None:
        self.taken, self.freed = 0, threading.Event()

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        return self._take

    unary_stream = unary_unary

    def _take(self, *_: Any, **__: Any) -> Any:
        self.taken += 1
        self.freed.wait(60)
        raise grpc.RpcError


@pytest.fixture
def deaf() -> Any:
    channel = _Deaf()
    yield channel
    channel.freed.set()


@pytest.mark.slow
def test_where_grpc_never_answers_the_call_still_ends_in_time(lnd: FakeLnd, deaf: _Deaf) -> None:
    """grpc's own locks may be taken for ever by somebody else's interrupted call: payment_timeout must hold all the same."""
    client = lnd.client()
    client._connection._current(time.monotonic() + 60).channel = deaf  # type: ignore[assignment]
    begun = time.monotonic()
    with pytest.raises(FundingError, match=r"silent.*Nothing was spent"):
        client.get_info(timeout_s=0.1)
    assert time.monotonic() - begun < 10
    assert client.get_node_pubkey() == lnd.node_pubkey, "the next call goes over a new channel"
    assert deaf.taken == 1


@pytest.mark.slow
def test_an_order_that_grpc_never_answers_has_an_unknown_outcome(
    lnd: FakeLnd, deaf: _Deaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called refused, it would be paid again with another invoice, while the first may be on its way."""
    client, invoice = lnd.client(), lnd.invoice(AMOUNT_MSAT)
    connection = client._connection
    connection._current(time.monotonic() + 60).channel = deaf  # type: ignore[assignment]
    monkeypatch.setattr(connection, "check_ready", lambda timeout_s: None)
    ordered = {"payment_hash": invoice.payment_hash, "max_fee_msat": 0, "timeout_s": 0.1}
    begun = time.monotonic()
    assert client.send(invoice.bolt11, **ordered).reply is WalletReply.UNKNOWN
    assert time.monotonic() - begun < 10
    assert deaf.taken == 1
    assert client.send(invoice.bolt11, **{**ordered, "timeout_s": 10}).reply is WalletReply.SUCCEEDED


def test_where_no_thread_can_start_no_payment_order_is_sent(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program at its limit of threads must be told that Nothing was spent, and not be left in doubt."""
    client, invoice = lnd.client(), lnd.invoice(AMOUNT_MSAT)
    client.check_ready(10)

    def no_thread(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(outside, "start_new_thread", no_thread)
        with pytest.raises(FundingError, match=r"no thread.*Nothing was spent"):
            client.pay_invoice(invoice.bolt11, max_fee_msat=0)
        client.close()
    assert lnd.orders == []
    assert len(client.pay_invoice(invoice.bolt11, max_fee_msat=0)) == 32


class _Alarmed(BaseException):
    pass


def test_errors_of_a_wallet_call_reach_the_caller_and_leaving_early_ends_the_call() -> None:
    """An error that stays in its thread would be an answer that never comes; a call that nobody ends would hold lnd's stream."""

    def fails(worker_call: outside.WorkerCall[int]) -> int:
        worker_call.tell(1)
        raise _Alarmed

    told = []
    with pytest.raises(_Alarmed):
        told.extend(outside.items_of(fails, timeout_s=10))

    ended, cancelled = threading.Event(), threading.Event()

    def goes_on(worker_call: outside.WorkerCall[int]) -> int:
        try:
            worker_call.tell(1)
            worker_call.cancel = cancelled.set
            cancelled.wait(30)
            return 2
        finally:
            ended.set()

    items = outside.items_of(goes_on, timeout_s=20)
    assert next(items) == 1
    items.close()
    assert ended.is_set(), "it has cleaned up when close() returns"
    assert not cancelled.is_set(), "what was told and not asked for more ends by itself"

    ended.clear()
    items = outside.items_of(goes_on, timeout_s=0.3)
    assert next(items) == 1
    with pytest.raises(outside.SilentError):
        next(items)
    assert ended.wait(10)
    assert cancelled.is_set()


@posix
def test_an_interrupt_that_another_thread_receives_ends_the_wait() -> None:
    """So does one that arrives just before the wait begins: a stopped notebook cell would go on for a minute."""
    ends = threading.Event()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def send() -> None:
        ends.wait(0.3)
        os.kill(os.getpid(), signal.SIGALRM)
        ends.wait(60)  # lives on, to receive the signal

    sender = threading.Thread(target=send, daemon=True)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        sender.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # in this thread alone: the sender gets the signal itself
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            outside.result_of(lambda call: ends.wait(60), timeout_s=60)
        assert time.monotonic() - begun < 30
    finally:
        ends.set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, before)
        sender.join()


def test_a_call_that_is_silent_for_longer_than_one_wait_still_answers() -> None:
    """The wait is made of short ones: a call that takes longer than one of them would be taken for dead."""
    assert outside.result_of(lambda call: time.sleep(3 * outside._WAIT_S_MAX) or "done", timeout_s=60) == "done"
    begun = time.monotonic()
    with pytest.raises(outside.SilentError):
        outside.result_of(lambda call: time.sleep(3), timeout_s=2.5 * outside._WAIT_S_MAX)
    assert time.monotonic() - begun > 2.4 * outside._WAIT_S_MAX
