"""LndClient over real sockets that break in every way: what it says of a payment is never more than is known."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from routeweiler_sync.errors import FundingError, InvoicePaymentError, PaymentPendingError, PreimageMismatchError
from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.funding.lnd import node_client
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.testing import FakeInvoice, FakeLnd
from routeweiler_sync.testing._lnd_service import _NOT_UP
from tests.support.faulty_sockets import Proxy, listener, unused_port
from tests.support.node_replies_contract import END_OF_LND

AMOUNT_MSAT = 10_000
PATIENCE_S = 60.0
#: What "within the deadline" allows a slow machine.
SLACK_S = 10.0
ROOT = Path(__file__).parents[3]


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture
def proxy(lnd: FakeLnd) -> Iterator[Proxy]:
    proxy = Proxy(lnd.port)
    yield proxy
    proxy.close()


def send(client: LndClient, invoice: FakeInvoice, timeout_s: float = PATIENCE_S) -> WalletAnswer:
    return client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=1_000, timeout_s=timeout_s)


def follow(client: LndClient, invoice: FakeInvoice) -> WalletAnswer:
    return client.track(invoice.payment_hash, timeout_s=PATIENCE_S, follow=True)


def in_time(began: float, timeout_s: float) -> bool:
    return time.monotonic() - began < timeout_s + SLACK_S


# What is refused before an order leaves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_connection", "told"),
    [("refused", "nothing listens there"), ("frozen", "didn't answer"), ("reset", ""), ("closed", ""), ("http", "TLS handshake")],
)
def test_a_node_that_cannot_be_reached_is_refused_in_time_and_nothing_is_sent(lnd: FakeLnd, on_connection: str, told: str) -> None:
    """Not a byte of the order has left: the user may be told that Nothing was spent, and soon."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    began = time.monotonic()
    if on_connection == "refused":
        client = lnd.client(grpc_port=unused_port())
        answer = send(client, invoice, timeout_s=2)
    else:
        with listener(on_connection) as port:
            client = lnd.client(grpc_port=port)
            answer = send(client, invoice, timeout_s=2)
            assert client.track(invoice.payment_hash, timeout_s=0.5, follow=True).reply is WalletReply.UNKNOWN
    assert answer.reply is WalletReply.REFUSED, answer
    assert told in (answer.reason or "")
    assert "spent" not in (answer.reason or "")  # the error that is made of it says so, once
    assert in_time(began, 2.5)


def test_a_node_with_another_certificate_gets_no_order_and_no_macaroon(lnd: FakeLnd) -> None:
    """Whoever sits on the node's port without its key would otherwise be handed the wallet."""
    with FakeLnd() as other:
        client = lnd.client(tls_cert_path=other.tls_cert_path)
        answer = send(client, lnd.invoice(AMOUNT_MSAT))
        assert answer.reply is WalletReply.REFUSED
        assert "isn't the one pinned" in (answer.reason or "")
    assert not lnd.calls


def test_without_a_pin_a_self_signed_node_is_not_trusted(lnd: FakeLnd) -> None:
    """tls_cert_path=os.environ.get(…) is None where the variable is missing: that must not mean "trust anyone"."""
    with pytest.raises(FundingError, match="TLS certificate"):
        lnd.client(tls_cert_path=None).get_info()
    assert not lnd.calls


def test_a_pinned_node_is_known_under_any_name() -> None:
    """A forwarded port or a container's alias isn't in lnd's certificate; the pin proves the node all the same."""
    with FakeLnd(cert_names=("some-box", "localhost", "10.1.2.3")) as lnd:
        assert lnd.client().get_node_pubkey() == lnd.node_pubkey
    with FakeLnd(cert_names=("*.example.com", "node.example.com")) as lnd:
        assert lnd.client().get_node_pubkey() == lnd.node_pubkey


def test_under_a_certificate_authority_the_host_name_counts() -> None:
    """A company's authority signs for every host: another of its hosts mustn't be able to play the node."""
    authority = trustme.CA()
    leaf = authority.issue_cert("node.example.com")
    with FakeLnd() as lnd:
        lnd.stop()
        lnd._key_pem = leaf.private_key_pem.bytes()
        lnd._cert_pem = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        lnd.start()
        with pytest.raises(FundingError, match="doesn't name this host"):
            lnd.client(tls_cert_path=None, tls_cert_pem=authority.cert_pem.bytes().decode()).get_info()


@pytest.mark.slow
def test_a_locked_wallet_is_told_at_once_with_what_to_do(lnd: FakeLnd) -> None:
    """It is the commonest state of a node after a reboot, and only its owner can end it."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.lock()
    began = time.monotonic()
    answer = send(client, invoice)
    assert answer.reply is WalletReply.REFUSED
    assert "lncli unlock" in (answer.reason or "")
    assert in_time(began, 0)
    assert not lnd.orders
    lnd.unlock()
    assert send(client, invoice).reply is WalletReply.SUCCEEDED


@pytest.mark.slow
def test_a_starting_node_is_waited_for(lnd: FakeLnd) -> None:
    """A node restarts in some seconds; a purchase that comes just then needs not fail."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.set_state("WAITING_TO_START")
    answers: list[WalletAnswer] = []
    buyer = threading.Thread(target=lambda: answers.append(send(lnd.client(), invoice)))
    buyer.start()
    lnd.wait_for(lambda lnd: lnd.calls["GetState"] >= 2)
    lnd.set_state("RPC_ACTIVE")
    seen = lnd.calls["GetState"]
    lnd.wait_for(lambda lnd: lnd.calls["GetState"] >= seen + 3)
    assert not lnd.orders
    lnd.set_state("SERVER_ACTIVE")
    buyer.join(PATIENCE_S)
    assert [answer.reply for answer in answers] == [WalletReply.SUCCEEDED]


def test_a_node_that_does_not_come_up_is_refused_in_time(lnd: FakeLnd) -> None:
    """Waiting for it beyond payment_timeout would hang the caller."""
    lnd.set_state("UNLOCKED")
    began = time.monotonic()
    with pytest.raises(FundingError, match="still starting"):
        lnd.client().check_ready(0.5)
    assert in_time(began, 0.5)


@pytest.mark.parametrize("state", sorted(_NOT_UP))
def test_a_node_that_goes_down_after_it_was_asked_refuses_the_order_itself(
    lnd: FakeLnd, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the order can't see what happens after it: lnd's own word has to be understood as well."""
    client, invoice = lnd.client(), lnd.invoice(AMOUNT_MSAT)
    client.check_ready(PATIENCE_S)
    monkeypatch.setattr(client._connection, "check_ready", lambda timeout_s: None)
    lnd.set_state(state)
    assert send(client, invoice).reply is WalletReply.REFUSED


# What an order's broken stream leaves open


@pytest.mark.parametrize("when", ["after_init", "in_flight", "after_paying"])
def test_a_stream_that_breaks_once_the_payment_is_written_down_is_unknown_and_paid(lnd: FakeLnd, when: str) -> None:
    """Read as a failure, the invoice would be given up and its token, paid for, lost; or bought twice."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.drop_next(when)  # type: ignore[arg-type]
    assert send(client, invoice).reply is WalletReply.UNKNOWN
    answer = follow(client, invoice)
    assert (answer.reply, answer.preimage) == (WalletReply.SUCCEEDED, invoice.preimage)
    assert send(client, invoice).reply is WalletReply.EXISTS
    assert lnd.settled_msat == AMOUNT_MSAT


def test_a_stream_that_breaks_before_the_payment_is_written_down_is_unknown(lnd: FakeLnd) -> None:
    """From the outside it looks the same; only sending the same invoice again is safe, and pays it once."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.drop_next("before_init")
    assert send(client, invoice).reply is WalletReply.UNKNOWN
    assert follow(client, invoice).reply is WalletReply.NOT_FOUND
    assert send(client, invoice).reply is WalletReply.SUCCEEDED
    assert lnd.settled_msat == AMOUNT_MSAT


@pytest.mark.slow
def test_an_order_is_executed_after_its_client_has_gone(lnd: FakeLnd) -> None:
    """NOT_FOUND after a broken send proves nothing (observed with lnd 0.21.2): a new invoice bought then is a second payment."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.hold_orders()
    assert send(lnd.client(), invoice, timeout_s=1).reply is WalletReply.UNKNOWN
    assert follow(lnd.client(), invoice).reply is WalletReply.NOT_FOUND
    assert lnd.held_orders == 1
    lnd.deliver_orders()
    lnd.wait_for(lambda lnd: lnd.settled(invoice.payment_hash))
    assert follow(lnd.client(), invoice).reply is WalletReply.SUCCEEDED


@pytest.mark.slow
@pytest.mark.parametrize("break_it", ["cut", "freeze"])
def test_a_connection_that_breaks_under_an_order_is_unknown(lnd: FakeLnd, proxy: Proxy, break_it: str) -> None:
    """A laptop sleeps, a VPN drops: the payment runs on in the node, and its token must be found again."""
    invoice, client, answers = lnd.invoice(AMOUNT_MSAT), lnd.client(grpc_port=proxy.port), []
    lnd.hang_next()
    sender = threading.Thread(target=lambda: answers.append(send(client, invoice, timeout_s=3)))
    sender.start()
    lnd.wait_for(lambda lnd: len(lnd.payments) == 1)
    getattr(proxy, break_it)()
    sender.join(PATIENCE_S)
    lnd.release()
    assert [answer.reply for answer in answers] == [WalletReply.UNKNOWN]
    assert follow(lnd.client(), invoice).reply is WalletReply.SUCCEEDED


@pytest.mark.slow
def test_an_order_into_a_frozen_connection_is_unknown(lnd: FakeLnd, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes may lie in a socket and be read later."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client(grpc_port=proxy.port)
    client.check_ready(PATIENCE_S)
    monkeypatch.setattr(client._connection, "check_ready", lambda timeout_s: None)
    proxy.freeze()
    began = time.monotonic()
    assert send(client, invoice, timeout_s=1).reply is WalletReply.UNKNOWN
    assert in_time(began, 1)


@pytest.mark.slow
def test_a_connection_found_frozen_before_the_order_is_refused(lnd: FakeLnd, proxy: Proxy) -> None:
    """The question whether the node is ready goes unanswered, so that the order stays at home: nothing is spent."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client(grpc_port=proxy.port)
    client.check_ready(PATIENCE_S)
    proxy.freeze()
    assert send(client, invoice, timeout_s=1).reply is WalletReply.REFUSED


@pytest.mark.slow
def test_a_connection_that_freezes_before_the_node_has_told_who_it_is_is_refused_in_time(lnd: FakeLnd, proxy: Proxy) -> None:
    """The first purchase asks for the node's key as well: that question mustn't outlast payment_timeout either."""
    source = lnd.funding(client=lnd.client(grpc_port=proxy.port))

    class Freezing(LndClient):
        def check_ready(self, timeout_s: float) -> None:
            super().check_ready(timeout_s)
            proxy.freeze()

    source.client.__class__ = Freezing
    began = time.monotonic()
    with pytest.raises(FundingError, match="didn't answer GetInfo"):
        source.ready(1)
    assert in_time(began, 1)


def test_a_connection_found_dead_before_the_order_is_replaced_and_the_order_sent(lnd: FakeLnd, proxy: Proxy) -> None:
    """A laptop wakes: its old connection is gone, the node is up, and the purchase needs not fail for that."""
    client, answers = lnd.client(grpc_port=proxy.port), []
    client.check_ready(PATIENCE_S)
    proxy.freeze()
    buyer = threading.Thread(target=lambda: answers.append(send(client, lnd.invoice(AMOUNT_MSAT))))
    buyer.start()
    assert proxy.stalled.wait(PATIENCE_S)
    proxy.cut()
    buyer.join(PATIENCE_S)
    assert [answer.reply for answer in answers] == [WalletReply.SUCCEEDED]


@pytest.mark.slow
def test_a_frozen_connection_is_nobody_elses_and_is_not_used_again(lnd: FakeLnd, proxy: Proxy) -> None:
    """gRPC shares connections between channels of one target: one that hangs would hang every session of the process."""
    client, bystander = lnd.client(grpc_port=proxy.port), lnd.client(grpc_port=proxy.port)
    client.check_ready(PATIENCE_S)
    proxy.freeze()
    waiting = threading.Thread(target=lambda: client.track(b"\0" * 32, timeout_s=3, follow=True))
    waiting.start()
    assert proxy.stalled.wait(PATIENCE_S)
    assert send(bystander, lnd.invoice(AMOUNT_MSAT), timeout_s=2).reply is WalletReply.SUCCEEDED
    waiting.join(PATIENCE_S)
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"])
def test_an_error_that_is_not_known_proves_nothing(lnd: FakeLnd, code: str) -> None:
    """A proxy in between may say anything; a later lnd may say it in new words."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.refuse_next("some new text", code=code)
    answer = send(client, invoice)
    assert answer.reply is WalletReply.UNKNOWN
    assert "some new text" in (answer.reason or "")
    assert send(client, invoice).reply is WalletReply.SUCCEEDED


def test_a_stop_of_the_node_under_a_payment_is_unknown_and_it_is_found_again(lnd: FakeLnd) -> None:
    """Nodes are restarted while they pay. The client goes on with the same connection object."""
    invoice, client, answers = lnd.invoice(AMOUNT_MSAT), lnd.client(), []
    lnd.hang_next()
    sender = threading.Thread(target=lambda: answers.append(send(client, invoice)))
    sender.start()
    lnd.wait_for(lambda lnd: len(lnd.payments) == 1)
    lnd.restart()
    sender.join(PATIENCE_S)
    assert [answer.reply for answer in answers] == [WalletReply.UNKNOWN]
    assert re.fullmatch(END_OF_LND, answers[0].reason or ""), answers
    assert client.track(invoice.payment_hash, timeout_s=PATIENCE_S, follow=False).reply is WalletReply.IN_FLIGHT
    lnd.release()
    assert follow(client, invoice).reply is WalletReply.SUCCEEDED


def test_a_node_that_comes_back_is_used_at_once(lnd: FakeLnd) -> None:
    """gRPC's own back-off would keep "connection refused" for up to two minutes after the node is up again."""
    client = lnd.client()
    client.check_ready(PATIENCE_S)
    lnd.stop()
    for _ in range(6):
        assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.REFUSED
    lnd.start()
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED


@pytest.mark.slow
def test_a_payment_whose_client_has_left_stays_in_flight(lnd: FakeLnd) -> None:
    """lnd killed at a bad moment leaves such payments (observed); no reading of them may invent an end."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.orphan_next()
    assert send(client, invoice, timeout_s=1).reply is WalletReply.UNKNOWN
    lnd.release()
    lnd.restart()
    assert client.track(invoice.payment_hash, timeout_s=1, follow=True).reply is WalletReply.IN_FLIGHT
    assert send(client, invoice).reply is WalletReply.EXISTS


# What lnd says of a payment's end


def test_a_wrong_preimage_is_reported_as_spent(lnd: FakeLnd) -> None:
    """The money is gone and has to be booked; the token can't be made."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.wrong_preimage_next()
    assert send(client, invoice).reply is WalletReply.WRONG_PREIMAGE
    with pytest.raises(PreimageMismatchError) as caught:
        client.pay_invoice(invoice.bolt11, max_fee_msat=0)
    assert caught.value.spent is True
    with pytest.raises(PreimageMismatchError):
        client.track_payment(invoice.payment_hash)


@pytest.mark.parametrize(
    "reason", ["TIMEOUT", "NO_ROUTE", "ERROR", "INCORRECT_PAYMENT_DETAILS", "INSUFFICIENT_BALANCE", "CANCELED"]
)
def test_a_failure_has_its_reason_and_costs_nothing(lnd: FakeLnd, reason: str) -> None:
    """ "No route" and "too little balance" ask for different deeds of the user."""
    invoice, client = lnd.invoice(AMOUNT_MSAT), lnd.client()
    lnd.fail_next(reason)
    with pytest.raises(InvoicePaymentError) as caught:
        client.pay_invoice(invoice.bolt11, max_fee_msat=1_000)
    assert (caught.value.failure_reason, caught.value.spent, caught.value.payment_hash) == (
        reason,
        False,
        invoice.payment_hash.hex(),
    )
    assert client.track_payment(invoice.payment_hash.hex()).failure_reason == reason
    assert lnd.spent_msat == 0


@pytest.mark.slow
def test_pay_invoice_waits_for_a_payment_that_another_has_begun(lnd: FakeLnd) -> None:
    """The answer to "already in transition" is its outcome, not an error."""
    invoice, paid = lnd.invoice(AMOUNT_MSAT), []
    lnd.hang_next()
    assert send(lnd.client(), invoice, timeout_s=1).reply is WalletReply.UNKNOWN
    buyer = threading.Thread(target=lambda: paid.append(lnd.client().pay_invoice(invoice.bolt11, max_fee_msat=0)))
    buyer.start()
    lnd.wait_for(lambda lnd: lnd.calls["TrackPaymentV2"] >= 1)
    lnd.release()
    buyer.join(PATIENCE_S)
    assert paid == [invoice.preimage]


def test_pay_invoice_says_pending_when_nobody_knows(lnd: FakeLnd) -> None:
    """ "Failed" would be a lie that costs a second payment."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.drop_next("after_init")
    with pytest.raises(PaymentPendingError) as caught:
        lnd.client().pay_invoice(invoice.bolt11, max_fee_msat=1_000)
    assert (caught.value.spent, caught.value.payment_hash) == (None, invoice.payment_hash.hex())
    assert lnd.client().pay_invoice(invoice.bolt11, max_fee_msat=1_000) == invoice.preimage


@pytest.mark.parametrize("bolt11", ["", "lnbcrt1", "hello", "no amount"])
def test_what_cannot_be_priced_is_not_sent(lnd: FakeLnd, bolt11: str) -> None:
    """An invoice without amount would be paid with whatever somebody puts in; garbage isn't the node's business."""
    text = lnd.invoice(None).bolt11 if bolt11 == "no amount" else bolt11
    with pytest.raises(FundingError, match="Nothing was spent"):
        lnd.client().pay_invoice(text, max_fee_msat=1_000)
    assert not lnd.orders


def test_the_order_says_what_routing_may_cost_and_when_lnd_is_to_stop_trying(lnd: FakeLnd) -> None:
    """lnd's own deadline lies before ours, so that its FAILED is heard; a limit of 0 means free routes only and is sent as such."""
    client = lnd.client()
    for timeout_s, limit in ((30, 123), (0.9, 0)):
        invoice = lnd.invoice(AMOUNT_MSAT)
        client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=limit, timeout_s=timeout_s)
        order = lnd.orders[-1]
        assert (order.bolt11, order.fee_limit_msat) == (invoice.bolt11, limit)
        assert 1 <= order.timeout_seconds < max(timeout_s, 1.1)
    with pytest.raises(ValueError, match="negative"):
        client.send("lnbc1", payment_hash=b"", max_fee_msat=-1, timeout_s=1)


@pytest.mark.slow
def test_the_smaller_of_two_timeouts_wins(lnd: FakeLnd) -> None:
    """timeout_seconds is the client's promise, payment_timeout the session's: both hold."""
    lnd.hang_next(times=None)
    began = time.monotonic()
    assert send(lnd.client(timeout_seconds=0.5), lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.UNKNOWN
    assert send(lnd.client(), lnd.invoice(AMOUNT_MSAT), timeout_s=0.5).reply is WalletReply.UNKNOWN
    assert in_time(began, 1)


def test_send_payment_sync_returns_every_field_and_has_a_default_fee_limit(lnd: FakeLnd) -> None:
    """The seed's name, for programs that come from it; without a limit 5 %, at least 10 000 msat, and not "any fee"."""
    lnd.fee_msat = 7
    invoice = lnd.invoice(1_000_000)
    sent = lnd.client().send_payment_sync(invoice.bolt11)
    assert (sent.payment_preimage, sent.payment_hash) == (invoice.preimage, invoice.payment_hash)
    assert (sent.amount_msat, sent.fee_msat, sent.payment_error) == (1_000_000, 7, "")
    assert lnd.orders[-1].fee_limit_msat == 50_000
    lnd.client().send_payment_sync(lnd.invoice(AMOUNT_MSAT).bolt11, fee_limit_msat=8)
    assert lnd.orders[-1].fee_limit_msat == 8
    assert invoice.preimage.hex() not in repr(sent)
    assert repr(invoice.preimage) not in repr(sent)


# Secrets


def test_a_server_that_repeats_the_macaroon_brings_it_into_no_text(lnd: FakeLnd) -> None:
    """Error texts end in logs and bug reports."""
    secret = Path(lnd.macaroon_path).read_bytes().hex()
    lnd.refuse_next(f"cannot get macaroon: bad macaroon {secret}")
    answer = send(lnd.client(), lnd.invoice(AMOUNT_MSAT))
    assert answer.reply is WalletReply.REFUSED
    assert secret not in repr(answer)


# One client in many hands


def test_threads_share_one_client_from_its_first_use(lnd: FakeLnd) -> None:
    """A thread pool's first 402s come together."""
    client, answers = lnd.client(), []
    invoices = [lnd.invoice(AMOUNT_MSAT) for _ in range(12)]
    barrier = threading.Barrier(len(invoices))

    def buy(invoice: FakeInvoice) -> None:
        barrier.wait()
        answers.append((send(client, invoice), invoice))

    threads = [threading.Thread(target=buy, args=(invoice,)) for invoice in invoices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [(a.reply, a.preimage) for a, _ in answers] == [(WalletReply.SUCCEEDED, i.preimage) for _, i in answers]
    assert len(answers) == len(invoices)


def test_one_threads_broken_call_does_not_disturb_anothers_payment(lnd: FakeLnd) -> None:
    """A call that ran into its deadline drops the channel for later calls; those under way on it go on."""
    client, slow, answers = lnd.client(), lnd.invoice(AMOUNT_MSAT), []
    lnd.hang_next(times=None)
    sender = threading.Thread(target=lambda: answers.append(send(client, slow)))
    sender.start()
    lnd.wait_for(lambda lnd: len(lnd.payments) == 1)
    before = client._connection._current(time.monotonic() + PATIENCE_S)
    assert send(client, lnd.invoice(AMOUNT_MSAT), timeout_s=0.5).reply is WalletReply.UNKNOWN
    assert client._connection._current(time.monotonic() + PATIENCE_S) is not before
    lnd.release(slow.payment_hash)
    sender.join(PATIENCE_S)
    assert [answer.reply for answer in answers] == [WalletReply.SUCCEEDED]


def test_a_closed_client_opens_again(lnd: FakeLnd) -> None:
    """session.close() mustn't make a later call of the same session fail, as it doesn't with requests."""
    client = lnd.client()
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED
    client.close()
    client.close()
    assert send(client, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="this system has no SIGINT for one process")
def test_an_interrupt_under_a_payment_passes_through_and_the_payment_goes_on(lnd: FakeLnd) -> None:
    """Ctrl-C ends the program and not the payment; swallowed, the program couldn't be stopped."""
    invoice = lnd.invoice(AMOUNT_MSAT)
    lnd.hang_next()
    code = """
import signal, sys
from routeweiler_sync.funding.lightning import LndClient
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that SIGINT is ignored
LndClient.from_env().send(sys.argv[1], payment_hash=bytes.fromhex(sys.argv[2]), max_fee_msat=1_000, timeout_s=600)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, invoice.bolt11, invoice.payment_hash.hex()],
        cwd=ROOT,
        env={**os.environ, **lnd.environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lnd.wait_for(lambda lnd: len(lnd.payments) == 1)
        for _ in range(10):  # as a person does: one may fall into a finaliser, where Python drops it
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=2)
                break
        assert child.stderr is not None
        assert "KeyboardInterrupt" in child.stderr.read()
        assert child.returncode != 0
    finally:
        child.kill()
        child.communicate()
    lnd.release()
    assert follow(lnd.client(), invoice).reply is WalletReply.SUCCEEDED


def test_an_unpickled_client_pays(lnd: FakeLnd) -> None:
    """Workers get their session by pickle; paths lead them to the same node."""
    client = lnd.client()
    client.check_ready(PATIENCE_S)
    again = pickle.loads(pickle.dumps(client))
    assert send(again, lnd.invoice(AMOUNT_MSAT)).reply is WalletReply.SUCCEEDED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_forked_process_pays_over_a_channel_of_its_own(lnd: FakeLnd) -> None:
    """gunicorn and multiprocessing fork after the session was made; a channel used on both sides of a fork hangs or garbles."""
    code = """
import os, sys
from routeweiler_sync.funding.lightning import LndClient
client = LndClient.from_env()
parent, child, late = sys.argv[1:]
client.pay_invoice(parent, max_fee_msat=0)
pid = os.fork()
if pid == 0:
    client.pay_invoice(child, max_fee_msat=0)
    grandchild = os.fork()
    if grandchild == 0:
        client.get_node_pubkey()
        os._exit(7)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
client.pay_invoice(late, max_fee_msat=0)
sys.exit(status)
"""
    invoices = [lnd.invoice(AMOUNT_MSAT) for _ in range(3)]
    done = subprocess.run(
        [sys.executable, "-c", code, *(invoice.bolt11 for invoice in invoices)],
        cwd=ROOT,
        env={**os.environ, **lnd.environ},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 7
    assert all(lnd.settled(invoice.payment_hash) for invoice in invoices)


# The other ways to it


def test_the_environment_and_lndconnect_lead_to_the_node(lnd: FakeLnd) -> None:
    """Both carry certificate and macaroon: the node must take them as they are."""
    assert LndClient.from_env(lnd.environ).get_node_pubkey() == lnd.node_pubkey
    assert LndClient.from_lndconnect(lnd.lndconnect_uri).get_node_pubkey() == lnd.node_pubkey
    assert LndClient.from_env({"ROUTEWEILER_LNDCONNECT": lnd.lndconnect_uri}).channel_balance().local_msat > 0


def test_the_list_of_payments_goes_over_its_pages(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """lnd gives a hundred at a time; an audit over the first page alone would find money missing."""
    monkeypatch.setattr(node_client, "_PAYMENTS_A_PAGE", 4)
    client = lnd.client()
    for count in range(1, 10):
        assert send(client, lnd.invoice(AMOUNT_MSAT + count)).reply is WalletReply.SUCCEEDED
        listed = list(client.list_payments())
        assert [payment.amount_msat for payment in listed] == [AMOUNT_MSAT + number for number in range(1, count + 1)]


def test_an_error_names_the_macaroons_missing_right(lnd: FakeLnd) -> None:
    """ "permission denied" alone doesn't tell which permission to bake."""
    payer = lnd.client(macaroon_path=lnd.bake_macaroon("/routerrpc.Router/SendPaymentV2"))
    with pytest.raises(FundingError, match=r"doesn't permit ChannelBalance.*uri:/lnrpc.Lightning/ChannelBalance"):
        payer.channel_balance()
    with pytest.raises(FundingError, match="permission denied"):
        payer.track_payment(b"\0" * 32)


@pytest.mark.skipif(os.name == "nt", reason="no file modes")
def test_the_fakes_files_are_private(lnd: FakeLnd) -> None:
    """Tests copy what they see: a macaroon readable by all teaches the wrong thing."""
    assert [os.stat(path).st_mode & 0o777 for path in (lnd.macaroon_path, lnd.tls_cert_path)] == [0o600, 0o600]
