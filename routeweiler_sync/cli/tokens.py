"""``routeweiler-sync tokens``: list the tokens that are in use, and forget one. No token is printed.

Which token a call offers is left to `paywall.negotiation`.

Money: none can move here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .._core.money import sats
from .groups import Group
from .ledgers import json_option, ledger_option, named_payment, nothing_bought, reading
from .outcome import Exit
from .tables import Styled, payment_columns, print_json, print_line, print_table

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow

_COLUMNS = payment_columns("settled", "token")


@click.group(cls=Group)
def tokens() -> None:
    """Show the tokens in a ledger, and forget one.

    A token is named by the payment hash of its payment, or by the first 8 or more digits of it.

    \b
    Examples:
      routeweiler-sync tokens list
      routeweiler-sync tokens forget aa1573e2

    \b
    Exit codes:
      0  done; list: also if nothing was bought yet
      2  wrong usage, or no such ledger or payment
      3  refused: the ledger can't be used, or the payment has no token
      5  the payment is unfinished: it may still be made
    """


@tokens.command("list")
@ledger_option
@json_option
def list_tokens(*, ledger: str | None, as_json: bool) -> None:
    """List the payments whose tokens are in use, oldest first. The tokens themselves aren't shown.

    \b
    accepted   the server has accepted the token
    new        it hasn't been offered yet, or no answer came
    failing    the server answered with an error in place of the page
    refused    the server refuses the token, which was paid for
    none       the node's proof of payment was wrong

    \b
    Example:
      routeweiler-sync tokens list
    """
    from .payment_words import as_json as object_of, sat_number

    with reading(ledger) as (opened, exists):
        # A charge is no token: it opens one request. `payments list` shows those that are owed.
        rows = (row for row in opened.payments(state="settled") if not row.single_use) if exists else iter(())
        if as_json:
            print_json({**object_of(row), "token": _token(row)} for row in rows)
            return
        has_any = exists and next(iter(opened.payments()), None) is not None
        print_table(
            _COLUMNS,
            (
                (
                    row.settled_at,
                    Styled(_token(row), "green" if row.accepted else "yellow"),
                    sat_number(row.amount_msat),
                    sat_number(row.fee_msat),
                    row.payment_hash,
                    row.origin,
                    row.scope,
                )
                for row in rows
            ),
            empty="No token is in use." if has_any else nothing_bought(opened, exists=exists),
        )


@tokens.command()
@click.argument("payment_hash")
@ledger_option
@json_option
def forget(*, payment_hash: str, ledger: str | None, as_json: bool) -> None:
    """Stop offering the token of a payment, so that the next call may buy a new one.

    PAYMENT_HASH may be the first digits of the hash, at least 8. Programs that are running and have the token in memory go on using
    it. A payment for one request (scheme Payment) is forgotten in the same way.

    \b
    Example:
      routeweiler-sync tokens forget aa1573e2
    """
    from .payment_words import as_json as object_of

    with named_payment(payment_hash, ledger) as (opened, named):
        row = opened.forget(named.payment_hash)
    if row.settled_at is None:
        print_line(f"Payment {row.payment_hash} is {row.state.value}: it has no token.", err=True)
        raise click.exceptions.Exit(Exit.REFUSED)
    offered = "it is no longer presented" if row.single_use else "its token is no longer offered"
    if as_json:
        print_json([object_of(row)])
    else:
        print_line(
            f"Payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} is forgotten: {offered}, and the next call may "
            "buy anew."
        )


def _token(row: PaymentRow) -> str:
    """Return what is known about the token of a settled payment, in a word."""
    from ..ledger.server_facts import REFUSED, UNDELIVERED

    if row.preimage is None:
        return "none"
    if row.accepted:
        return "accepted"
    return {REFUSED: "refused", UNDELIVERED: "failing"}.get(row.failure_code or "", "new")
