"""``routeweiler-sync payments`` and ``tokens``: list payments and tokens, ask the node about unfinished ones, abandon, forget.

What a payment's states mean is left to `ledger`, what the node's answer means to `payments.wallet_rules`.

Money: none is spent here. ``payments recover`` books payments that the node has made.
"""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from .._core.money import sats
from ..config import env_settings, environment
from ..errors import FundingError, LedgerError, PaymentPendingError
from .budget import ledger_option, opened_ledger
from .outcome import Exit, exit_for, printable, text_of

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import Change, PaymentRow

#: How long ``payments recover`` waits for the node's answers, in seconds.
RECOVER_TIMEOUT_S = 60.0

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def payments() -> None:
    """Show the payments in a ledger, and end those that are unfinished.

    \b
    Exit codes:
      0  done
      2  wrong usage, or no such ledger or payment
      3  refused: the ledger or the node can't be used, or the payment
         isn't in a state for this
      5  recover: some payments are still unfinished
    """


@click.group()
def tokens() -> None:
    """Show the tokens in a ledger, and forget one.

    \b
    Exit codes:
      0  done
      2  wrong usage, or no such ledger or payment
      3  refused: the ledger can't be used, or the payment has no token
      5  the payment is unfinished: it may still be made
    """


@payments.command("list")
@ledger_option
@click.option("--unfinished", is_flag=True, help="Only payments whose outcome isn't known yet.")
@_json_option
def list_payments(*, ledger: str | None, unfinished: bool, as_json: bool) -> None:
    """List the payments, oldest first.

    \b
    open, failed   unfinished: the node may still make the payment
    settled        paid; the token is in use
    retired        paid; the token is no longer offered
    dead           not paid, or abandoned
    """
    with opened_ledger(ledger) as opened:
        _show(opened.url, (row for row in opened.payments() if row.unfinished or not unfinished), as_json)


@payments.command()
@ledger_option
@_json_option
@click.pass_context
def recover(context: click.Context, *, ledger: str | None, as_json: bool) -> None:
    """Ask the node about all unfinished payments, and book its answers. No payment is started or sent again."""
    with opened_ledger(ledger) as opened:
        pending = opened.unfinished()
        url = opened.url
    rows = _recovered(context, ledger, pending)
    _show(url, rows, as_json)
    left = [row for row in rows if row.unfinished]
    for row in left:
        click.echo(f"The node reported no outcome of payment {row.payment_hash} yet. Its cost stays reserved.", err=True)
    context.exit(Exit.PENDING if left else Exit.OK)


@payments.command()
@click.argument("payment_hash")
@ledger_option
@_json_option
def abandon(*, payment_hash: str, ledger: str | None, as_json: bool) -> None:
    """End an unfinished payment, if you know that the node will never make it.

    PAYMENT_HASH has 64 hex digits. The payment's reservation is returned to the budget, and the next call may buy anew. If the node
    makes the payment after all, it is money spent twice; payments recover then books it.
    """
    from ..ledger.ledger import ABANDONED

    def decide(row: PaymentRow) -> Change:
        if not row.unfinished:
            raise LedgerError(
                f"Payment {row.payment_hash} isn't unfinished: it is {row.state.value}. Nothing was changed.",
                payment_hash=row.payment_hash,
            )
        return ABANDONED

    _change(payment_hash, ledger, as_json, decide, "is abandoned: its reservation is returned, and the next call may buy anew.")


@tokens.command("list")
@ledger_option
@_json_option
def list_tokens(*, ledger: str | None, as_json: bool) -> None:
    """List the payments whose tokens are in use, oldest first. The tokens themselves aren't shown."""
    with opened_ledger(ledger) as opened:
        _show(opened.url, opened.payments(state="settled"), as_json)


@tokens.command()
@click.argument("payment_hash")
@ledger_option
@_json_option
def forget(*, payment_hash: str, ledger: str | None, as_json: bool) -> None:
    """Stop offering the token of a payment, so that the next call may buy a new one.

    PAYMENT_HASH has 64 hex digits. Programs that are running and have the token in memory go on using it.
    """
    with _named(payment_hash, ledger) as (opened, hash_):
        row = opened.forget(hash_)
        url = opened.url
    if row.settled_at is None:
        click.echo(f"Payment {row.payment_hash} is {row.state.value}: it has no token.", err=True)
        raise click.exceptions.Exit(Exit.REFUSED)
    _told(url, row, as_json, "is forgotten: its token is no longer offered, and the next call may buy anew.")


def _recovered(context: click.Context, ledger: str | None, pending: Sequence[PaymentRow]) -> list[PaymentRow]:
    """Return the rows that `Routeweiler.recover` returns. Exit if the node or the ledger can't be used."""
    from ..transport.session import Routeweiler

    try:
        funding = environment.node()
        if pending:
            check_ready = getattr(funding[0].client, "check_ready", None)
            if check_ready is not None:
                check_ready(RECOVER_TIMEOUT_S)
        with Routeweiler(
            funding=funding,
            budget_envelope=None,  # nothing is bought
            ledger=env_settings.ledger_url() if ledger is None else ledger,
            trace_sink=env_settings.trace_sink(),
            payment_timeout=RECOVER_TIMEOUT_S,
        ) as session:
            return session.recover()
    except ValueError as error:
        raise click.UsageError(printable(error)) from None
    except (FundingError, LedgerError, PaymentPendingError) as error:
        click.echo(printable(text_of(error)), err=True)
        context.exit(exit_for(error, paid=False))


@contextlib.contextmanager
def _named(payment_hash: str, ledger: str | None) -> Iterator[tuple[Ledger, str]]:
    """Open the ledger, and yield it with the payment hash as the ledger writes it.

    Raises: click.UsageError if that isn't a payment hash, or the ledger has no such payment.
    """
    hash_ = payment_hash.strip().lower()
    if len(hash_) != 64 or not set(hash_) <= set(string.hexdigits):
        raise click.UsageError("a payment hash has 64 hex digits: routeweiler-sync payments list shows them")
    with opened_ledger(ledger) as opened:
        if opened.payment(hash_) is None:
            raise click.UsageError(f"{printable(opened.url)} has no payment {hash_}")
        yield opened, hash_


def _change(payment_hash: str, ledger: str | None, as_json: bool, decide: Callable[[PaymentRow], Change | None], done: str) -> None:
    """Change one payment's row as ``decide`` says, and print that it ``done``."""
    with _named(payment_hash, ledger) as (opened, hash_):
        row = opened.change(hash_, decide)
        url = opened.url
    _told(url, row, as_json, done)


def _told(url: str, row: PaymentRow, as_json: bool, done: str) -> None:
    if as_json:
        _show(url, [row], as_json)
    else:
        click.echo(f"Payment {row.payment_hash} of {sats(row.amount_msat)} to {printable(row.origin)} {done}")


def _show(url: str, rows: Iterable[PaymentRow], as_json: bool) -> None:
    """Print ``rows``: one line each, or one JSON object."""
    if as_json:
        click.echo(json.dumps({"ledger": url, "payments": [_as_json(row) for row in rows]}))
        return
    for row in rows:
        paid = "" if row.settled_at is None else f" + {sats(row.fee_msat)} fee"
        click.echo(
            f"{row.created_at:%Y-%m-%d %H:%M:%S}  {row.state.value:<7}  {row.payment_hash}  {printable(row.origin)}  "
            f"{printable(row.scope)}  {sats(row.amount_msat)}{paid}"
        )


def _as_json(row: PaymentRow) -> dict[str, Any]:
    return {
        "paymentHash": row.payment_hash,
        "origin": row.origin,
        "scope": row.scope,
        "state": row.state.value,
        "amountMsat": row.amount_msat,
        "feeMsat": row.fee_msat,
        "maxFeeMsat": row.max_fee_msat,
        "envelopeId": row.envelope_id,
        "createdAt": row.created_at.isoformat(),
        "settledAt": None if row.settled_at is None else row.settled_at.isoformat(),
    }
