"""Every answer of an NWC wallet, and every refusal of a relay, is read for what it proves about the money, and nothing more."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from routeweiler_sync.funding.nwc.replies import (
    PAY_RULES,
    RELAY_RULES,
    UNKNOWN_HASH,
    combined,
    error_of,
    never_arrived,
    own_fee_cap_msat,
    read_lookup,
    read_pay,
    status_of,
)
from routeweiler_sync.funding.replies import REASON_CHARS_MAX, WalletAnswer, WalletReply

PREIMAGE = b"\x07" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
R = WalletReply


def error(code: object, text: object = "") -> dict[str, Any]:
    return {"result_type": "pay_invoice", "error": {"code": code, "message": text}, "result": None}


def result(**fields: object) -> dict[str, Any]:
    return {"result_type": "pay_invoice", "error": None, "result": fields}


def settled(**fields: object) -> dict[str, Any]:
    told = {"type": "outgoing", "state": "settled", "preimage": PREIMAGE.hex(), "payment_hash": HASH.hex(), "amount": 10_000}
    return result(**told | {"fees_paid": 7} | fields)


#: One row of `PAY_RULES` after the other: code, text, and what it proves.
ROWS = [
    ("INTERNAL", "this invoice has already been paid", R.EXISTS),
    ("PAYMENT_FAILED", "no route", R.FAILED_SO_FAR),
    ("INTERNAL", "rpc error: code = Unavailable", R.UNKNOWN),
    ("OTHER", "", R.UNKNOWN),
    ("QUOTA_EXCEEDED", "budget", R.REFUSED),
    ("INSUFFICIENT_BALANCE", "", R.REFUSED),
    ("RESTRICTED", "", R.REFUSED),
    ("UNAUTHORIZED", "", R.REFUSED),
    ("NOT_IMPLEMENTED", "", R.REFUSED),
    ("UNSUPPORTED_ENCRYPTION", "", R.REFUSED),
    ("RATE_LIMITED", "", R.REFUSED),
]


@pytest.mark.parametrize(
    ("rule", "row"), list(zip(PAY_RULES, ROWS, strict=True)), ids=lambda each: str(getattr(each, "why", each))[:40]
)
def test_each_row_of_the_table(rule: Any, row: tuple[str, str, WalletReply]) -> None:
    """A refusal that is taken for an unknown outcome blocks a page; the other way round it pays twice."""
    code, text, reply = row
    assert rule.fits(code, text)
    answer = read_pay(error(code, text), HASH)
    assert answer.reply is reply is rule.reply
    assert answer.reason is not None
    assert answer.reason.startswith(code)
    assert rule.why


@pytest.mark.parametrize("code", ["PAYMENT_FAILED", "INTERNAL", "OTHER"])
@pytest.mark.parametrize(
    "text",
    [
        "this invoice has already been paid",
        "there is already a payment pending for this invoice",
        "invoice is already paid",
        "payment is in transition",
        "payment already exists",
        "AlreadyExists: Payment ALREADY IN FLIGHT",
    ],
)
def test_a_text_that_names_another_payment_sends_to_look_for_it(code: str, text: str) -> None:
    """The hash is paid or pending, and wallets have no code for that."""
    assert read_pay(error(code, f"rpc error: code = AlreadyExists desc = {text}"), HASH).reply is R.EXISTS


@pytest.mark.parametrize(
    "response",
    [
        error("SOMETHING_NEW", "?"),
        error("payment_failed", "?"),
        error(None, None),
        error(7, ["x"]),
        error("QUOTA_EXCEEDED ", ""),
        {"error": "QUOTA_EXCEEDED", "result": None},
        {"error": None, "result": None},
        {"error": {}},
        {},
        {"result": ["preimage"]},
        result(),
        result(preimage=None),
        result(preimage=""),
        result(preimage="00" * 32),
        result(preimage="zz" * 32),
        result(preimage=PREIMAGE.hex()[:-2]),
    ],
)
def test_what_is_not_in_the_table_proves_nothing(response: dict[str, Any]) -> None:
    """A wallet may have paid and say anything at all."""
    answer = read_pay(response, HASH)
    assert answer.reply is R.UNKNOWN
    assert answer.reason


@pytest.mark.parametrize("fees", [0, 7, 7.0])
def test_a_preimage_that_fits_is_paid_and_tells_the_fee(fees: object) -> None:
    """Some wallets write whole numbers with a fraction."""
    answer = read_pay(result(preimage=PREIMAGE.hex().upper(), fees_paid=fees), HASH)
    assert (answer.reply, answer.preimage, answer.fee_msat) == (R.SUCCEEDED, PREIMAGE, fees)


@pytest.mark.parametrize("fees", [None, -1, 7.5, "7", True, 10**30])
def test_a_fee_that_cannot_be_one_is_not_told(fees: object) -> None:
    """Booked as told, it would break the budget, or make it look better than it is."""
    assert read_pay(result(preimage=PREIMAGE.hex(), fees_paid=fees), HASH).fee_msat is None


def test_a_preimage_that_fits_outweighs_an_error() -> None:
    """It proves the payment, whatever else is said."""
    said = error("QUOTA_EXCEEDED") | {"result": {"preimage": PREIMAGE.hex()}}
    assert read_pay(said, HASH).reply is R.SUCCEEDED


def test_a_wrong_preimage_is_told_as_one() -> None:
    """The money may have left, so the spend is booked, and there is no token."""
    assert read_pay(result(preimage="11" * 32), HASH).reply is R.WRONG_PREIMAGE
    assert read_lookup(settled(preimage="11" * 32), HASH).reply is R.WRONG_PREIMAGE


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        (settled(), R.SUCCEEDED),
        (settled(type=None), R.SUCCEEDED),
        (settled(state="SETTLED"), R.SUCCEEDED),
        (settled(state=None, settled_at=1_700_000_000), R.SUCCEEDED),
        (settled(state="pending", preimage=""), R.IN_FLIGHT),
        (settled(state="accepted", preimage=""), R.IN_FLIGHT),
        (settled(state="failed"), R.FAILED_SO_FAR),
        (settled(state="expired"), R.FAILED_SO_FAR),
        (error("NOT_FOUND"), R.FAILED_SO_FAR),
        (settled(type="incoming"), R.UNKNOWN),
        (settled(payment_hash="12" * 32), R.UNKNOWN),
        (settled(preimage=""), R.UNKNOWN),
        (settled(state=None), R.UNKNOWN),
        (settled(state="new", preimage=None), R.UNKNOWN),
        (error("RESTRICTED"), R.UNKNOWN),
        (error("INTERNAL", "not found"), R.UNKNOWN),
        ({}, R.UNKNOWN),
    ],
)
def test_what_a_look_up_proves(response: dict[str, Any], reply: WalletReply) -> None:
    """ "Failed" and "not found" are never final here; an invoice of the wallet's own has a preimage without any payment."""
    answer = read_lookup(response, HASH)
    assert answer.reply is reply
    if reply is R.SUCCEEDED:
        assert (answer.amount_msat, answer.fee_msat, answer.preimage) == (10_000, 7, PREIMAGE)
    elif reply is not R.IN_FLIGHT:
        assert answer.reason


def test_not_found_says_that_an_order_may_be_on_its_way() -> None:
    """A user who reads "not found" would pay again by hand."""
    assert read_lookup(error("NOT_FOUND"), HASH).reason == UNKNOWN_HASH


TOLD = {
    "refused": WalletAnswer(reply=R.REFUSED, reason="QUOTA_EXCEEDED"),
    "no connection": WalletAnswer(reply=R.REFUSED, reason="UNAUTHORIZED: no such connection"),
    "failed": WalletAnswer(reply=R.FAILED_SO_FAR, reason="PAYMENT_FAILED"),
    "unknown": WalletAnswer(reply=R.UNKNOWN, reason="INTERNAL"),
    "wrong": WalletAnswer(reply=R.WRONG_PREIMAGE, preimage=b"\x11" * 32),
}


@pytest.mark.parametrize(
    ("told", "found", "reply"),
    [
        ("refused", settled(), R.SUCCEEDED),
        ("refused", settled(state="pending"), R.IN_FLIGHT),
        ("refused", settled(state="failed"), R.FAILED_SO_FAR),
        ("refused", settled(preimage=""), R.UNKNOWN),
        ("refused", error("NOT_FOUND"), R.REFUSED),
        ("refused", error("RATE_LIMITED"), R.UNKNOWN),
        ("refused", error("INTERNAL"), R.UNKNOWN),
        ("refused", error("UNAUTHORIZED"), R.UNKNOWN),
        ("refused", settled(state="odd"), R.UNKNOWN),
        ("refused", settled(payment_hash="00" * 32), R.UNKNOWN),
        ("refused", settled(type="incoming"), R.REFUSED),
        ("no connection", error("UNAUTHORIZED"), R.REFUSED),
        ("no connection", error("RATE_LIMITED"), R.UNKNOWN),
        ("failed", settled(), R.SUCCEEDED),
        ("failed", settled(state="pending"), R.IN_FLIGHT),
        ("failed", settled(state="failed"), R.FAILED_SO_FAR),
        ("failed", error("NOT_FOUND"), R.FAILED_SO_FAR),
        ("failed", error("INTERNAL"), R.FAILED_SO_FAR),
        ("unknown", settled(), R.SUCCEEDED),
        ("unknown", settled(state="pending"), R.IN_FLIGHT),
        ("unknown", settled(state="failed"), R.FAILED_SO_FAR),
        ("unknown", error("NOT_FOUND"), R.FAILED_SO_FAR),
        ("unknown", error("INTERNAL"), R.UNKNOWN),
        ("wrong", settled(), R.SUCCEEDED),
        ("wrong", settled(state="pending"), R.IN_FLIGHT),
        ("wrong", error("NOT_FOUND"), R.WRONG_PREIMAGE),
    ],
)
def test_an_answer_and_the_look_up_after_it(told: str, found: dict[str, Any], reply: WalletReply) -> None:
    """A wallet that handles an order twice refuses the second one while it pays the first."""
    answer = combined(TOLD[told], read_lookup(found, HASH))
    assert answer.reply is reply
    if reply is R.SUCCEEDED:
        assert answer.preimage == PREIMAGE


def test_a_missing_fee_is_taken_from_the_look_up() -> None:
    """Else the whole limit would be booked."""
    paid = read_pay(result(preimage=PREIMAGE.hex()), HASH)
    both = combined(paid, read_lookup(settled(), HASH))
    assert (both.reply, both.fee_msat, both.amount_msat) == (R.SUCCEEDED, 7, 10_000)
    neither = combined(paid, read_lookup(error("INTERNAL"), HASH))
    assert (neither.reply, neither.fee_msat) == (R.SUCCEEDED, None)


@pytest.mark.parametrize("rule", RELAY_RULES, ids=lambda rule: rule.prefix)
def test_each_refusal_of_a_relay(rule: Any) -> None:
    """Only a refusal before the event is passed on shows that the wallet never saw the order."""
    assert never_arrived(f"{rule.prefix}: some text") is rule.proves
    assert never_arrived(f" {rule.prefix.upper()} : some text") is rule.proves
    assert rule.why


@pytest.mark.parametrize("text", ["", "no", "block: x", "blockedness: x", "error: rate-limited: x", "duplicate: blocked: x"])
def test_any_other_refusal_of_a_relay_proves_nothing(text: str) -> None:
    """The relay may have passed the event on all the same."""
    assert never_arrived(text) is False


@pytest.mark.parametrize(("amount_msat", "cap_msat"), [(1, 10_000), (1_000_000, 10_000), (1_000_001, 10_001), (10**9, 10**7)])
def test_the_wallets_own_fee_limit(amount_msat: int, cap_msat: int) -> None:
    """Reserved too low, a payment would break the budget."""
    assert own_fee_cap_msat(amount_msat) == cap_msat


def test_a_text_of_the_wallet_is_short_and_without_secrets() -> None:
    """It goes into errors and logs; a wallet may repeat a preimage in it."""
    answer = read_pay(error("INTERNAL", f"line\nbreak {PREIMAGE.hex()} " + "x " * 1_000), HASH)
    assert answer.reason is not None
    assert PREIMAGE.hex() not in answer.reason
    assert "\n" not in answer.reason
    assert len(answer.reason) <= REASON_CHARS_MAX
    assert error_of(error("A" * 64 + "b2" * 40)) is not None


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"state": "settled"}, "SUCCEEDED"),
        ({"settled_at": 1}, "SUCCEEDED"),
        ({"state": "pending"}, "IN_FLIGHT"),
        ({}, "IN_FLIGHT"),
        ({"state": "failed"}, "FAILED"),
        ({"state": "what"}, None),
    ],
)
def test_the_state_in_a_list(told: dict[str, Any], status: str | None) -> None:
    """The audit compares it with the ledger."""
    assert status_of(told) == status
