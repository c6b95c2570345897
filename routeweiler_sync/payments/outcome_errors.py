"""The errors with which a purchase ends for its caller: what happened, and what to do next.

Nothing is decided here. How a payment ends is decided in `wallet_rules`, how a token ends in `paywall.server_rules`. The sentence
about the money comes from the classes in `routeweiler_sync.errors`.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from .._core.durations import clock_remark, in_words
from .._core.money import sats
from ..errors import (
    Advice,
    ChallengeExpiredError,
    ChallengeMismatchError,
    ChallengeParseError,
    FundingError,
    InvoicePaymentError,
    LedgerError,
    PaymentPendingError,
    PreimageMismatchError,
    RouteweilerError,
    TokenRefusedError,
)
from ..ledger.server_facts import REFUSED
from ..ledger.types import PaymentRow, PaymentState
from ..protocol.invoice import decode_invoice
from .wallet_rules import NextStep, WalletEvent

if TYPE_CHECKING:
    from .token import Token
    from .types import TokenRequest


#: The command that forgets a token, as `Ledger.forget` does.
_FORGET = "routeweiler-sync tokens forget"


def _advice_to_forget(row: PaymentRow | Token, ask: str) -> Advice:
    """Return the advice to ``ask`` somebody, or else to forget the token of ``row`` and buy anew; for Python and for the shell."""
    return {
        "advice": f'{ask}, or call session.ledger.forget("{row.payment_hash}") to buy anew.',
        "shell_advice": f"{ask}, or run {_FORGET} with it to buy anew.",
    }


#: The reason of an order that didn't leave, since its payment might have ended after the charge.
TOO_LATE = "there isn't time any more to pay and to present it before its challenge expires"

#: What helps where a server repeats an invoice that can't be paid again.
_ANOTHER_INVOICE = (
    "Only a new invoice can be paid: call again later, when the server makes one. If it keeps repeating this one, tell its "
    "operator."
)
_ASK_OPERATOR = "Ask the server's operator, with the payment hash as proof"


def error_for(step: NextStep, row: PaymentRow, reason: str | None) -> RouteweilerError:
    """Return the error that ``step``, one of the steps that end a purchase, means for ``row``.

    ``reason`` is the wallet's own reason, if it gave one. Without it, the reason in the row is used.
    """
    what = f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin}"
    reason = reason or row.failure_text
    if step is NextStep.RAISE_FAILED:
        return InvoicePaymentError(
            f"{what} failed: {reason or _NO_REASON}",
            advice=_advice(reason),
            shell_advice="Call again." if reason == "TIMEOUT" else None,
            payment_hash=row.payment_hash,
            failure_reason=reason,
        )
    if step is NextStep.RAISE_EXPIRED and row.failure_code == WalletEvent.OUTLIVED.name.lower():
        return ChallengeExpiredError(
            f"{what} wasn't made: the invoice has long expired, and the wallet says that it isn't paid ({reason or _NO_REASON})",
            advice="Call again for a new invoice.",
            payment_hash=row.payment_hash,
        )
    if step is NextStep.RAISE_EXPIRED:
        clock = ""
        with contextlib.suppress(ChallengeParseError):
            clock = clock_remark(decode_invoice(row.bolt11).expires_at, time.time())
        return ChallengeExpiredError(
            f"{what} wasn't made: by the node's clock, the invoice expired first{clock}",
            advice=f"Call again for a new invoice.{' If the error repeats, set the clock that is wrong.' if clock else ''}",
            payment_hash=row.payment_hash,
        )
    if step is NextStep.RAISE_REFUSED and reason == TOO_LATE:
        return ChallengeExpiredError(
            f"{what} wasn't made: {TOO_LATE}", advice="Call again for a new challenge.", payment_hash=row.payment_hash
        )
    if step is NextStep.RAISE_REFUSED:
        return FundingError(
            f"{what} was refused by the node before it started: {reason or _NO_REASON}",
            advice="Fix the cause at the node, then call again.",
            payment_hash=row.payment_hash,
        )
    if step in (NextStep.RAISE_MISMATCH, NextStep.HAND_OVER):
        return PreimageMismatchError(
            f"{what} is settled and booked, but the node's preimage doesn't fit the payment hash, so there is no token",
            **_advice_to_forget(row, "Ask the node's operator for the preimage"),
            payment_hash=row.payment_hash,
        )
    return ended_error(row)


def ended_error(row: PaymentRow) -> RouteweilerError:
    """Return the error of a row that another call or the user has ended. All callers of a row get the same kind of error."""
    steps = {
        WalletEvent.FAILED_FOR_GOOD: NextStep.RAISE_FAILED,
        WalletEvent.GONE: NextStep.RAISE_EXPIRED,
        WalletEvent.OUTLIVED: NextStep.RAISE_EXPIRED,
        WalletEvent.REFUSED_ONLY_SEND: NextStep.RAISE_REFUSED,
    }
    for event, step in steps.items():
        if row.state is PaymentState.DEAD and row.failure_code == event.name.lower():
            return error_for(step, row, row.failure_text)
    if row.state is PaymentState.DEAD:  # the user abandoned it, so no reply of the wallet says that it can't be paid any more
        return PaymentPendingError(
            f"The payment {row.payment_hash} was {row.failure_text or 'abandoned'} before the node reported its outcome, and only "
            "the node knows what became of it",
            advice="Call again to buy anew.",
            payment_hash=row.payment_hash,
        )
    return TokenRefusedError(
        f"The token of payment {row.payment_hash}, which an earlier call paid for, is retired: the server refused it, or the user "
        "forgot it",
        advice="Call again for a new token.",
        payment_hash=row.payment_hash,
    )


def repeated_invoice_error(row: PaymentRow) -> RouteweilerError:
    """Return the error for a server that repeats an invoice whose row has ended. The invoice isn't sent again."""
    error = ended_error(row)
    error.args = (f"The server repeats an invoice that is in the ledger already. {error.what}",)
    if row.single_use:  # nothing that the caller does gets the server to make another
        error.advice, error.shell_advice = _ANOTHER_INVOICE, None
    return error


def refused_error(token: Token, status: int) -> TokenRefusedError:
    """Return the error for a server that has never accepted ``token``, and refuses it for as long as a settlement may lag.

    ``status`` is the HTTP status of its last answer.
    """
    return TokenRefusedError(
        f"{token.origin} refuses the token of payment {token.payment_hash} (status {status}), though it was paid for",
        **_advice_to_forget(token, f"The ledger keeps token and preimage, and later calls offer them again. {_ASK_OPERATOR}"),
        payment_hash=token.payment_hash,
    )


def charge_refused_error(charge: Token, status: int, *, is_spent: bool = False) -> TokenRefusedError:
    """Return the error for a server that refuses ``charge``, paid for this very request, with the HTTP status ``status``.

    ``is_spent``: the server has used it up before, and repeats its invoice.
    """
    if is_spent:
        return TokenRefusedError(
            f"{charge.origin} asks again for payment {charge.payment_hash} of {sats(charge.amount_msat)}, which was made for this "
            f"request and is used up, and refuses it (status {status}). Nothing more was paid",
            advice=_ANOTHER_INVOICE,
            payment_hash=charge.payment_hash,
        )
    late = ""
    if charge.valid_until is not None and charge.settled_at_s is not None and charge.settled_at_s > charge.valid_until:
        late = f". It was paid {in_words(charge.settled_at_s - charge.valid_until)} after its challenge had expired"
    keeps = "The ledger keeps challenge and preimage, and the next call for the same request presents them again"
    return TokenRefusedError(
        f"{charge.origin} refuses payment {charge.payment_hash} of {sats(charge.amount_msat)} (status {status}), though it was "
        f"made for this request{late}. Nothing more was paid",
        **_advice_to_forget(charge, f"{keeps}. {_ASK_OPERATOR}"),
        payment_hash=charge.payment_hash,
    )


def refused_charge_error(row: PaymentRow, request: TokenRequest) -> TokenRefusedError:
    """Return the error for a request whose charge ``row`` the server has refused, and which another call presents right now."""
    return TokenRefusedError(
        f"{request.origin} asks for another payment for the request that payment {row.payment_hash} of {sats(row.amount_msat)} was "
        "made for, and which it has refused. Nothing more was paid",
        **_advice_to_forget(row, f"The ledger keeps challenge and preimage. {_ASK_OPERATOR}"),
        payment_hash=row.payment_hash,
    )


def used_invoice_error(row: PaymentRow, request: TokenRequest) -> ChallengeMismatchError:
    """Return the error for a challenge whose invoice is in the ledger for something else, as ``row``."""
    return ChallengeMismatchError(
        f"{request.origin} offers an invoice for {request.path} that is in the ledger for something else, as payment "
        f"{row.payment_hash} ({row.state.value}): paying it again would buy nothing",
        advice="Call again. If the error repeats, report this to the server's operator.",
    )


def same_invoice_error(row: PaymentRow) -> PaymentPendingError:
    """Return the error for a charge that another call is paying for, or presenting, right now."""
    return PaymentPendingError(
        f"The server offers one invoice to two calls: another call is about to use payment {row.payment_hash} of "
        f"{sats(row.amount_msat)} to {row.origin} for the same request",
        advice="Call again.",
        payment_hash=row.payment_hash,
    )


def further_payment_error(request: TokenRequest, status: int) -> TokenRefusedError:
    """Return the error for a call that has paid, and is asked for a further payment where it would be, or was, for a charge."""
    return TokenRefusedError(
        f"{request.origin} asks for a payment for {request.path} (status {status}), and this call has made one already",
        advice=f"A call that pays for one request by a charge makes no other payment. Call {request.origin}{request.path} itself.",
    )


def crowded_error(request: TokenRequest) -> FundingError:
    """Return the error for a call that other calls for the same request kept from buying."""
    return FundingError(
        f"Other calls keep paying for the same request to {request.origin}, so this one bought nothing.", advice="Call again."
    )


def unserved_error(row: PaymentRow, request: TokenRequest) -> TokenRefusedError:
    """Return the error for a server that never accepted the token of ``row``, and now names another scope for the same page."""
    return TokenRefusedError(
        f"{request.origin} asks for another payment, now for {request.scope}, for the page that payment {row.payment_hash} of "
        f"{sats(row.amount_msat)} was made for: it has never accepted the token of that payment, and nothing more was paid",
        **_advice_to_forget(row, f"The ledger keeps token and preimage. {_ASK_OPERATOR}"),
        payment_hash=row.payment_hash,
    )


def undelivered_error(row: PaymentRow, request: TokenRequest) -> TokenRefusedError:
    """Return the error for an origin that has never accepted a token, and delivered nothing for the payment of ``row``."""
    keeps = f"The ledger keeps token and preimage, and calls for {row.path} offer them again"
    payment = f"payment {row.payment_hash} of {sats(row.amount_msat)}"
    if row.failure_code == REFUSED:
        why = f"it has never accepted a token that was paid for, not the one of {payment} either"
    else:  # as many requests as `MAX_UNDELIVERED` met an error, or the caller's timeout
        why = f"it has never sent a page that was paid for: the latest requests, as that of {payment}, met errors or no answer"
    return TokenRefusedError(
        f"{request.origin} asks for a payment for {request.path}, but {why}. So nothing more was paid",
        **_advice_to_forget(row, f"{keeps}. {_ASK_OPERATOR}"),
        payment_hash=row.payment_hash,
    )


def overtaken_error(request: TokenRequest, status: int, offers: int) -> TokenRefusedError:
    """Return the error for a call that bought nothing, since other calls kept buying tokens that had to be offered first.

    ``offers`` is how many of them were offered, ``status`` the HTTP status of the server's last answer.
    """
    return TokenRefusedError(
        f"{request.origin} accepted none of the {offers} tokens for {request.scope} that other calls had bought (status {status}), "
        "and each time there was one more before this call could buy its own",
        advice="Call again.",
        spent=False,
    )


def no_more_tokens_error(token: Token | None, request: TokenRequest, status: int, *, retired: bool) -> TokenRefusedError:
    """Return the error for a server that asks for one more token than a call buys.

    ``token`` is the token that was offered last, None if this hop has offered none. ``retired``: that token is retired by now.
    ``status`` is the HTTP status of the server's last answer.
    """
    if token is None:
        what = f"{request.origin} asks for one more payment (status {status}) for what this call has paid for already"
    elif retired:
        what = (
            f"{request.origin} no longer accepts the token of payment {token.payment_hash} (status {status}): its time was over "
            "before it could serve this call"
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
    """Return the error for an unfinished payment whose row can't be read or written.

    ``problem`` is the ledger's error. ``paid``: the node has replied that it paid.
    """
    cause = problem.__cause__
    why = f"the ledger can't be used ({(cause if cause is not None else problem.what)!s})"
    if not paid:
        return pending_error(row, why)
    repair = "The token isn't lost: its row is open, and the node keeps the preimage. Repair the ledger, then call again"
    return PaymentPendingError(
        f"The node has made the payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin}, but it isn't booked: {why}",
        advice=f"{repair}, or call session.recover(): the node is asked, and nothing is paid twice.",
        shell_advice=f"{repair}, or run routeweiler-sync payments recover: the node is asked, and nothing is paid twice.",
        payment_hash=row.payment_hash,
        spent=True,
    )


def unsent_error(row: PaymentRow, why: RouteweilerError) -> PaymentPendingError:
    """Return the error for an invoice that isn't sent again, for the reason ``why``. The earlier send of it may still arrive."""
    return pending_error(row, f"an earlier send of its invoice is unanswered, and it isn't sent again: {why.what.rstrip('.')}")


def pending_error(row: PaymentRow, why: str) -> PaymentPendingError:
    """Return the error for a payment whose outcome isn't known, for the reason ``why``, which has no full stop."""
    again = "Its cost is reserved in the budget. Call again (the same purchase goes on, and nothing is paid twice)"
    never = "Only if you know from the node that it will never be made: "
    return PaymentPendingError(
        f"The payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} isn't finished: {why}",
        advice=f'{again}, or call session.recover(). {never}session.ledger.forget("{row.payment_hash}", abandon=True) ends it.',
        shell_advice=f"{again}, or run routeweiler-sync payments recover. {never}routeweiler-sync payments abandon "
        f"{row.payment_hash} ends it.",
        payment_hash=row.payment_hash,
    )


#: Stands for the reason of a payment that failed without one.
_NO_REASON = "the node gave no reason"


def _advice(reason: str | None) -> str:
    """Return what to do about a payment that failed for ``reason``, one of lnd's failure reasons."""
    return {
        "NO_ROUTE": "Check the node's channels and the fee limit, then call again.",
        "INSUFFICIENT_BALANCE": "Add funds to the node's channels, then call again.",
        "TIMEOUT": "Call again. If the error repeats, give the session a longer payment_timeout.",
        "INCORRECT_PAYMENT_DETAILS": "The receiving node refused the payment: call again for a new invoice.",
    }.get(reason or "", "Call again for a new invoice.")
