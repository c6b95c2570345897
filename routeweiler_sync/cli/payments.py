"""``routeweiler-sync payments``: list and show payments, ask the node about unfinished ones, abandon one, archive old ones.

How a payment is put into words is left to `payment_words`, how lists are printed to `tables`; what the node's answer means to
`payments.wallet_rules`.

Money: none is spent here. ``payments recover`` books payments that the node has made.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from .._core.money import sats
from .._core.urls import origin_of
from ..config import env_settings, environment
from ..errors import FundingError, LedgerError, PaymentPendingError
from .groups import Group
from .ledgers import json_option, ledger_option, named_payment, nothing_bought, reading
from .outcome import Exit, exit_for, printable, text_of
from .since import Since, check_span, since_option, until_option
from .tables import payment_columns, print_facts, print_json, print_line, print_table

if TYPE_CHECKING:
    from ..ledger.archive import Archived
    from ..ledger.ledger import Ledger
    from ..ledger.types import Change, PaymentRow

#: How long ``payments recover`` waits for the node's answers, in seconds.
RECOVER_TIMEOUT_S = 60.0
#: The names of `ledger.types.PaymentState`, which isn't imported for ``--help``. A test compares them.
STATES = ("open", "failed", "settled", "retired", "dead")
_COLUMNS = payment_columns("created", "state")
#: What to do is said for at most so many of the payments that are listed.
_TOLD_MAX = 5


@click.group(cls=Group)
def payments() -> None:
    """Show the payments in a ledger, and end those that are unfinished.

    A payment is named by its payment hash, or by the first 8 or more digits of it.

    \b
    Examples:
      routeweiler-sync payments list --since 7d
      routeweiler-sync payments list --unfinished
      routeweiler-sync payments show aa1573e2
      routeweiler-sync payments list | awk 'NR>1 {sat += $3} END {print sat}'

    \b
    Exit codes:
      0  done; list, recover: also if nothing was bought yet
      2  wrong usage, or no such ledger or payment
      3  refused: the ledger or the node can't be used, or the payment
         isn't in a state for this; abandon: also if the wallet has paid
      5  recover: some payments are still unfinished
    """


@payments.command("list")
@ledger_option
@click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Only payments in this state; may be repeated.")
@click.option("--unfinished", is_flag=True, help="Only payments whose outcome isn't known yet: states open and failed.")
@click.option("--undelivered", is_flag=True, help="Only payments for one request (scheme Payment) that isn't answered yet.")
@click.option(
    "--origin", metavar="ORIGIN", help="Only payments to https://host[:port], or to origins like '*.example.com' or '*:8443'."
)
@since_option
@until_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N of them.")
@json_option
def list_payments(
    *,
    ledger: str | None,
    states: Sequence[str],
    unfinished: bool,
    undelivered: bool,
    origin: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the payments, oldest first.

    \b
    open, failed   unfinished: the node may still make the payment
    settled        paid; the token is in use, or the one request that was
                   paid for isn't answered yet
    retired        paid; the token is no longer offered, or the one request
                   was answered
    dead           not paid, or abandoned

    On a terminal the hashes are shortened; any command takes what is shown. In a pipe each payment is one line of columns, with
    nothing cut off, and two blanks or more between them. JSON is a list of objects; amounts are in msat, as whole numbers.

    \b
    Examples:
      routeweiler-sync payments list --since 7d --origin '*.example.com'
      routeweiler-sync payments list --since 2026-10-01 --until 2026-11-01
      routeweiler-sync payments list --unfinished --json
      routeweiler-sync payments list | awk -F '  +' 'NR>1 {print $3}'
    """
    from .payment_words import as_json as object_of

    check_span(since, until)
    wanted = {*states, *(("open", "failed") if unfinished else ())}
    exact, pattern = _origin_or_pattern(origin)
    with reading(ledger) as (opened, exists):
        rows = _listed(opened, wanted, exact, pattern, since, until, limit, undelivered=undelivered) if exists else iter(())
        if as_json:
            print_json(map(object_of, rows))
            return
        has_any = exists and next(iter(opened.payments()), None) is not None
        empty = "No payment matches." if has_any else nothing_bought(opened, exists=exists)
        owed: list[PaymentRow] = []
        _print_rows(_noting(rows, owed), empty)
    _tell_owed(owed, ledger)


@payments.command()
@click.argument("payment_hash")
@ledger_option
@json_option
def show(*, payment_hash: str, ledger: str | None, as_json: bool) -> None:
    """Show all that is known about one payment, and what to do next.

    PAYMENT_HASH may be the first digits of the hash, at least 8. Neither the token nor the preimage is shown: the last line says
    how a Python program gets the preimage, which proves the payment.

    \b
    Example:
      routeweiler-sync payments show aa1573e2
    """
    from .payment_words import as_full_json, facts

    with named_payment(payment_hash, ledger) as (opened, row):
        if as_json:
            print_json([as_full_json(row, ledger)])
        else:
            print_facts(facts(row, ledger, opened.url))


@payments.command()
@ledger_option
@json_option
@click.pass_context
def recover(context: click.Context, *, ledger: str | None, as_json: bool) -> None:
    """Ask the node about all unfinished payments, and book its answers. No payment is started or sent again.

    The environment names the node, as for the command get.

    \b
    Example:
      routeweiler-sync payments recover
    """
    from .payment_words import as_json as object_of

    with reading(ledger) as (opened, exists):
        pending = opened.unfinished() if exists else []
        if not exists or not (pending or opened.abandoned() or opened.unreported()):
            if as_json:
                print_json([])
            else:
                print_line("No payment is unfinished." if exists else nothing_bought(opened, exists=exists))
            return
    rows = _recovered(context, ledger, pending)
    if as_json:
        print_json(map(object_of, rows))
    else:
        _print_rows(iter(rows), "No payment is unfinished.")
    left = [row for row in rows if row.unfinished]
    for row in left:
        print_line(f"The node reported no outcome of payment {row.payment_hash} yet. Its cost stays reserved.", err=True)
    context.exit(Exit.PENDING if left else Exit.OK)


@payments.command()
@ledger_option
@click.option("--before", type=Since(), required=True, metavar="WHEN", help="What ended before: 400d, 52w or 2025-11-01 (UTC).")
@click.option("--to", "file", metavar="FILE", help="The archive, of this ledger alone. It is made, or gets more.")
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
@click.option("--vacuum", is_flag=True, help="Then make the room free: see below.")
@json_option
def archive(*, ledger: str | None, before: datetime, file: str | None, dry_run: bool, vacuum: bool, as_json: bool) -> None:
    """Move payments that have ended long ago out of the ledger, into FILE.

    Moved are payments that were retired or dead before WHEN, at least 30 days ago, and tokens whose own time was over then. What
    is unfinished, in use, owed, not yet in a trace, or abandoned stays. Totals and limits of budgets stay as they are, and no
    archived invoice is ever paid again. Other programs may go on buying. If the command is stopped, nothing is lost: run it again.

    FILE is private (mode 0600). It has the preimages, which prove the payments, and no tokens. It is read like a ledger, by
    payments list --ledger FILE; and beside its ledger by report and budget audit, with --archive FILE.

    The room of moved payments is filled by new ones. --vacuum gives it back: an SQLite file gets smaller, which takes free disk of
    twice its new size, and buyers wait meanwhile. For PostgreSQL it runs VACUUM, for which nobody waits.

    \b
    Examples:
      routeweiler-sync payments archive --before 400d --dry-run
      routeweiler-sync payments archive --before 2025-11-01 --to 2025.db
    """
    if file is None and not dry_run:
        raise click.UsageError("say where to: --to FILE")
    batches: list[Archived] = []
    with reading(ledger) as (opened, exists):
        try:
            moved = opened.archive(file or "", before=before, dry_run=dry_run, progress=batches.append)
        except ValueError as error:
            raise click.UsageError(f"--before: {error}") from None
        except (LedgerError, KeyboardInterrupt):
            if batches:
                count = batches[-1].payments
                print_line(f"\nUntil then, {count} payments were moved to {file}. To move the rest, run it again.", err=True)
            raise
        _tell_archived(opened, moved, before, file, exists=exists, dry_run=dry_run, as_json=as_json)
        if vacuum and exists and not dry_run:
            opened.vacuum()  # last: what was moved is said also if there is no room for this


def _tell_archived(
    ledger: Ledger, moved: Archived, before: datetime, file: str | None, *, exists: bool, dry_run: bool, as_json: bool
) -> None:
    """Print what was moved, or would be."""
    if as_json:
        print_json([_archived_json(moved, before, file, dry_run=dry_run)])
    elif not exists:
        print_line(nothing_bought(ledger, exists=False))
    else:
        count = f"{moved.payments} payment{'' if moved.payments == 1 else 's'}"
        what = (
            f"{count} that ended before {before:%Y-%m-%d %H:%M} UTC, {moved.paid} of them paid ({sats(moved.spent_msat)} with fees)"
        )
        print_line(f"Would move {what}." if dry_run else f"Moved {what}, to {file}.")


def _archived_json(moved: Archived, before: datetime, file: str | None, *, dry_run: bool) -> dict[str, object]:
    return {
        "payments": moved.payments,
        "paid": moved.paid,
        "spentMsat": moved.spent_msat,
        "before": before.isoformat(),
        "archive": file,
        "dryRun": dry_run,
    }


@payments.command()
@click.argument("payment_hash")
@ledger_option
@json_option
def abandon(*, payment_hash: str, ledger: str | None, as_json: bool) -> None:
    """End an unfinished payment, if you know that the node will never make it.

    PAYMENT_HASH may be the first digits of the hash, at least 8. The payment's reservation is returned to the budget, and the next
    call may buy anew. If the node makes the payment after all, it is money spent twice; payments recover then books it.

    The environment's wallet is asked first, for at most 10 seconds. What it has paid isn't abandoned: the exit code is 3, and
    payments recover books it. If it is still paying, or can't be asked, the payment is abandoned, and a warning says so.

    \b
    Example:
      routeweiler-sync payments abandon aa1573e2
    """
    from ..ledger.ledger import ABANDONED
    from .payment_words import as_json as object_of
    from .wallet_check import warning_before_abandoning

    def decide(row: PaymentRow) -> Change:
        if not row.unfinished:
            raise LedgerError(
                f"Payment {row.payment_hash} isn't unfinished: it is {row.state.value}. Nothing was changed.",
                payment_hash=row.payment_hash,
            )
        return ABANDONED

    with named_payment(payment_hash, ledger) as (opened, named):
        warning = warning_before_abandoning(named, ledger) if named.unfinished else None
        row = opened.change(named.payment_hash, decide)
    if as_json:
        print_json([object_of(row)])
    else:
        print_line(
            f"Payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} is abandoned: its reservation is returned, and "
            "the next call may buy anew."
        )
    if warning is not None:
        print_line(warning, err=True)


def _noting(rows: Iterable[PaymentRow], owed: list[PaymentRow]) -> Iterator[PaymentRow]:
    """Yield ``rows``, and put the first of them that are paid for and not delivered into ``owed``."""
    for row in rows:
        if row.owed and len(owed) <= _TOLD_MAX:
            owed.append(row)
        yield row


def _tell_owed(owed: list[PaymentRow], ledger: str | None) -> None:
    """Say on stderr what to do about payments whose one request isn't answered yet."""
    from .payment_words import meaning, to_do

    for row in owed[:_TOLD_MAX]:
        print_line(f"Payment {row.payment_hash} to {row.origin}: {meaning(row)}. {' '.join(to_do(row, ledger))}", err=True)
    if len(owed) > _TOLD_MAX:
        print_line("There are more: routeweiler-sync payments list --undelivered", err=True)


def _listed(
    ledger: Ledger,
    states: set[str],
    origin: str | None,
    pattern: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    *,
    undelivered: bool,
) -> Iterator[PaymentRow]:
    """Return the payments to list, oldest first; with ``limit``, the newest of them. ``pattern``: see `_origin_or_pattern`."""
    state = next(iter(states)) if len(states) == 1 else None
    rows = ledger.payments(state=state, origin=origin, since=since, until=until, newest_first=limit is not None)
    wanted = (
        row
        for row in rows
        if (not states or row.state.value in states) and (row.owed or not undelivered) and _matches(row.origin, pattern)
    )
    return wanted if limit is None else reversed(list(islice(wanted, limit)))


def _origin_or_pattern(given: str | None) -> tuple[str | None, str | None]:
    """Return the origin that ``given`` is, if it is a URL without wildcards, else the pattern for origins that it is."""
    from ..policy.patterns import problem_of_origin

    if given is None:
        return None, None
    scheme, separator, rest = given.partition("://")
    if separator and "*" not in scheme + re.split("[/?#]", rest)[0]:
        with contextlib.suppress(ValueError):
            return origin_of(given), None
    problem = problem_of_origin(given) if given else "an origin is needed, such as https://example.com"
    if problem is not None:
        raise click.UsageError(printable(f"--origin: {problem}"))
    return None, given


def _matches(origin: str, pattern: str | None) -> bool:
    from ..policy.patterns import matches_origin

    return pattern is None or matches_origin(origin, pattern)


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


def _print_rows(rows: Iterable[PaymentRow], empty: str) -> None:
    from .payment_words import sat_number, styled_state

    print_table(
        _COLUMNS,
        (
            (
                row.created_at,
                styled_state(row),
                sat_number(row.amount_msat),
                None if row.settled_at is None else sat_number(row.fee_msat),
                row.payment_hash,
                row.origin,
                row.scope,
            )
            for row in rows
        ),
        empty=empty,
    )
