"""``routeweiler-sync budget``: show, freeze and thaw the envelopes of a ledger.

What the amounts mean and how limits are checked is left to `ledger`; the command ``budget audit`` is in `audit`.

Money: none can move here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from .._core.money import plain
from ..config import env_settings
from ..errors import BudgetError, LedgerError
from .audit import audit
from .outcome import exit_for, printable, text_of

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import EnvelopeRow

ledger_option = click.option(
    "--ledger", metavar="URL", help="Path or URL of the ledger. Default: ROUTEWEILER_LEDGER, else the user's own ledger."
)

_PERIODS = {
    "per_call_minor_units": "/call",
    "per_hour_minor_units": "/hour",
    "per_day_minor_units": "/day",
    "cap_minor_units": "",
}


@click.group()
def budget() -> None:
    """Show, freeze and audit the budgets in a ledger.

    \b
    Exit codes:
      0  done; audit: the accounts agree
      1  audit: the accounts differ
      2  wrong usage, or no such ledger or envelope
      3  the ledger can't be used; audit: an account can't be read,
         the others agree
    """


@budget.command()
@click.argument("envelope", required=False)
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object. Amounts are exact, as strings, in minor units.")
def show(*, envelope: str | None, ledger: str | None, as_json: bool) -> None:
    """Show the limits and totals of ENVELOPE, or of all envelopes.

    \b
    reserved   for payments whose outcome isn't known yet
    settled    paid, routing fees included
    headroom   what the limits leave to spend at this moment
    """
    with opened_ledger(ledger) as opened:
        rows = [opened.envelope(envelope)] if envelope is not None else list(opened.envelopes())
        url = opened.url
    if as_json:
        click.echo(json.dumps({"ledger": url, "envelopes": [_as_json(row) for row in rows]}))
    elif not rows:
        click.echo(f"{printable(url)} holds no envelope yet: nothing was ever bought with it.")
    else:
        _print_table(rows)


@budget.command()
@click.argument("envelope")
@ledger_option
def freeze(*, envelope: str, ledger: str | None) -> None:
    """Refuse all further purchases from ENVELOPE.

    This holds in all programs that share the ledger. A payment that is under way is still made, and tokens that are paid for are
    still used.
    """
    with opened_ledger(ledger) as opened:
        opened.freeze(envelope)
        click.echo(f"Envelope {printable(repr(envelope))} of {printable(opened.url)} is frozen: nothing more is bought from it.")


@budget.command()
@click.argument("envelope")
@ledger_option
def thaw(*, envelope: str, ledger: str | None) -> None:
    """Allow purchases from ENVELOPE again, within its limits."""
    with opened_ledger(ledger) as opened:
        opened.thaw(envelope)
        click.echo(f"Envelope {printable(repr(envelope))} of {printable(opened.url)} isn't frozen: its limits apply.")


budget.add_command(audit)


@contextlib.contextmanager
def opened_ledger(url: str | None) -> Iterator[Ledger]:
    """Open an existing ledger, and close it after use. ``url``: None means the environment's ledger.

    Errors of the ledger, inside the ``with`` too, become a message and an exit code.
    """
    from ..ledger.ledger import Ledger

    try:
        with contextlib.closing(Ledger.open(env_settings.ledger_url() if url is None else url)) as ledger:
            if not ledger.exists():
                raise click.UsageError(f"there is no ledger at {printable(ledger.url)}")
            yield ledger
    except BudgetError as error:
        raise click.UsageError(printable(text_of(error))) from None
    except LedgerError as error:
        click.echo(printable(text_of(error)), err=True)
        raise click.exceptions.Exit(exit_for(error, paid=False)) from None


def _grant_end(row: EnvelopeRow) -> datetime | None:
    """Return when the present grant (``ttl_seconds``) ends. None if there is no grant, or if it ends beyond the year 9999."""
    if row.granted_at is None or row.limits.ttl_seconds is None:
        return None
    try:
        return row.granted_at + timedelta(seconds=row.limits.ttl_seconds)
    except OverflowError:
        return None


def _as_json(row: EnvelopeRow) -> dict[str, Any]:
    limits, end = row.limits, _grant_end(row)
    return {
        "id": row.id,
        "currency": limits.cap_currency,
        "frozen": row.frozen,
        "limits": {
            "capMinorUnits": limits.cap_minor_units,
            "perCallMinorUnits": limits.per_call_minor_units,
            "perHourMinorUnits": limits.per_hour_minor_units,
            "perDayMinorUnits": limits.per_day_minor_units,
            "ttlSeconds": limits.ttl_seconds,
            "allowedRails": list(limits.allowed_rails),
            "allowedOriginsGlob": list(limits.allowed_origins_glob),
            "ownerAgentId": limits.owner_agent_id,
        },
        "reservedMinorUnits": plain(row.reserved_minor_units),
        "settledMinorUnits": plain(row.settled_minor_units),
        "grantSettledMinorUnits": plain(row.grant_settled_minor_units),
        "headroomMinorUnits": None if row.headroom_minor_units is None else plain(row.headroom_minor_units),
        "grantedAt": None if row.granted_at is None else row.granted_at.isoformat(),
        "grantEndsAt": None if end is None else end.isoformat(),
    }


def _print_table(rows: list[EnvelopeRow]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for column in ("envelope", "limits", "reserved", "settled", "headroom", "grant ends", "state"):
        table.add_column(column, overflow="fold", justify="right" if column in ("reserved", "settled", "headroom") else "left")
    for row in rows:
        end, headroom = _grant_end(row), row.headroom_minor_units
        table.add_row(
            Text(printable(row.id)),
            Text(_limits(row)),
            Text(_amount(row.reserved_minor_units, row)),
            Text(_amount(row.settled_minor_units, row)),
            Text("-" if headroom is None else _amount(headroom, row)),
            Text("-" if end is None else f"{end:%Y-%m-%d %H:%M:%S} UTC"),
            Text("frozen", "bold red") if row.frozen else Text("open"),
        )
    Console().print(table)


def _limits(row: EnvelopeRow) -> str:
    """Return the limits as ROUTEWEILER_BUDGET writes them, one a line, then the origins if they are restricted."""
    limits = [
        f"{value} {row.limits.cap_currency}{period}"
        for name, period in _PERIODS.items()
        if (value := getattr(row.limits, name)) is not None
    ]
    if tuple(row.limits.allowed_origins_glob) != ("*",):
        limits.append(f"at {', '.join(printable(glob) for glob in row.limits.allowed_origins_glob)}")
    return "\n".join(limits) or "none"


def _amount(minor_units: Decimal, row: EnvelopeRow) -> str:
    return f"{plain(minor_units)} {row.limits.cap_currency}"
