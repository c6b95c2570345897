"""The client of NWC over real sockets: relays and wallets that are silent, lie, refuse, cut off and come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from routeweiler_sync.errors import FundingError, PaymentPendingError
from routeweiler_sync.funding.nwc import order as order_module, relays as relays_module
from routeweiler_sync.funding.nwc.client import NwcClient
from routeweiler_sync.funding.nwc.link import Link, LinkError
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.testing import FakeLnd, FakeNwc
from routeweiler_sync.testing._nostr_relay import _Peer
from routeweiler_sync.testing.fake_nwc import _WalletError

CAP_MSAT = 10_000
FEE_MSAT = 1_000
R = WalletReply


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as lnd:
        lnd.fee_msat = FEE_MSAT
        yield lnd


@pytest.fixture
def wallet(lnd: FakeLnd) -> Iterator[FakeNwc]:
    with FakeNwc(lnd) as wallet:
        yield wallet


def pay(client: NwcClient, lnd: FakeLnd, *, timeout_s: float = 30.0, invoice: Any = None) -> WalletAnswer:
    invoice = invoice or lnd.invoice(21_000)
    return client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=CAP_MSAT, timeout_s=timeout_s)


def asks_for(method: str, wallet: FakeNwc, event: dict[str, Any]) -> bool:
    """Whether an event that a client publishes is a request of this method."""
    return bool(event["kind"] == 23194 and wallet._read(event)["method"] == method)


def orders(wallet: FakeNwc) -> list[str]:
    """The ids of the orders that the wallet got."""
    return [request.id for request in wallet.requests if request.method == "pay_invoice"]


# What is sent


def test_an_order_carries_an_expiry_within_its_time(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """An order that a relay keeps must not be paid days later."""
    began = time.time()
    assert pay(wallet.client(), lnd, timeout_s=9).reply is R.SUCCEEDED
    [request] = [request for request in wallet.requests if request.method == "pay_invoice"]
    assert request.nip44
    assert request.expires_at is not None
    assert began < request.expires_at <= time.time() + 9 + 2
    assert all(each.expires_at is not None for each in wallet.requests)


def test_a_wallet_without_nip44_is_written_to_in_nip04(lnd: FakeLnd) -> None:
    """Older wallets read nothing else; the info event tells."""
    with FakeNwc(lnd, nip44=False) as wallet:
        client = wallet.client()
        assert pay(client, lnd).reply is R.SUCCEEDED
        assert not any(request.nip44 for request in wallet.requests)


def test_a_wallet_without_an_info_event_is_written_to_in_nip04(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """So NIP-47 says. A wallet that has said once that it reads NIP-44 isn't talked out of it."""
    known = wallet.client()
    known.check_ready(10)
    wallet.relays[0].forget()
    wallet.relays[0].cut()
    assert pay(wallet.client(), lnd).reply is R.SUCCEEDED
    assert not wallet.requests[-1].nip44
    assert pay(known, lnd).reply is R.SUCCEEDED
    assert wallet.requests[-1].nip44


def test_the_info_event_is_asked_for_once_a_connection(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """Each request would take a round more."""
    client, asked = wallet.client(), list[str]()
    send = Link.send

    def counted(link: Link, text: str, deadline: float) -> None:
        asked.append(text)
        send(link, text, deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "send", counted)
        for _ in range(3):
            assert pay(client, lnd).reply is R.SUCCEEDED
    assert sum("13194" in text for text in asked) == 1
    assert wallet.relays[0].connections == 1


def test_a_challenge_that_utf8_cannot_hold_harms_nothing(wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON can hold half of a surrogate pair; the error would be a foreign one, and no other relay be tried."""
    real = _Peer._answer

    def asks_oddly(peer: Any, message: Any) -> None:
        peer._say("AUTH", "\ud800")
        if message[0] != "AUTH":
            real(peer, message)

    monkeypatch.setattr(_Peer, "_answer", asks_oddly)
    client = wallet.client()
    assert client.get_info().network == "bitcoin-regtest"
    assert pay(client, lnd).reply is R.SUCCEEDED


def test_a_relay_that_asks_who_the_client_is_gets_its_answer(lnd: FakeLnd) -> None:
    """Some relays serve known clients alone (NIP-42)."""
    wallet = FakeNwc(lnd)
    wallet.relays[0].asks_who = True
    with wallet:
        assert pay(wallet.client(), lnd).reply is R.SUCCEEDED


# What the wallet answers


@pytest.mark.parametrize(
    "code",
    [
        "QUOTA_EXCEEDED",
        "INSUFFICIENT_BALANCE",
        "RESTRICTED",
        "UNAUTHORIZED",
        "NOT_IMPLEMENTED",
        "UNSUPPORTED_ENCRYPTION",
        "RATE_LIMITED",
    ],
)
def test_a_refusal_before_the_start_is_one(wallet: FakeNwc, lnd: FakeLnd, code: str) -> None:
    """Taken for an unknown outcome, it would block its page until the invoice has long expired."""
    wallet.refuse_next(code, "not you")
    answer = pay(wallet.client(), lnd)
    assert (answer.reply, answer.reason) == (R.REFUSED, f"{code}: not you")
    assert lnd.payments == []


@pytest.mark.parametrize("code", ["PAYMENT_FAILED", "INTERNAL", "OTHER", "BRAND_NEW"])
def test_a_failure_is_never_final(wallet: FakeNwc, lnd: FakeLnd, code: str) -> None:
    """The wallet settles it later: a new invoice meanwhile would pay twice."""
    client, invoice = wallet.client(), lnd.invoice(21_000)
    wallet.fail_next(code, settles_later=True)
    assert pay(client, lnd, invoice=invoice).reply is R.FAILED_SO_FAR
    assert client.track(invoice.payment_hash, timeout_s=10, follow=True).reply is R.FAILED_SO_FAR
    wallet.settle_failed()
    later = client.track(invoice.payment_hash, timeout_s=10, follow=True)
    assert (later.reply, later.preimage, later.fee_msat) == (R.SUCCEEDED, invoice.preimage, FEE_MSAT)


def test_an_error_for_a_payment_that_went_through_is_looked_up(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """INTERNAL is any error of the wallet's node, before or after the money has left."""
    invoice = lnd.invoice(21_000)
    real = wallet._pay_invoice

    def pays_and_complains(params: dict[str, Any], run: int) -> dict[str, Any]:
        real(params, run)
        raise type_of_error("INTERNAL", "context deadline exceeded")

    from routeweiler_sync.testing.fake_nwc import _WalletError as type_of_error

    wallet._pay_invoice = pays_and_complains  # type: ignore[method-assign]
    answer = pay(wallet.client(), lnd, invoice=invoice)
    assert (answer.reply, answer.preimage, answer.fee_msat) == (R.SUCCEEDED, invoice.preimage, FEE_MSAT)


def test_a_second_order_is_told_that_there_is_one(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """By its text alone; the payment is followed then, never sent once more."""
    client, invoice = wallet.client(), lnd.invoice(21_000)
    lnd.hang_next()
    assert pay(client, lnd, invoice=invoice, timeout_s=2).reply in (R.UNKNOWN, R.IN_FLIGHT)
    assert pay(client, lnd, invoice=invoice).reply is R.EXISTS
    lnd.release()
    assert pay(client, lnd, invoice=invoice).reply in (R.EXISTS, R.SUCCEEDED)
    assert lnd.spent_msat == 21_000 + FEE_MSAT


def test_a_missing_fee_is_looked_up(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """``fees_paid`` is optional. Where the look-up lacks it too, it isn't known."""
    wallet.tells_fees = False
    assert pay(wallet.client(), lnd).fee_msat == FEE_MSAT
    wallet.looks_up_fees = False
    answer = pay(wallet.client(), lnd)
    assert (answer.reply, answer.fee_msat, answer.amount_msat) == (R.SUCCEEDED, None, 21_000)


def test_a_wallets_own_invoice_proves_no_payment(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The wallet knows the preimage of what it is to receive."""
    invoice = lnd.invoice(21_000)
    wallet._lookup_invoice = lambda params, run: {  # type: ignore[method-assign]
        "type": "incoming", "state": "settled", "preimage": invoice.preimage.hex(), "payment_hash": invoice.payment_hash.hex(),
    }  # fmt: skip
    assert wallet.client().track(invoice.payment_hash, timeout_s=5, follow=False).reply is R.UNKNOWN


# Answers that are lost, late, forged or double


def test_forged_answers_are_ignored(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """Whoever can write to the relay would end a row as refused, and have the page paid again."""
    wallet.forge_next()
    assert pay(wallet.client(), lnd).reply is R.SUCCEEDED


def test_forged_answers_alone_are_no_answer(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """They prove nothing, however many come."""
    client, invoice = wallet.client(), lnd.invoice(21_000)
    wallet.forge_next()
    wallet.late_next()
    lnd.hang_next()
    answer = pay(client, lnd, invoice=invoice, timeout_s=1)
    assert answer.reply in (R.UNKNOWN, R.IN_FLIGHT)


def test_an_answer_that_is_lost_is_looked_up_while_waiting(wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays keep no answers: it never comes, and the call would wait its whole time for it."""
    monkeypatch.setattr(order_module, "LOOK_AFTER_S", 0.2)
    client, invoice = wallet.client(), lnd.invoice(21_000)
    wallet.drop_next("answer")
    began = time.monotonic()
    answer = pay(client, lnd, invoice=invoice, timeout_s=25)
    assert (answer.reply, answer.preimage) == (R.SUCCEEDED, invoice.preimage)
    assert time.monotonic() - began < 20


def test_a_slow_payment_is_told_as_in_flight(wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes in the end, also after look-ups over the same connection."""
    monkeypatch.setattr(order_module, "LOOK_AFTER_S", 0.2)
    client, answers = wallet.client(), list[WalletAnswer]()
    lnd.hang_next(times=None)
    assert pay(client, lnd, timeout_s=2).reply is R.IN_FLIGHT
    waiting = threading.Thread(target=lambda: answers.append(pay(client, lnd, timeout_s=30)))
    waiting.start()
    lnd.wait_for(lambda lnd: len(lnd.payments) == 2)
    time.sleep(0.7)  # a look-up or two
    lnd.release()
    waiting.join(30)
    assert [answer.reply for answer in answers] == [R.SUCCEEDED]


def test_an_order_that_is_lost_stays_unknown(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The relay has it, and may deliver it yet."""
    client, invoice = wallet.client(), lnd.invoice(21_000)
    wallet.drop_next("order")
    assert pay(client, lnd, invoice=invoice, timeout_s=2).reply is R.UNKNOWN
    looked_up = client.track(invoice.payment_hash, timeout_s=5, follow=False)
    assert looked_up.reply is R.FAILED_SO_FAR
    assert looked_up.reason is not None
    assert "may still be on its way" in looked_up.reason


def test_a_late_answer_belongs_to_no_other_request(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """On a connection that is used again, it must not be taken for the next one's."""
    client, first, second = wallet.client(), lnd.invoice(21_000), lnd.invoice(5_000)
    wallet.late_next()
    assert pay(client, lnd, invoice=first, timeout_s=1).reply in (R.UNKNOWN, R.SUCCEEDED)
    wallet.deliver_answers()
    answer = pay(client, lnd, invoice=second)
    assert (answer.reply, answer.preimage, answer.amount_msat) == (R.SUCCEEDED, second.preimage, 5_000)


def test_an_order_that_is_handled_twice_is_paid_once(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """A relay may deliver it twice; the second handling is refused, and its refusal may come first."""
    client = wallet.client()
    for _ in range(5):
        invoice = lnd.invoice(21_000)
        wallet.duplicate_next()
        answer = pay(client, lnd, invoice=invoice)
        assert answer.reply in (R.SUCCEEDED, R.EXISTS)
        assert client.track(invoice.payment_hash, timeout_s=10, follow=True).reply is R.SUCCEEDED
    assert len(lnd.payments) == 5


def test_a_refusal_of_a_payment_that_is_under_way_is_none(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The first copy of an order uses up the budget, and the second one is refused for that."""
    client, invoice = wallet.client(), lnd.invoice(21_000)
    lnd.hang_next()
    assert pay(client, lnd, invoice=invoice, timeout_s=1).reply in (R.UNKNOWN, R.IN_FLIGHT)
    wallet.refuse_next("QUOTA_EXCEEDED")
    assert pay(client, lnd, invoice=invoice).reply is R.IN_FLIGHT


@pytest.mark.parametrize("relays", [1, 2])
def test_a_refusal_that_cannot_be_looked_up_proves_nothing(lnd: FakeLnd, relays: int) -> None:
    """The first copy of an order is being paid, the second one is refused, and the relay lets no look-up through."""
    with FakeNwc(lnd, relays=relays) as wallet:
        wallet.refuse_next("QUOTA_EXCEEDED")
        wallet.relays[0].gate = lambda event: "swallow" if asks_for("lookup_invoice", wallet, event) else None
        answer = pay(wallet.client(), lnd, timeout_s=3)
        assert answer.reply is R.UNKNOWN
        assert answer.reason is not None
        assert "QUOTA_EXCEEDED" in answer.reason


@pytest.mark.parametrize("code", ["RATE_LIMITED", "INTERNAL"])
def test_a_refusal_whose_look_up_is_refused_too_is_looked_up_again(wallet: FakeNwc, lnd: FakeLnd, code: str) -> None:
    """The first copy of an order is being paid; taken for unpaid, it would be bought a second time."""
    looks_up, refused = wallet._lookup_invoice, list[str]()

    def too_busy(params: dict[str, Any], run: int) -> dict[str, Any]:
        if not refused:
            refused.append(code)
            raise _WalletError(code, "slow down")
        return looks_up(params, run)

    wallet._lookup_invoice = too_busy  # type: ignore[method-assign]
    client, invoice = wallet.client(), lnd.invoice(21_000)
    lnd.hang_next()
    assert pay(client, lnd, invoice=invoice, timeout_s=1).reply in (R.UNKNOWN, R.IN_FLIGHT)
    refused.clear()
    wallet.refuse_next("QUOTA_EXCEEDED")
    assert pay(client, lnd, invoice=invoice).reply is R.IN_FLIGHT
    assert refused == [code]


def test_a_refusal_is_none_while_the_wallet_refuses_to_look_up(wallet: FakeNwc, lnd: FakeLnd) -> None:
    def too_busy(params: dict[str, Any], run: int) -> dict[str, Any]:
        raise _WalletError("RATE_LIMITED", "slow down")

    wallet._lookup_invoice = too_busy  # type: ignore[method-assign]
    wallet.refuse_next("QUOTA_EXCEEDED")
    answer = pay(wallet.client(), lnd, timeout_s=4)
    assert (answer.reply, answer.reason) == (R.UNKNOWN, "QUOTA_EXCEEDED; the look-up: RATE_LIMITED: slow down")


def test_a_refusal_is_looked_up_over_another_relay(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """One relay that lets no look-up through must not block the page until the invoice has long expired."""
    monkeypatch.setattr(relays_module, "QUESTION_S_MAX", 1.0)
    with FakeNwc(lnd, relays=2) as wallet:
        wallet.refuse_next("QUOTA_EXCEEDED")
        wallet.relays[0].gate = lambda event: "swallow" if asks_for("lookup_invoice", wallet, event) else None
        assert pay(wallet.client(), lnd, timeout_s=10).reply is R.REFUSED


def test_a_refusal_of_what_has_begun_is_none(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The wallet says that nothing has begun, and has a failed payment; it settles that later."""
    wallet.fail_next("QUOTA_EXCEEDED", settles_later=True)
    assert pay(wallet.client(), lnd).reply is R.FAILED_SO_FAR


def test_an_answer_that_comes_while_a_look_up_begins_is_heard(
    wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost, and a failed payment waited for as long as the call may take."""
    monkeypatch.setattr(order_module, "LOOK_AFTER_S", 0.5)
    real = _Peer._answer

    def answers_first(peer: Any, message: Any) -> None:
        if message[0] == "REQ":
            wallet.deliver_answers()
        real(peer, message)

    monkeypatch.setattr(_Peer, "_answer", answers_first)
    wallet.fail_next()
    wallet.late_next()
    began = time.monotonic()
    answer = pay(wallet.client(), lnd, timeout_s=20)
    assert (answer.reply, answer.reason) == (R.FAILED_SO_FAR, "PAYMENT_FAILED: no route")
    assert time.monotonic() - began < 15


# Relays


@pytest.mark.parametrize(
    "text", ["blocked: no", "rate-limited: slow down", "invalid: too old", "restricted: x", "mute: nobody listens"]
)
def test_an_order_that_the_relay_refuses_has_reached_nobody(wallet: FakeNwc, lnd: FakeLnd, text: str) -> None:
    """The row can end: the wallet never saw the order."""
    wallet.refuse_at_relay_next(text)
    answer = pay(wallet.client(), lnd)
    assert answer.reply is R.REFUSED
    assert answer.reason is not None
    assert text in answer.reason
    assert orders(wallet) == []


@pytest.mark.parametrize("text", ["error: database", "duplicate: seen", "", "no thanks"])
def test_an_order_that_the_relay_may_have_passed_on_is_unknown(wallet: FakeNwc, lnd: FakeLnd, text: str) -> None:
    """Not every refusal comes before the event has gone to those who listen."""
    wallet.refuse_at_relay_next(text)
    assert pay(wallet.client(), lnd).reply is R.UNKNOWN


def test_a_relay_that_refuses_what_it_has_passed_on_is_found_out(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """Its word isn't the last: the wallet is asked whether it has a payment all the same."""
    relay = wallet.relays[0]
    wallet.lnd.hang_next()

    def lies(event: dict[str, Any]) -> str | None:
        if event["kind"] != 23194 or wallet._read(event)["method"] != "pay_invoice":
            return None
        relay.heard(event)
        wallet.lnd.wait_for(lambda lnd: len(lnd.payments) == 1)
        return "blocked: never heard of it"

    relay.gate = lies
    assert pay(wallet.client(), lnd).reply is R.IN_FLIGHT


def test_a_refusal_of_a_relay_that_hides_the_wallet_is_unknown(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """It may have passed the order on, and only the wallet's word that it has no such payment shows that it hasn't."""
    relay = wallet.relays[0]
    wallet.lnd.hang_next()  # an answer of the wallet's own would come before anybody asks for it

    def lies(event: dict[str, Any]) -> str | None:
        if asks_for("lookup_invoice", wallet, event):
            return "swallow"
        if not asks_for("pay_invoice", wallet, event):
            return None
        relay.heard(event)
        return "blocked: never heard of it"

    relay.gate = lies
    assert pay(wallet.client(), lnd, timeout_s=3).reply is R.UNKNOWN
    wallet.lnd.wait_for(lambda lnd: len(lnd.payments) == 1)


def test_relays_are_tried_in_turn_with_the_same_order(lnd: FakeLnd) -> None:
    """One relay may be down or refuse; the order that the next one gets is the same event, which a wallet handles once."""
    with FakeNwc(lnd, relays=3) as wallet:
        client = wallet.client()
        wallet.relays[0].stop()
        wallet.refuse_at_relay_next("rate-limited: slow down")
        assert pay(client, lnd).reply is R.SUCCEEDED
        [refused], [taken] = [
            [each["id"] for each in relay.events if each["kind"] == 23194 and wallet._read(each)["method"] == "pay_invoice"]
            for relay in wallet.relays[1:]
        ]
        assert [refused] == [taken] == orders(wallet)
        assert client.get_info().network == "bitcoin-regtest"


def test_refused_by_all_relays_is_refused(lnd: FakeLnd) -> None:
    """Only if all of them have refused it: one that was silent may have passed it on."""
    with FakeNwc(lnd, relays=2) as wallet:
        wallet.refuse_at_relay_next("blocked: no", times=2)
        assert pay(wallet.client(), lnd).reply is R.REFUSED
        wallet.refuse_at_relay_next("error: oops")
        assert pay(wallet.client(), lnd).reply is R.UNKNOWN
        assert orders(wallet) == []


def test_a_relay_at_which_the_wallet_is_not_is_passed_over(lnd: FakeLnd) -> None:
    """An order there would be lost, and block its page."""
    with FakeNwc(lnd) as other, FakeNwc(lnd, relays=2) as wallet:
        wallet.relays[0].heard = lambda event: None
        wallet.relays[0].forget()
        client = wallet.client()
        answer = pay(client, lnd, timeout_s=4)
        assert answer.reply is R.SUCCEEDED
        assert [event for event in wallet.relays[0].events if wallet._read(event)["method"] == "pay_invoice"] == []
        assert other.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["down", "service down", "status", "http", "silent", "no tls", "no name"])
def test_no_order_leaves_if_the_wallet_cannot_be_reached(lnd: FakeLnd, wallet: FakeNwc, fault: str) -> None:
    """Refused, not unknown: not a byte of it has left, so the page isn't blocked. No wait is longer than allowed."""
    uri = wallet.uri
    port = f"%3A{wallet.relays[0].port}"
    with listening_socket() as other:
        if fault == "down":
            wallet.relays[0].stop()
        elif fault == "service down":
            wallet.stop_service()
        elif fault == "status":
            wallet.relays[0].refuses_with = 403
        elif fault == "http":
            answering(other, b"HTTP/1.1 302 Found\r\nLocation: " + wallet.relays[0].url.encode() + b"\r\n\r\n")
        elif fault == "no name":
            uri = uri.replace("ws%3A%2F%2F127.0.0.1" + port, "wss%3A%2F%2Frelay.invalid")
        if fault in ("http", "silent"):
            uri = uri.replace(port, f"%3A{other.getsockname()[1]}")
        elif fault == "no tls":
            uri = uri.replace("ws%3A", "wss%3A")
        client, began = wallet.client(uri=uri), time.monotonic()
        answer = pay(client, lnd, timeout_s=2)
        assert answer.reply is R.REFUSED, answer
        assert client.track(b"\x01" * 32, timeout_s=2, follow=True).reply is R.UNKNOWN
        for ask in (
            lambda: client.check_ready(2),
            lambda: client.get_info(timeout_s=2),
            lambda: client.spendable_msat(timeout_s=2),
        ):
            with pytest.raises(FundingError) as caught:
                ask()
            assert wallet.secret not in str(caught.value)
        assert time.monotonic() - began < 15
    assert orders(wallet) == []


def test_a_connection_that_the_relay_has_dropped_is_made_anew(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """Relays drop idle connections; an order into a dead one would be unknown."""
    client = wallet.client()
    for _ in range(3):
        assert pay(client, lnd).reply is R.SUCCEEDED
        wallet.relays[0].cut()
    assert client.track(b"\x01" * 32, timeout_s=10, follow=False).reply is R.FAILED_SO_FAR
    wallet.restart()
    assert client.get_info().network == "bitcoin-regtest"


def test_a_connection_that_hangs_is_noticed_before_an_order(wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that has forgotten the connection lets bytes vanish: the relay must answer a ping first."""
    monkeypatch.setattr(relays_module, "PING_AFTER_S", 0.0)
    client = wallet.client()
    assert pay(client, lnd).reply is R.SUCCEEDED
    monkeypatch.setattr(Link, "is_alive", lambda link, deadline: False)
    assert pay(client, lnd).reply is R.SUCCEEDED


# Rights


@pytest.mark.parametrize("lacks", ["pay_invoice", "lookup_invoice"])
def test_a_connection_that_may_not_pay_or_look_up_is_refused(lnd: FakeLnd, lacks: str) -> None:
    """Without look-ups no lost answer could ever be found again."""
    methods = [name for name in ("pay_invoice", "lookup_invoice", "get_info") if name != lacks]
    with FakeNwc(lnd, methods=methods) as wallet:
        client = wallet.client()
        with pytest.raises(FundingError, match=lacks) as caught:
            client.check_ready(10)
        assert caught.value.spent is False
        assert pay(client, lnd).reply is R.REFUSED
        assert orders(wallet) == []


def test_a_wallet_that_may_not_tell_of_itself_names_its_methods_in_its_info_event(lnd: FakeLnd) -> None:
    """get_info isn't needed for paying."""
    with FakeNwc(lnd, methods=("pay_invoice", "lookup_invoice")) as wallet:
        client = wallet.client()
        assert pay(client, lnd).reply is R.SUCCEEDED
        assert client.get_info().network == ""
        assert client.get_methods() == {"pay_invoice", "lookup_invoice"}
        assert client.spendable_msat(timeout_s=5) is None
        with pytest.raises(FundingError, match="list_transactions"):
            list(client.list_payments())


def test_a_list_that_cannot_be_read_is_not_an_empty_one(wallet: FakeNwc) -> None:
    """An audit would say that the wallet hasn't made the payments that are booked."""
    wallet._list_transactions = lambda params, run: {"transactions": {"of": "no use"}}  # type: ignore[method-assign]
    with pytest.raises(FundingError, match="can't be read"):
        list(wallet.client().list_payments())


def test_a_list_without_an_end_ends(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """A wallet that doesn't know offsets, and says something new each time, would be asked thousands of times."""
    client = wallet.client()
    assert pay(client, lnd).reply is R.SUCCEEDED
    real, asked = wallet._list_transactions, list[int]()

    def without_offsets(params: dict[str, Any], run: int) -> dict[str, Any]:
        asked.append(1)
        told = real(params | {"offset": 0}, run)
        return {"transactions": [each | {"metadata": {"n": len(asked)}} for each in told["transactions"]]}

    wallet._list_transactions = without_offsets  # type: ignore[method-assign]
    assert len(list(client.list_payments())) == 1
    assert len(asked) == 2


def test_the_balance_and_the_list(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The audit reads the list page by page; a wallet's page is shorter than asked for."""
    client = wallet.client()
    before = client.spendable_msat(timeout_s=5)
    invoices = [lnd.invoice(1_000 + number) for number in range(7)]
    for invoice in invoices:
        assert pay(client, lnd, invoice=invoice).reply is R.SUCCEEDED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routeweiler_sync.testing.fake_nwc._PAGE_MAX", 3)
        listed = {payment.payment_hash: payment for payment in client.list_payments()}
    assert {payment.status for payment in listed.values()} == {"SUCCEEDED"}
    assert [(listed[each.payment_hash.hex()].amount_msat, listed[each.payment_hash.hex()].fee_msat) for each in invoices] == [
        (1_000 + number, FEE_MSAT) for number in range(7)
    ]
    assert before is not None
    assert client.spendable_msat(timeout_s=5) == before - lnd.spent_msat


@pytest.mark.parametrize(
    ("told", "network"),
    [("mainnet", "bitcoin"), ("bitcoin", "bitcoin"), ("testnet", "bitcoin-testnet"), ("signet", "bitcoin-signet"), (None, "")],
)
def test_the_network_is_told_if_the_wallet_tells_it(wallet: FakeNwc, told: str | None, network: str) -> None:
    """Wallets call it as lnd does, or as LDK does."""
    wallet.network = told
    assert wallet.client().get_info().network == network


def test_a_limit_below_the_wallets_own_is_refused(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """No order can lower it, so the payment might cost more than was allowed."""
    client, invoice = wallet.client(), lnd.invoice(2_000_000)
    assert client.own_fee_cap_msat(invoice.bolt11, timeout_s=1) == 20_000
    answer = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=19_999, timeout_s=5)
    assert answer.reply is R.REFUSED
    with pytest.raises(FundingError):
        client.pay_invoice(invoice.bolt11, max_fee_msat=19_999)
    assert lnd.payments == []
    assert client.pay_invoice(invoice.bolt11, max_fee_msat=20_000) == invoice.preimage
    assert client.track_payment(invoice.payment_hash.hex()).state == "succeeded"


def test_without_a_ledger_a_failure_is_told_as_pending(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """A program that reads "failed" pays another invoice."""
    wallet.fail_next()
    with pytest.raises(PaymentPendingError) as caught:
        wallet.client().pay_invoice(lnd.invoice(21_000).bolt11, max_fee_msat=CAP_MSAT)
    assert caught.value.spent is None


# Threads, interrupts, forks, libraries


def test_threads_each_get_their_own_answer(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """No answer may go to another thread's payment; connections are kept up to a bound."""
    client, ends = wallet.client(), dict[bytes, WalletAnswer]()
    invoices = [lnd.invoice(1_000 + number) for number in range(24)]

    def work(invoice: Any) -> None:
        ends[invoice.payment_hash] = pay(client, lnd, invoice=invoice)

    threads = [threading.Thread(target=work, args=(invoice,)) for invoice in invoices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [ends[each.payment_hash].preimage for each in invoices] == [each.preimage for each in invoices]
    assert len(client._pool._state().idle) <= relays_module.IDLE_LINKS_MAX
    client.close()
    client.close()
    assert pay(client, lnd).reply is R.SUCCEEDED


class Stop(Exception):
    """What a signal handler of the program raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_an_interrupt_at_any_moment_hangs_nothing_and_pays_once(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """Ctrl-C reaches the main thread at any instruction; the next call must work, and find what became of the first."""
    client = wallet.client()

    def stop(*args: object) -> None:
        raise Stop

    old = signal.signal(signal.SIGALRM, stop)
    try:
        for number in range(40):
            invoice = lnd.invoice(1_000)
            with suppress(Stop):
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (number + 1))
                pay(client, lnd, invoice=invoice)
                signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            found = client.track(invoice.payment_hash, timeout_s=20, follow=True)
            assert found.reply in (R.SUCCEEDED, R.FAILED_SO_FAR, R.IN_FLIGHT), found
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert pay(client, lnd).reply is R.SUCCEEDED
    assert len(orders(wallet)) == len(set(orders(wallet)))


def test_no_order_leaves_once_its_caller_was_told_that_none_has(
    wallet: FakeNwc, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is slow must not send it after the call has ended as refused."""
    client, slow = wallet.client(), threading.Event()
    client.check_ready(10)
    from routeweiler_sync.funding.nwc.events import Keyring

    real = Keyring.request

    def late(keyring: Keyring, method: str, params: dict[str, Any], **kwargs: Any) -> Any:
        if method == "pay_invoice":
            slow.wait(20)
        return real(keyring, method, params, **kwargs)

    monkeypatch.setattr(Keyring, "request", late)
    assert pay(client, lnd, timeout_s=1).reply is R.REFUSED
    slow.set()
    client.check_ready(10)
    time.sleep(0.5)  # nothing to wait for: it must not come
    assert orders(wallet) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_fork_amid_payments_leaves_both_sides_working(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """The child has its parent's connections and none of its threads."""
    client, stop = wallet.client(), threading.Event()
    assert pay(client, lnd).reply is R.SUCCEEDED
    busy = [threading.Thread(target=lambda: [pay(client, lnd) for _ in iter(stop.is_set, True)]) for _ in range(3)]
    for thread in busy:
        thread.start()
    invoices = [lnd.invoice(777) for _ in range(5)]
    try:
        for invoice in invoices:
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                with suppress(BaseException):
                    os._exit(0 if pay(client, lnd, invoice=invoice).reply is R.SUCCEEDED else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        for thread in busy:
            thread.join(60)
    assert all(lnd.settled(invoice.payment_hash) for invoice in invoices)
    assert pay(client, lnd).reply is R.SUCCEEDED


@pytest.mark.parametrize("name", ["nostr_sdk", "websockets.client"])
def test_a_missing_library_is_named_with_what_installs_it(wallet: FakeNwc, lnd: FakeLnd, name: str) -> None:
    """A user who has installed the package without the extra needs one command, and has paid nothing."""
    client = wallet.client()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        with pytest.raises(FundingError, match=r"pip install 'routeweiler_sync\[nwc\]'"):
            client.check_ready(5)
        assert pay(client, lnd).reply is R.REFUSED
    assert pay(client, lnd).reply is R.SUCCEEDED


# The WebSocket


def test_a_flood_and_broken_texts_are_no_answer(wallet: FakeNwc, lnd: FakeLnd) -> None:
    """A relay may send anything: the call ends in its time, and believes nothing."""
    relay, stop = wallet.relays[0], threading.Event()
    client = wallet.client()
    client.check_ready(10)
    nonsense: list[Any] = [
        "x",
        ["EVENT"],
        ["EVENT", "a", 7],
        ["OK", 1, 2],
        ["EOSE", {}],
        ["CLOSED", "b"],
        ["NOTICE", "hi"],
        {},
        None,
    ]

    def flood() -> None:
        while not stop.is_set():
            for peer in list(relay._peers):
                for each in nonsense:
                    with peer._lock, suppress(Exception):
                        peer._protocol.send_text(json.dumps(each).encode())
                        peer._flush()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        began = time.monotonic()
        assert pay(client, lnd).reply is R.SUCCEEDED
        wallet.drop_next("order")
        assert pay(client, lnd, timeout_s=1).reply is R.UNKNOWN
        assert time.monotonic() - began < 25
    finally:
        stop.set()
        thread.join(10)


def test_bytes_that_could_not_leave_are_told_from_those_that_may_have(wallet: FakeNwc) -> None:
    """An order of which nothing has left is refused; one of which a part may have is unknown."""
    link = Link(wallet.relays[0].url, time.monotonic() + 5)
    link._socket.shutdown(socket.SHUT_WR)
    with pytest.raises(LinkError) as caught:
        link.send("x", time.monotonic() + 5)
    assert caught.value.sent is False
    link = Link(wallet.relays[0].url, time.monotonic() + 5)
    with pytest.raises(LinkError) as caught:  # more than the buffers hold, to a relay that has stopped reading
        wallet.relays[0]._peers.copy().pop()._lock.acquire()
        link.send("x" * 50_000_000, time.monotonic() + 0.5)
    assert caught.value.sent is True
    wallet.relays[0].cut()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_relay_must_show_a_certificate_that_is_trusted(
    wallet: FakeNwc, lnd: FakeLnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    """With TLS a relay is what its name says; with another's certificate nothing is ordered, and the error says why."""
    authority = trustme.CA()
    roots = tmp_path / "roots.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(roots))
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with listening_socket() as listener:
        in_tls(listener, context, wallet.relays[0].port)
        uri = wallet.uri.replace(
            f"ws%3A%2F%2F127.0.0.1%3A{wallet.relays[0].port}", f"wss%3A%2F%2Flocalhost%3A{listener.getsockname()[1]}"
        )
        answer = pay(wallet.client(uri=uri), lnd, timeout_s=10)
    if is_trusted:
        assert answer.reply is R.SUCCEEDED, answer
    else:
        assert answer.reply is R.REFUSED
        assert "certificate isn't trusted" in (answer.reason or "")


def in_tls(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Pass what comes in TLS on to ``port``, and back."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                outside, inside = context.wrap_socket(connection, server_side=True), socket.create_connection(("127.0.0.1", port))
                for pair in ((outside, inside), (inside, outside)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


@contextmanager
def listening_socket() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def answering(listener: socket.socket, answer: bytes) -> None:
    """Answer each connection with these bytes."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(4_096)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
