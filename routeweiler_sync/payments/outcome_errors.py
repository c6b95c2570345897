"""How a purchase ends for its caller, in words: the error of each act and of each ended row, with what to do next.

What ended it was decided in `routeweiler_sync.payments.wallet_rules`; nothing is decided here.
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
from . import wallet_rules
from .wallet_rules import NextStep

if TYPE_CHECKING:
    from .token import Token
    from .types import TokenRequest


def error_for(next_step: NextStep, row: PaymentRow, reason: str | None) -> RouteweilerError:
    """The error with which ``act`` ends the call."""
    what = f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin}"
    if next_step is NextStep.RAISE_FAILED:
        return InvoicePaymentError(
            f"{what} failed: {reason or row.failure_text}.",
            advice=(f"{_advice(reason)}."),
            payment_hash=row.payment_hash,
            failure_reason=reason or row.failure_text,
        )
    if next_step is NextStep.RAISE_EXPIRED:
        return ChallengeExpiredError(
            f"{what} wasn't made: the invoice expired first, by the node's clock.",
            advice=("Call again for a new one."),
            payment_hash=row.payment_hash,
        )
    if next_step is NextStep.RAISE_REFUSED:
        return FundingError(
            f"{what} was refused by the node before it began: {reason or row.failure_text}.",
            advice=("Mend that at the node, then call again."),
            payment_hash=row.payment_hash,
        )
    if next_step in (NextStep.RAISE_MISMATCH, NextStep.HAND_OVER):
        return PreimageMismatchError(
            f"{what} is settled, says the node, but without a preimage that fits, so there is no token. The money is spent and "
            f"booked. Ask the node's operator for the preimage, or Ledger.forget({row.payment_hash!r}) to buy anew.",
            payment_hash=row.payment_hash,
        )
    return ended_error(row)


def ended_error(row: PaymentRow) -> RouteweilerError:
    """The error of a row that someone else has ended: its outcome is shared."""
    acts = {
        wallet_rules.WalletEvent.FAILED_FOR_GOOD: NextStep.RAISE_FAILED,
        wallet_rules.WalletEvent.GONE: NextStep.RAISE_EXPIRED,
        wallet_rules.WalletEvent.REFUSED_ONLY_SEND: NextStep.RAISE_REFUSED,
    }
    for event, next_step in acts.items():
        if row.state is PaymentState.DEAD and row.failure_code == event.name.lower():
            return error_for(next_step, row, row.failure_text)
    if row.state is PaymentState.DEAD:  # abandoned by the user: on their word, not lnd's
        return PaymentPendingError(
            f"The payment {row.payment_hash} was {row.failure_text or 'given up'} before lnd had said its last word. Whether money "
            "was spent, only the node can tell. Call again to buy anew.",
            payment_hash=row.payment_hash,
        )
    return TokenRefusedError(
        f"The token of payment {row.payment_hash} has been given up: the server refused it, or it was forgotten. It was paid "
        "earlier.",
        advice=("Call again for a new one."),
        payment_hash=row.payment_hash,
    )


def given_up(row: PaymentRow) -> RouteweilerError:
    """The server repeats an invoice whose row has ended: nothing is sent for it again."""
    error = ended_error(row)
    error.args = (f"The server repeats an invoice that is in the ledger already. {error.args[0]}",)
    return error


def refused_error(token: Token, status: int) -> TokenRefusedError:
    """The server has refused ``held`` for as long as a settlement may lag, and never took it."""
    return TokenRefusedError(
        f"{token.origin} refuses the token of payment {token.payment_hash} (status {status}), though it was paid for. The money is "
        "spent; the ledger keeps token and preimage, and later calls offer them again. Ask the server's operator with the payment "
        "hash as proof, or Ledger.forget() it to buy anew.",
        payment_hash=token.payment_hash,
    )


def unserved_error(row: PaymentRow, token_request: TokenRequest) -> TokenRefusedError:
    """The server names another scope for what ``row`` was bought for, and has never taken that token."""
    return TokenRefusedError(
        f"{token_request.origin} wants to be paid again, now for {token_request.scope}, for what payment {row.payment_hash} of "
        f"{sats(row.amount_msat)} has bought already: it has never taken that token. The money of that payment is spent; nothing "
        "more was. The ledger keeps token and preimage. Ask the server's operator with the payment hash as proof, or "
        "Ledger.forget() it to buy anew.",
        payment_hash=row.payment_hash,
    )


def overtaken_error(token_request: TokenRequest, status: int, offers: int) -> TokenRefusedError:
    """This call has bought nothing: there always was a token of another call to be offered first."""
    return TokenRefusedError(
        f"{token_request.origin} took none of the {offers} tokens for {token_request.scope} that other calls had bought "
        f"(status {status}), and each time there was one more before this call could buy its own.",
        advice=("Call again."),
        spent=False,
    )


def no_more_tokens_error(token: Token | None, token_request: TokenRequest, status: int, *, over: bool) -> TokenRefusedError:
    """The server wants one more token than a call buys. ``held`` was given last, if one was; ``over``: it is retired by now."""
    if token is None:
        what = f"{token_request.origin} wants to be paid once more (status {status}) for what this call has paid for already"
    elif over:
        what = (
            f"{token_request.origin} no longer takes the token of payment {token.payment_hash} (status {status}): its time was over before "
            "it could serve this call"
        )
    else:
        what = f"{token_request.origin} was offered the token of payment {token.payment_hash}, and wants one for {token_request.scope} (status {status})"
    return TokenRefusedError(
        f"{what}. It was paid for, and the money is spent. A call buys no second token: call again for a new one.",
        payment_hash=None if token is None else token.payment_hash,
    )


def _advice(reason: str | None) -> str:
    return {
        "NO_ROUTE": "Check the node's channels and the fee limit, then call again.",
        "INSUFFICIENT_BALANCE": "Add funds to the node's channels, then call again.",
        "TIMEOUT": "Call again; give it a longer payment_timeout if it repeats.",
        "INCORRECT_PAYMENT_DETAILS": "The receiving node refused the invoice: call again for a new one.",
    }.get(reason or "", "Call again for a new invoice.")


def unbooked_error(row: PaymentRow, problem: LedgerError, *, paid: bool) -> PaymentPendingError:
    """``problem`` keeps a row whose payment is under way from being read or booked. ``paid``: the node says that it has paid."""
    what = str(problem.__cause__ or problem).partition(". Nothing was spent")[0]  # which it says of a call that hasn't paid
    why = f"the ledger can't be used ({what})"
    if not paid:
        return pending_error(row, why)
    return PaymentPendingError(
        f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} is made, says the node, but not booked: {why}. "
        "The money is spent, and the token isn't lost: its row is open, and the node keeps the preimage. Mend the ledger, then "
        "call again or session.recover(): the node is asked, and nothing is paid twice.",
        payment_hash=row.payment_hash,
        spent=True,
    )


def pending_error(row: PaymentRow, why: str) -> PaymentPendingError:
    """What became of the payment isn't known: ``why``."""
    return PaymentPendingError(
        f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} isn't finished: {why}. Whether money was "
        "spent isn't known yet; it is reserved in the budget. Call again (the same purchase goes on, nothing is paid "
        "twice), or session.recover().",
        payment_hash=row.payment_hash,
    )
