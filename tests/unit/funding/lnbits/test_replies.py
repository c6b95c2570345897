"""Every answer of LNbits is read for what it proves about the money, and for nothing more."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from routeweiler_sync.funding.lnbits.replies import (
    PAYMENT_ERROR,
    PENDING_REASON,
    RULES,
    conclude,
    detail_of,
    read_list,
    read_lookup,
    read_order,
    rule_for,
)
from routeweiler_sync.funding.replies import REASON_CHARS_MAX, WalletAnswer, WalletReply

PREIMAGE = b"\x07" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
OTHER = hashlib.sha256(b"other").digest()

EXISTS, REFUSED, FAILED = WalletReply.EXISTS, WalletReply.REFUSED, WalletReply.FAILED_FOR_GOOD
#: As LNbits 1.6.2 writes them: status, detail, what it proves, whether it does so without a look-up.
ORDERS = [
    (520, "Payment already paid.", EXISTS, False),
    (520, "Payment is still pending.", EXISTS, False),
    (520, "Internal invoice already paid.", EXISTS, False),
    (520, "Failed payment was already paid on the fundingsource.", EXISTS, False),
    (400, "Payment already exists", EXISTS, False),
    (520, "Payment is failed node, retrying is not possible.", FAILED, False),
    (520, "Payment failed: FAILURE_REASON_NO_ROUTE", FAILED, False),
    (520, "Payment failed: invoice expired. Valid until 2026-01-01 00:00:00 +0000 UTC", FAILED, False),
    (520, "Payment failed: VoidWallet cannot pay invoices.", FAILED, False),
    (520, "Insufficient balance.", REFUSED, False),
    (520, "You must reserve at least (9990  sat) to cover potential routing fees.", REFUSED, False),
    (520, "Bolt11 decoding failed.", REFUSED, False),
    (520, "Amountless invoices not supported.", REFUSED, False),
    (520, "Invoice amount 20000000 sats is too high. Max allowed: 10000000 sats.", REFUSED, False),
    (520, "Invalid invoice. Bolt11 changed.", REFUSED, False),
    (520, "Internal payment not found.", REFUSED, False),
    (520, "Only incoming payments allowed.", REFUSED, False),
    (520, "Wallet does not have permission to pay invoices.", REFUSED, False),
    (520, "Could not fetch wallet '948af901da26497490d1ddd972f6e7b5'.", REFUSED, False),
    (520, "The time limit of 60 seconds between payments has been reached.", REFUSED, False),
    (400, "Daily withdrawal limit of 1000 sats reached.", REFUSED, False),
    (400, "It is not allowed to spend funds from this server.", REFUSED, False),
    (400, "Missing BOLT11 invoice", REFUSED, False),
    (400, "Missig invoice amount.", REFUSED, False),
    (401, "No Api Key provided.", REFUSED, True),
    (401, "The session has ended.", REFUSED, False),
    (403, "Invoice (or Admin) key required.", REFUSED, True),
    (403, "Your address is blocked.", REFUSED, False),
    (404, "Wallet not found.", REFUSED, True),
    (429, "Rate limit exceeded: 200 per 1 minute", REFUSED, False),
]
#: Answers to an order that prove nothing, although some look as if they did.
PROVE_NOTHING: list[tuple[int, Any]] = [
    (520, {"detail": "Something went wrong.", "status": "failed"}),
    (520, {"detail": "Insufficient balance. Or so", "status": "failed"}),
    (520, None),
    (500, {"detail": "Unexpected error! ID: BrhXHPz5QTwd6GY3crc4tE"}),
    (502, None),
    (504, {"detail": "Gateway Timeout"}),
    (404, {"detail": "Not Found"}),
    (404, {"detail": "Payment does not exist."}),
    (404, None),
    (403, None),
    (401, "<html>"),
    (429, None),
    (200, {"status": "success"}),
    (201, None),
    (201, {"status": "success"}),
    (201, []),
    (520, {"detail": ["a", 1, None]}),
    (520, {"detail": 7}),
]


def row(**fields: Any) -> dict[str, Any]:
    """A row as LNbits 1.6.2 shows it."""
    return {
        "checking_id": HASH.hex(),
        "payment_hash": HASH.hex(),
        "amount": -21_000,
        "fee": -1_000,
        "status": "success",
        "preimage": PREIMAGE.hex(),
    } | fields


@pytest.mark.parametrize(("status", "detail", "reply", "stands_alone"), ORDERS, ids=[order[1][:40] for order in ORDERS])
def test_an_error_of_an_order_is_read_by_its_row(status: int, detail: str, reply: WalletReply, stands_alone: bool) -> None:
    """A refusal read as unknown blocks a page for ever; read as more than it is, another invoice is paid beside the first."""
    body = {"error" if status == 429 else "detail": detail, "status": "failed"}
    answer, rule = read_order(status, body, HASH), rule_for("pay", status, body)
    assert answer.reply is reply
    assert answer.reason == detail.removesuffix(".")
    assert rule is not None
    assert rule.stands_alone is stands_alone


def test_every_row_of_the_table_has_an_example_here() -> None:
    """A row without a test is a guess."""
    used = [rule_for("pay", status, {"detail": detail}) for status, detail, _, _ in ORDERS]
    used.append(rule_for("lookup", 404, {"detail": "Payment does not exist."}))
    assert {id(rule) for rule in used} == {id(rule) for rule in RULES}
    assert all(rule.why for rule in RULES)


@pytest.mark.parametrize(("status", "body"), PROVE_NOTHING, ids=[f"{status} {body}"[:50] for status, body in PROVE_NOTHING])
def test_any_other_answer_to_an_order_proves_nothing(status: int, body: Any) -> None:
    """LNbits goes on paying behind a proxy's error page: read as a refusal, the invoice would be paid twice over."""
    answer = read_order(status, body, HASH)
    assert answer.reply is WalletReply.UNKNOWN
    assert answer.reason
    assert rule_for("pay", status, body) is None


def test_a_payment_at_once_has_preimage_amount_and_cost() -> None:
    """The fee is negative there, and the service fee is in it: booked as it stands, the budget would grow."""
    answer = read_order(201, row(), HASH)
    assert (answer.reply, answer.preimage, answer.amount_msat, answer.fee_msat) == (WalletReply.SUCCEEDED, PREIMAGE, 21_000, 1_000)


@pytest.mark.parametrize("fee", [None, "1000", True, 10**30])
def test_a_cost_that_cannot_be_read_is_not_taken_for_none(fee: Any) -> None:
    """None books the whole reserve; 0 would book less than was spent."""
    assert read_order(201, row(fee=fee), HASH).fee_msat is None


def test_a_pending_order_is_in_flight_and_says_what_to_do_if_it_stays_so() -> None:
    """Whoever waits for a payment that never reached the node must learn how to end it."""
    answer = read_order(201, row(status="pending", preimage=None, fee=-2_000), HASH)
    assert (answer.reply, answer.reason, answer.preimage) == (WalletReply.IN_FLIGHT, PENDING_REASON, None)
    assert "payments abandon" in PENDING_REASON
    assert len(PENDING_REASON) < REASON_CHARS_MAX


@pytest.mark.parametrize("preimage", [None, ""])
def test_a_success_whose_preimage_isnt_told_yet_is_asked_about_again(preimage: Any) -> None:
    """Else the row would be settled without a token, and a preimage that comes a moment later would never be asked for."""
    assert read_order(201, row(preimage=preimage), HASH).reply is WalletReply.UNKNOWN
    assert read_lookup(200, {"details": row(preimage=preimage)}, HASH).reply is WalletReply.UNKNOWN


@pytest.mark.parametrize("preimage", ["00" * 32, "zz", 7])
def test_a_success_without_its_preimage_is_no_success(preimage: Any) -> None:
    """The money has left, and there is no proof of it."""
    assert read_order(201, row(preimage=preimage), HASH).reply is WalletReply.WRONG_PREIMAGE


def test_a_row_of_another_payment_proves_nothing() -> None:
    """The invoice's own row of the payee, in the same wallet, has the same hash and a success of its own."""
    for answered in (row(payment_hash=OTHER.hex()), row(amount=21_000), row(amount=True), row(amount="-1"), row(amount=None)):
        assert read_order(201, answered, HASH).reply is WalletReply.UNKNOWN
        assert read_lookup(200, {"paid": True, "details": answered}, HASH).reply is WalletReply.UNKNOWN
        assert read_list(200, {"data": [answered]}, HASH).reply in (WalletReply.UNKNOWN, WalletReply.NOT_FOUND)


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        ("success", WalletReply.SUCCEEDED),
        ("failed", WalletReply.FAILED_FOR_GOOD),
        ("pending", WalletReply.IN_FLIGHT),
        ("refunded", WalletReply.UNKNOWN),
        (None, WalletReply.UNKNOWN),
    ],
)
def test_a_lookup_and_the_list_say_how_the_row_stands(status: Any, reply: WalletReply) -> None:
    """Only these three states are LNbits'; a fourth must not end a row."""
    assert read_lookup(200, {"paid": False, "details": row(status=status)}, HASH).reply is reply
    assert read_list(200, {"data": [row(status=status)], "total": 1}, HASH).reply is reply


def test_an_unknown_hash_is_told_by_its_text_alone() -> None:
    """A wrong path says 404 as well, and knows nothing of payments."""
    assert read_lookup(404, {"detail": "Payment does not exist."}, HASH).reply is WalletReply.NOT_FOUND
    for body in ({"detail": "Not Found"}, {"detail": "Wallet not found."}, None, "Payment does not exist."):
        assert read_lookup(404, body, HASH).reply is WalletReply.UNKNOWN


def test_a_lookup_that_does_not_know_the_key_is_believed_for_a_preimage_alone() -> None:
    """LNbits answers a look-up with a wrong key, about anybody's row: its "failed" may be another's."""
    paid = read_lookup(200, {"paid": True, "preimage": PREIMAGE.hex()}, HASH)
    assert (paid.reply, paid.preimage, paid.fee_msat) == (WalletReply.SUCCEEDED, PREIMAGE, None)
    for body in (
        {"paid": False, "status": "failed"},
        {"paid": False},
        {"paid": True, "preimage": "00" * 32},
        {"paid": True},
        None,
        [],
    ):
        assert read_lookup(200, body, HASH).reply is WalletReply.UNKNOWN


NOT_FOUND = WalletAnswer(reply=WalletReply.NOT_FOUND, reason="Payment does not exist")
SILENCE = WalletAnswer(reply=WalletReply.UNKNOWN, reason="no answer")
PAID = WalletAnswer(reply=WalletReply.SUCCEEDED, preimage=PREIMAGE, amount_msat=21_000, fee_msat=1_000)


def concluded(status: int, body: Any, looked_up: WalletAnswer) -> WalletAnswer:
    return conclude(read_order(status, body, HASH), rule_for("pay", status, body), looked_up)


@pytest.mark.parametrize(("status", "detail", "reply", "stands_alone"), ORDERS, ids=[order[1][:40] for order in ORDERS])
def test_a_lookup_that_knows_the_payment_decides(status: int, detail: str, reply: WalletReply, stands_alone: bool) -> None:
    """Whatever the order was told (even that its invoice failed, or its key is wrong): a payment that was made was made."""
    body = {"detail": detail, "status": "failed"}
    failed = WalletAnswer(reply=WalletReply.FAILED_FOR_GOOD, reason="LNbits marks the payment as failed")
    pending = WalletAnswer(reply=WalletReply.IN_FLIGHT, reason=PENDING_REASON)
    assert concluded(status, body, PAID) == PAID
    assert concluded(status, body, pending) == pending
    assert concluded(status, body, failed).reply is WalletReply.FAILED_FOR_GOOD
    assert concluded(status, body, failed).reason == detail.removesuffix(".")


@pytest.mark.parametrize(("status", "detail", "reply", "stands_alone"), ORDERS, ids=[order[1][:40] for order in ORDERS])
def test_where_the_hash_is_not_known_only_refusals_hold(status: int, detail: str, reply: WalletReply, stands_alone: bool) -> None:
    """ "Payment failed" of a hash without a row is a contradiction, and ends nothing."""
    answer = concluded(status, {"detail": detail}, NOT_FOUND)
    assert answer.reply is (WalletReply.UNKNOWN if reply is FAILED else reply)
    assert detail.removesuffix(".") in str(answer.reason)


@pytest.mark.parametrize(("status", "detail", "reply", "stands_alone"), ORDERS, ids=[order[1][:40] for order in ORDERS])
def test_where_the_lookup_is_not_answered_little_holds(status: int, detail: str, reply: WalletReply, stands_alone: bool) -> None:
    """A proxy may have sent the order twice: the second is refused for the first one's reserve, which is being paid."""
    answer = concluded(status, {"detail": detail}, SILENCE)
    assert answer.reply is (reply if stands_alone or reply is EXISTS else WalletReply.UNKNOWN)


def test_an_order_without_an_answer_stays_unknown_unless_the_lookup_knows_it() -> None:
    """Not found proves nothing after an order whose answer was lost: it may arrive yet."""
    for looked_up in (NOT_FOUND, SILENCE):
        assert conclude(SILENCE, None, looked_up).reply is WalletReply.UNKNOWN
    assert conclude(SILENCE, None, PAID) == PAID


def test_a_pending_order_stays_in_flight_without_a_lookup() -> None:
    """A look-up takes half a minute with lnd: less patience isn't ignorance."""
    assert concluded(201, row(status="pending"), SILENCE).reply is WalletReply.IN_FLIGHT
    assert concluded(201, row(status="pending"), NOT_FOUND).reply is WalletReply.UNKNOWN
    assert concluded(201, row(status="failed"), SILENCE).reply is WalletReply.UNKNOWN
    assert concluded(201, row(preimage="00" * 32), SILENCE).reply is WalletReply.WRONG_PREIMAGE


def test_texts_are_short_and_hold_no_secret() -> None:
    """LNbits may pass on what its node says; it ends in logs."""
    text = f"Payment failed: preimage {PREIMAGE.hex()} and {'x' * 5_000}"
    reason = read_order(PAYMENT_ERROR, {"detail": text}, HASH).reason
    assert reason is not None
    assert len(reason) <= REASON_CHARS_MAX
    assert PREIMAGE.hex() not in reason
    assert PREIMAGE.hex() not in repr(read_order(201, row(), HASH))
    assert HASH.hex() in str(read_order(PAYMENT_ERROR, {"detail": f"Payment failed: {HASH.hex()}"}, HASH).reason)


def test_errors_of_fastapis_own_checks_are_read() -> None:
    """Else a request that LNbits can't read has no text at all."""
    assert detail_of({"detail": [{"msg": "JSON decode error"}, {"msg": "field required"}]}) == "JSON decode error; field required"
