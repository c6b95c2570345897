"""``get --dry-run``: what a call would pay, from which budget, or why it would be refused. Nothing is paid, and no token is sent.

What a purchase would come to is found out by `payments.checkout`. This module asks, and puts the answer into words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from .outcome import Exit, exit_for, printable, text_of

if TYPE_CHECKING:
    from ..ledger.types import EnvelopeRow, PaymentRow
    from ..payments.types import Quote, Rehearsal
    from ..transport.session import Routeweiler


@dataclass(kw_only=True)
class DryRun:
    """The result of a dry run. ``response`` is the server's answer, ``error`` what went wrong before there was a price.

    ``no_node`` is why the environment's node couldn't pay, None if nothing is known against it.
    """

    rehearsal: Rehearsal | None = None
    response: requests.Response | None = None
    error: requests.RequestException | None = None
    no_node: str | None = None

    @property
    def problem(self) -> requests.RequestException | None:
        """Why the call would be refused, or has failed."""
        return self.error or (self.rehearsal.refusal if self.rehearsal is not None else None)

    @property
    def exit(self) -> Exit:
        """The command's exit code: that of the call, if it can be foreseen."""
        if self.problem is not None:
            return exit_for(self.problem, paid=False)
        if self.rehearsal is not None:
            return Exit.OK if self.rehearsal.unfinished is None else Exit.PENDING
        return Exit.OK if self.response is not None and self.response.status_code < 400 else Exit.ERROR


def dry_run(session: Routeweiler, method: str, url: str, *, no_node: str | None, **kwargs: Any) -> DryRun:
    """Ask what ``session.request(method, url, **kwargs)`` would pay.

    The request is sent without any token, up to the first 402. A server that asks for no payment carries it out.

    Money: none moves.
    """
    from ..paywall.call import QuoteReady

    try:
        answer = session._priced(method, url, **kwargs)
        if not isinstance(answer, QuoteReady):
            return DryRun(response=answer, no_node=no_node)
        assert answer.request is not None  # only a pickled one has none
        rehearsal = session._payer.checkout.rehearse(answer.request)
        return DryRun(rehearsal=rehearsal, response=answer.response, no_node=no_node)
    except requests.RequestException as error:
        return DryRun(error=error, response=error.response, no_node=no_node)


def facts(result: DryRun) -> list[tuple[str, object]]:
    """Return the result for people, as `tables.print_facts` prints it."""
    from .._core.money import plain, sats
    from ..protocol.schemes import is_reusable

    rehearsal = result.rehearsal
    quote = None if rehearsal is None else rehearsal.quote
    shown: list[tuple[str, object]] = []
    if quote is not None:
        shown = [
            ("price", sats(quote.amount_msat)),
            ("routing", f"at most {sats(quote.max_fee_msat)}"),
            ("budget", f"{plain(quote.amount_minor_units)} {quote.currency}, before routing"),
            ("scheme", quote.scheme if is_reusable(quote.scheme) else f"{quote.scheme}: one payment for one request"),
            ("token for", quote.scope),
            ("description", quote.description.strip() or "(none)"),
            ("payment hash", quote.payment_hash),
            ("expires", f"{quote.expires_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("paid", "nothing: this was a dry run"),
        ]
    row = rehearsal and (rehearsal.token or rehearsal.unfinished)
    if row:
        shown = [("price", f"{sats(row.amount_msat)} + {sats(row.fee_msat)} fee"), ("payment hash", row.payment_hash)]
    return [*shown, ("verdict", verdict(result))]


def verdict(result: DryRun) -> str:
    """Return in a sentence what the call would do."""
    from .._core.money import sats

    if result.error is not None:
        return f"would fail: {text_of(result.error)}"
    rehearsal, response = result.rehearsal, result.response
    if rehearsal is None:
        assert response is not None
        status = f"HTTP {response.status_code} {response.reason or ''}".rstrip()
        asks = ", which asks for nothing that can be paid here" if response.status_code == 402 else ""
        return f"nothing to pay: {status}{asks}"
    if rehearsal.unfinished is not None:
        return f"an earlier payment isn't finished: the call would carry it to its end, and pay {_price(rehearsal.unfinished)} once"
    if rehearsal.token is not None:
        if rehearsal.token.single_use:
            return "nothing would be paid: a payment that was made for this request earlier would be presented"
        return "nothing would be paid: a token that was paid for earlier would be used again"
    if rehearsal.refusal is not None:
        return f"would be refused: {text_of(rehearsal.refusal)}"
    assert rehearsal.quote is not None
    most = sats(rehearsal.quote.amount_msat + rehearsal.quote.max_fee_msat)
    text = f"would be paid: at most {most}, {_budget(rehearsal.envelope)}"
    if rehearsal.trial is not None:
        text += f"; before that, the token of payment {rehearsal.trial.payment_hash} would be tried, which costs nothing"
    if result.no_node is not None:
        text += f"; but there is no node to pay with: {result.no_node}"
    return text


def _price(row: PaymentRow) -> str:
    from .._core.money import sats

    return f"{sats(row.amount_msat)} and at most {sats(row.max_fee_msat)} for routing"


def _budget(envelope: EnvelopeRow | None) -> str:
    """Return from which budget the payment would be, and what is left of it now."""
    from .._core.money import plain

    if envelope is None:
        return "without any limit (there is no budget)"
    left = envelope.headroom_minor_units
    rest = "" if left is None else f", of which {plain(left)} {envelope.limits.cap_currency} are left"
    return f"from the budget {printable(envelope.id)}{rest}"


def verdict_as_json(result: DryRun) -> dict[str, Any]:
    """Return what ``--json`` adds to the command's JSON: quote and verdict."""
    from .._core.money import plain

    rehearsal = result.rehearsal
    quote, envelope = (None, None) if rehearsal is None else (rehearsal.quote, rehearsal.envelope)
    if result.error is not None:
        outcome = "fail"
    elif rehearsal is None:
        outcome = "free"
    elif rehearsal.unfinished is not None:
        outcome = "unfinished"
    elif rehearsal.token is not None:
        outcome = "token"
    else:
        outcome = "refuse" if rehearsal.refusal is not None else "pay"
    left = None if envelope is None else envelope.headroom_minor_units
    row = rehearsal and (rehearsal.token or rehearsal.unfinished)
    return {
        "quote": quote_as_json(quote),
        "verdict": {
            "outcome": outcome,
            "text": printable(verdict(result)),
            "paymentHash": row.payment_hash if row else None,
            "budget": None if envelope is None else envelope.id,
            "budgetLeftMinorUnits": None if left is None else plain(left),
            "node": result.no_node is None,
        },
    }


def quote_as_json(quote: Quote | None) -> dict[str, Any] | None:
    """Return ``quote`` as the command's JSON has it."""
    from .._core.money import plain

    if quote is None:
        return None
    return {
        "amountMsat": quote.amount_msat,
        "maxFeeMsat": quote.max_fee_msat,
        "amountMinorUnits": plain(quote.amount_minor_units),
        "currency": quote.currency,
        "scheme": quote.scheme,
        "scope": quote.scope,
        "paymentHash": quote.payment_hash,
        "description": quote.description,
        "expiresAt": quote.expires_at.isoformat(),
    }
