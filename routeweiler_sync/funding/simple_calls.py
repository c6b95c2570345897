"""Pay an invoice, or ask about a payment, without a ledger: what every client of this package offers beside `WalletClient`.

Turns `WalletAnswer`s into return values and errors. Knows no wallet. How a purchase pays is left to `payments.lifecycle`.
"""

from __future__ import annotations

from .._core.deadline import monotonic_s
from .._core.preload import prepare_to_pay
from ..errors import ChallengeParseError, FundingError, InvoicePaymentError, PaymentPendingError, PreimageMismatchError
from ..protocol.invoice import Invoice, decode_invoice
from .replies import WalletAnswer, WalletReply
from .wallet import PaymentStatus, SentPayment, WalletClient, default_fee_cap_msat

#: The shortest time for the question after an order.
_TRACK_S_MIN = 1.0
#: After these answers to an order, only a question shows what became of the payment. A wallet may check the expiry before it looks
#: whether the invoice is paid.
_ASK_AFTER = frozenset({WalletReply.EXISTS, WalletReply.EXPIRED, WalletReply.IN_FLIGHT})


def pay(
    client: WalletClient, bolt11: str, *, max_fee_msat: int | None, timeout_s: float, wallet: str, refuses_seconds: bool = True
) -> SentPayment:
    """Order one payment, and wait for its outcome for at most ``timeout_s`` seconds. ``wallet`` is what errors call the wallet.

    ``max_fee_msat`` None means max(10 000 msat, 5 % of the amount). The fee of the returned payment is that limit if the wallet
    doesn't tell the fee. ``refuses_seconds``: the wallet refuses a second order of an invoice that it has paid or may pay.

    Raises: InvoicePaymentError if the payment has failed (nothing spent). FundingError if nothing was sent, or the wallet refused
    the order before it began (nothing spent). PaymentPendingError if the outcome isn't known. PreimageMismatchError if the wallet
    reports success but its preimage doesn't fit (spent).
    Money: the invoice's amount, and at most ``max_fee_msat`` for routing.
    """
    invoice = _read_invoice(bolt11)
    payment_hash, amount_msat = invoice.payment_hash, invoice.amount_msat
    limit = default_fee_cap_msat(amount_msat) if max_fee_msat is None else max_fee_msat
    deadline = monotonic_s() + timeout_s
    answer = sent = client.send(bolt11, payment_hash=payment_hash, max_fee_msat=limit, timeout_s=timeout_s)
    if sent.reply in _ASK_AFTER:
        answer = client.track(payment_hash, timeout_s=max(deadline - monotonic_s(), _TRACK_S_MIN), follow=True)
    if answer.reply is WalletReply.SUCCEEDED and answer.preimage is not None:
        return SentPayment(
            payment_hash=payment_hash,
            payment_preimage=answer.preimage,
            amount_msat=answer.amount_msat,
            fee_msat=limit if answer.fee_msat is None else answer.fee_msat,
        )
    raise _outcome_error(sent, answer, payment_hash.hex(), wallet, refuses_seconds=refuses_seconds)


def status_of(client: WalletClient, payment_hash: bytes | str, *, timeout_s: float, wallet: str) -> PaymentStatus:
    """Return what the wallet knows now of the payment with this hash (32 bytes or 64 hex digits).

    A failure that the wallet may take back is told as in flight, with its reason.

    Raises: FundingError if the wallet can't be asked. PreimageMismatchError if its preimage doesn't fit the payment hash.
    ValueError for a hash of another length.
    Money: none moves.
    """
    key = bytes.fromhex(payment_hash) if isinstance(payment_hash, str) else payment_hash
    if len(key) != 32:
        raise ValueError(f"a payment hash has 32 bytes, not {len(key)}")
    answer = client.track(key, timeout_s=timeout_s, follow=False)
    match answer.reply:
        case WalletReply.SUCCEEDED:
            return PaymentStatus("succeeded", answer.preimage, answer.amount_msat, answer.fee_msat or 0)
        case WalletReply.FAILED | WalletReply.FAILED_FOR_GOOD:
            return PaymentStatus("failed", failure_reason=answer.reason)
        case WalletReply.IN_FLIGHT:
            return PaymentStatus("in_flight")
        case WalletReply.FAILED_SO_FAR:
            return PaymentStatus("in_flight", failure_reason=answer.reason)
        case WalletReply.NOT_FOUND:
            return PaymentStatus("unknown_hash")
        case WalletReply.WRONG_PREIMAGE:
            raise _outcome_error(answer, answer, key.hex(), wallet)
    raise FundingError(
        f"{_begins(wallet)} can't be asked about payment {key.hex()}: {answer.reason}.", advice="Try again: asking spends nothing."
    )


def _read_invoice(text: str) -> Invoice:
    """Return the invoice in ``text``. Raises: FundingError for a text that can't be read or an invoice that can't be paid."""
    prepare_to_pay()
    try:
        return decode_invoice(text)
    except ChallengeParseError as error:
        raise FundingError(f"This isn't a BOLT-11 invoice that can be paid: {error}.", advice="Ask for another one.") from error


def _outcome_error(
    sent: WalletAnswer, answer: WalletAnswer, payment_hash: str, wallet: str, *, refuses_seconds: bool = True
) -> Exception:
    """Return the error to raise for a payment that didn't succeed.

    ``sent`` is the answer to the payment order, ``answer`` the last one: to the order, or to a question after it.
    """
    match sent.reply, answer.reply:
        case _, WalletReply.FAILED | WalletReply.FAILED_FOR_GOOD:
            is_final = answer.reply is WalletReply.FAILED_FOR_GOOD
            return InvoicePaymentError(
                f"The payment of {payment_hash} failed: {answer.reason}.",
                advice="Ask for a new invoice." if is_final else "The same invoice may be paid again until it expires.",
                payment_hash=payment_hash,
                failure_reason=answer.reason,
            )
        case _, WalletReply.WRONG_PREIMAGE:
            return PreimageMismatchError(
                f"{_begins(wallet)} reports that {payment_hash} is paid, but its preimage doesn't fit the payment hash.",
                advice=f"Keep the records of {wallet} as evidence.",
                payment_hash=payment_hash,
            )
        case WalletReply.REFUSED, _:
            return FundingError(
                f"{_begins(wallet)} didn't accept the order to pay {payment_hash}: {sent.reason}.",
                advice="Remove the cause, or ask for a new invoice.",
                payment_hash=payment_hash,
            )
        case WalletReply.EXPIRED, WalletReply.NOT_FOUND:
            return FundingError(
                f"{_begins(wallet)} doesn't pay {payment_hash} any more: {sent.reason}.",
                advice="Ask for a new invoice.",
                payment_hash=payment_hash,
            )
        case _, WalletReply.FAILED_SO_FAR:
            return PaymentPendingError(
                f"{_begins(wallet)} says that {payment_hash} has failed ({answer.reason or sent.reason}), and may settle it yet.",
                advice="Ask again once the invoice has expired, and don't pay another one before.",
                payment_hash=payment_hash,
            )
    return PaymentPendingError(
        f"The outcome of {payment_hash} isn't known ({answer.reason or answer.reply.value}).",
        advice=(
            "Pay the same invoice again, or track it: neither pays it twice."
            if refuses_seconds
            else "Track it. Don't pay it again, or another one in its place, before it is known."
        ),
        payment_hash=payment_hash,
    )


def _begins(wallet: str) -> str:
    """Return the wallet's name at the beginning of a sentence: ``lnd`` is written small there too."""
    return wallet if wallet == "lnd" else wallet[:1].upper() + wallet[1:]
