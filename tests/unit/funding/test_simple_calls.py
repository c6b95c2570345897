"""What the calls without a ledger make of a wallet's answers: a return value, or an error that says what became of the money."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from routeweiler_sync.errors import FundingError, InvoicePaymentError, PaymentPendingError, PreimageMismatchError
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply as Reply
from routeweiler_sync.funding.simple_calls import pay, status_of
from routeweiler_sync.funding.wallet import NodeInfo, PaymentStatus, SentPayment
from routeweiler_sync.testing._lnd_book import sign_invoice

PREIMAGE = b"p" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
BOLT11 = sign_invoice(
    "11" * 32, payment_hash=HASH, amount_msat=21_000, memo="", expiry_s=3600, created_at=1_700_000_000, currency="bcrt"
)
PAID = WalletAnswer(reply=Reply.SUCCEEDED, preimage=PREIMAGE, amount_msat=21_000, fee_msat=7)


class Wallet:
    """Answers as told. What a test didn't expect to be asked raises IndexError."""

    def __init__(self, sent: WalletAnswer | None = None, tracked: WalletAnswer | None = None) -> None:
        self.sent, self.tracked, self.limits = sent, tracked, list[int]()

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        assert (bolt11, payment_hash, self.sent is None) == (BOLT11, HASH, False)
        self.limits.append(max_fee_msat)
        return self.sent  # type: ignore[return-value]

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        assert (payment_hash, self.tracked is None) == (HASH, False)
        return self.tracked  # type: ignore[return-value]

    def check_ready(self, timeout_s: float) -> None: ...

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        raise NotImplementedError


def answer(reply: Reply, **fields: Any) -> WalletAnswer:
    return WalletAnswer(reply=reply, reason="why", **fields)


def paying(sent: WalletAnswer, tracked: WalletAnswer | None = None, **options: Any) -> SentPayment:
    return pay(Wallet(sent, tracked), BOLT11, max_fee_msat=1_000, timeout_s=5, wallet="the wallet", **options)


@pytest.mark.parametrize("sent", [PAID, answer(Reply.EXISTS), answer(Reply.EXPIRED), answer(Reply.IN_FLIGHT)])
def test_a_payment_that_was_made_is_returned_whatever_its_order_was_answered(sent: WalletAnswer) -> None:
    """Paid earlier, and then expired or refused: read as unpaid, the money would be lost."""
    payment = paying(sent, PAID)
    assert (payment.payment_hash, payment.payment_preimage, payment.amount_msat, payment.fee_msat) == (HASH, PREIMAGE, 21_000, 7)


def test_a_fee_that_isn_t_told_is_the_most_that_was_allowed() -> None:
    assert paying(WalletAnswer(reply=Reply.SUCCEEDED, preimage=PREIMAGE, amount_msat=21_000, fee_msat=None)).fee_msat == 1_000


def test_without_a_limit_the_usual_one_holds() -> None:
    wallet = Wallet(PAID)
    pay(wallet, BOLT11, max_fee_msat=None, timeout_s=5, wallet="the wallet")
    pay(wallet, BOLT11, max_fee_msat=0, timeout_s=5, wallet="the wallet")
    assert wallet.limits == [10_000, 0]


@pytest.mark.parametrize(
    ("sent", "tracked", "error", "spent"),
    [
        (Reply.FAILED, None, InvoicePaymentError, False),
        (Reply.FAILED_FOR_GOOD, None, InvoicePaymentError, False),
        (Reply.FAILED_SO_FAR, None, PaymentPendingError, None),
        (Reply.REFUSED, None, FundingError, False),
        (Reply.UNKNOWN, None, PaymentPendingError, None),
        (Reply.NOT_FOUND, None, PaymentPendingError, None),
        (Reply.WRONG_PREIMAGE, None, PreimageMismatchError, True),
        (Reply.EXPIRED, Reply.NOT_FOUND, FundingError, False),
        (Reply.EXPIRED, Reply.FAILED, InvoicePaymentError, False),
        (Reply.EXPIRED, Reply.UNKNOWN, PaymentPendingError, None),
        (Reply.EXPIRED, Reply.FAILED_SO_FAR, PaymentPendingError, None),
        (Reply.EXISTS, Reply.IN_FLIGHT, PaymentPendingError, None),
        (Reply.EXISTS, Reply.NOT_FOUND, PaymentPendingError, None),
        (Reply.IN_FLIGHT, Reply.FAILED_FOR_GOOD, InvoicePaymentError, False),
        (Reply.IN_FLIGHT, Reply.NOT_FOUND, PaymentPendingError, None),
    ],
)
def test_what_isn_t_paid_raises_what_is_known_of_the_money(
    sent: Reply, tracked: Reply | None, error: type[Exception], spent: bool | None
) -> None:
    """ "Failed" for what may be settled yet would have another invoice paid in its place."""
    with pytest.raises(error) as caught:
        paying(answer(sent), None if tracked is None else answer(tracked))
    assert type(caught.value) is error
    assert caught.value.spent is spent  # type: ignore[attr-defined]


def test_a_wallet_that_may_pay_twice_is_never_said_to_pay_once() -> None:
    with pytest.raises(PaymentPendingError, match="Don't pay it again"):
        paying(answer(Reply.UNKNOWN), refuses_seconds=False)
    with pytest.raises(PaymentPendingError, match="neither pays it twice"):
        paying(answer(Reply.UNKNOWN))


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply.FAILED, "failed"),
        (Reply.FAILED_FOR_GOOD, "failed"),
        (Reply.FAILED_SO_FAR, "in_flight"),
        (Reply.IN_FLIGHT, "in_flight"),
        (Reply.NOT_FOUND, "unknown_hash"),
    ],
)
def test_a_payment_s_state_is_told_as_it_is_known(reply: Reply, state: str) -> None:
    status = status_of(Wallet(tracked=answer(reply)), HASH.hex(), timeout_s=5, wallet="the wallet")
    assert (status.state, status.preimage) == (state, None)


def test_a_paid_one_is_told_with_its_preimage_and_cost() -> None:
    assert status_of(Wallet(tracked=PAID), HASH, timeout_s=5, wallet="lnd") == PaymentStatus("succeeded", PREIMAGE, 21_000, 7)


def test_a_question_that_isn_t_answered_raises() -> None:
    with pytest.raises(FundingError, match=r"^The wallet can't be asked about payment [0-9a-f]{64}: why\."):
        status_of(Wallet(tracked=answer(Reply.UNKNOWN)), HASH, timeout_s=5, wallet="the wallet")
    with pytest.raises(PreimageMismatchError):
        status_of(Wallet(tracked=answer(Reply.WRONG_PREIMAGE, preimage=b"q" * 32)), HASH, timeout_s=5, wallet="the wallet")
    with pytest.raises(ValueError, match="31"):
        status_of(Wallet(), b"h" * 31, timeout_s=5, wallet="the wallet")
