"""The error with which a purchase ends for its caller: what happened, and what to do next.

What ended it was decided in `wallet_rules` or by the server; nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.money import sats
from ..errors import (
    ChallengeExpiredError,
    FundingError,
    InvoicePaymentError,
    LedgerError,
    PaymentPendingError,
    PreimageMismatchError,
    RouteweilerError,
    TokenRefusedError,
)
from ..ledger.types import PaymentRow, PaymentState
from .wallet_rules import NextStep, WalletEvent

if TYPE_CHECKING:
    from .token import Token
    from .types import TokenRequest


_ASK_OPERATOR = "Ask the server's operator with the payment hash as proof, or Ledger.forget() it to buy anew."


def error_for(step: NextStep, row: PaymentRow, reason: str | None) -> RouteweilerError:
    """Return the error of the table's ``step``. ``reason``: the wallet's own words, if it gave any."""
    what = f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin}"
    reason = reason or row.failure_text
    if step is NextStep.RAISE_FAILED:
        return InvoicePaymentError(
            f"{what} failed: {reason}", advice=_advice(reason), payment_hash=row.payment_hash, failure_reason=reason
        )
    if step is NextStep.RAISE_EXPIRED:
        return ChallengeExpiredError(
            f"{what} wasn't made: the invoice expired first, by the node's clock",
            advice="Call again for a new one.",
            payment_hash=row.payment_hash,
        )
    if step is NextStep.RAISE_REFUSED:
        return FundingError(
            f"{what} was refused by the node before it began: {reason}",
            advice="Mend that at the node, then call again.",
            payment_hash=row.payment_hash,
        )
    if step in (NextStep.RAISE_MISMATCH, NextStep.HAND_OVER):
        return PreimageMismatchError(
            f"{what} is settled and booked, but the node's preimage doesn't fit the payment hash, so there is no token",
            advice=f"Ask the node's operator for the preimage, or Ledger.forget({row.payment_hash!r}) to buy anew.",
            payment_hash=row.payment_hash,
        )
    return ended_error(row)


def ended_error(row: PaymentRow) -> RouteweilerError:
    """Return the error of a row that another call or the user has ended: its outcome is shared."""
    steps = {
        WalletEvent.FAILED_FOR_GOOD: NextStep.RAISE_FAILED,
        WalletEvent.GONE: NextStep.RAISE_EXPIRED,
        WalletEvent.REFUSED_ONLY_SEND: NextStep.RAISE_REFUSED,
    }
    for event, step in steps.items():
        if row.state is PaymentState.DEAD and row.failure_code == event.name.lower():
            return error_for(step, row, row.failure_text)
    if row.state is PaymentState.DEAD:  # abandoned by the user: on their word, not the wallet's
        return PaymentPendingError(
            f"The payment {row.payment_hash} was {row.failure_text or 'given up'} before the node had said its last word, and only the "
            "node can tell what became of it",
            advice="Call again to buy anew.",
            payment_hash=row.payment_hash,
        )
    return TokenRefusedError(
        f"The token of payment {row.payment_hash}, which an earlier call paid for, has been given up: the server refused it, or it was "
        "forgotten",
        advice="Call again for a new one.",
        payment_hash=row.payment_hash,
    )


def repeated_invoice_error(row: PaymentRow) -> RouteweilerError:
    """Return the error of a server that repeats an invoice whose row has ended: nothing is sent for it again."""
    error = ended_error(row)
    error.args = (f"The server repeats an invoice that is in the ledger already. {error.what}",)
    return error


def refused_error(token: Token, status: int) -> TokenRefusedError:
    """Return the error of a server that has never accepted ``token`` and has refused it for as long as a settlement may lag."""
    return TokenRefusedError(
        f"{token.origin} refuses the token of payment {token.payment_hash} (status {status}), though it was paid for",
        advice=f"The ledger keeps token and preimage, and later calls offer them again. {_ASK_OPERATOR}",
        payment_hash=token.payment_hash,
    )


def unserved_error(row: PaymentRow, request: TokenRequest) -> TokenRefusedError:
    """Return the error of a server that names another scope for a page that ``row`` paid for, and never accepted its token."""
    return TokenRefusedError(
        f"{request.origin} wants to be paid again, now for {request.scope}, for what payment {row.payment_hash} of "
        f"{sats(row.amount_msat)} has bought already: it has never accepted that token, and nothing more was paid",
        advice=f"The ledger keeps token and preimage. {_ASK_OPERATOR}",
        payment_hash=row.payment_hash,
    )


def overtaken_error(request: TokenRequest, status: int, offers: int) -> TokenRefusedError:
    """Return the error of a call that has bought nothing: there always was a token of another call to be offered first."""
    return TokenRefusedError(
        f"{request.origin} accepted none of the {offers} tokens for {request.scope} that other calls had bought (status {status}), and "
        "each time there was one more before this call could buy its own",
        advice="Call again.",
        spent=False,
    )


def no_more_tokens_error(token: Token | None, request: TokenRequest, status: int, *, retired: bool) -> TokenRefusedError:
    """Return the error of a server that wants one more token than a call buys.

    ``token`` is the one that was offered last, if one was; ``retired``: it is retired by now.
    """
    if token is None:
        what = f"{request.origin} wants to be paid once more (status {status}) for what this call has paid for already"
    elif retired:
        what = (
            f"{request.origin} no longer accepts the token of payment {token.payment_hash} (status {status}): its time was over before "
            "it could serve this call"
        )
    else:
        what = (
            f"{request.origin} was offered the token of payment {token.payment_hash}, which is paid for, and wants one for "
            f"{request.scope} (status {status})"
        )
    return TokenRefusedError(
        what,
        advice="A call buys no second token: call again for a new one.",
        payment_hash=None if token is None else token.payment_hash,
    )


def unbooked_error(row: PaymentRow, problem: LedgerError, *, paid: bool) -> PaymentPendingError:
    """Return the error of a payment under way whose row can't be read or booked. ``paid``: the node says that it has paid."""
    cause = problem.__cause__
    why = f"the ledger can't be used ({(cause if cause is not None else problem.what)!s})"
    if not paid:
        return pending_error(row, why)
    return PaymentPendingError(
        f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} is made, says the node, but not booked: {why}",
        advice="The token isn't lost: its row is open, and the node keeps the preimage. Mend the ledger, then call again or "
        "session.recover(): the node is asked, and nothing is paid twice.",
        payment_hash=row.payment_hash,
        spent=True,
    )


def unsent_error(row: PaymentRow, why: RouteweilerError) -> PaymentPendingError:
    """Return the error of an order that isn't sent again, for the reason ``why``; the one before may still be carried out."""
    return pending_error(row, f"an earlier order for it is unanswered, and it isn't sent again: {why.what.rstrip('.')}")


def pending_error(row: PaymentRow, why: str) -> PaymentPendingError:
    """Return the error of a payment whose outcome isn't known, for the reason ``why``."""
    return PaymentPendingError(
        f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} isn't finished: {why}",
        advice="It is reserved in the budget. Call again (the same purchase goes on, nothing is paid twice), or session.recover().",
        payment_hash=row.payment_hash,
    )


def _advice(reason: str | None) -> str:
    return {
        "NO_ROUTE": "Check the node's channels and the fee limit, then call again.",
        "INSUFFICIENT_BALANCE": "Add funds to the node's channels, then call again.",
        "TIMEOUT": "Call again; give it a longer payment_timeout if it repeats.",
        "INCORRECT_PAYMENT_DETAILS": "The receiving node refused the invoice: call again for a new one.",
    }.get(reason or "", "Call again for a new invoice.")
