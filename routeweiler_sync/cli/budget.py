"""``routeweiler-sync budget``: list, show, set, freeze and thaw the envelopes of a ledger.

What the amounts mean and how limits are checked is left to `ledger`; the command ``budget audit`` is in `audit`.

Money: none can move here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from .._core import env_vars
from .._core.money import CURRENCIES, MAX_MINOR_UNITS, MSAT_PER_SAT, plain
from .audit import audit
from .groups import Group
from .ledgers import command_text, json_option, ledger_option, nothing_bought, opened_ledger, reading
from .outcome import printable
from .payment_words import UNITS
from .tables import FOLDED_WIDTH_MIN, Column, Styled, print_facts, print_json, print_line, print_table

if TYPE_CHECKING:
    from ..budgets.schema import BudgetEnvelope
    from ..ledger.types import EnvelopeRow

#: What ROUTEWEILER_BUDGET writes after a limit, by the limit's field.
_PERIODS = {
    "per_call_minor_units": "/call",
    "per_hour_minor_units": "/hour",
    "per_day_minor_units": "/day",
    "cap_minor_units": "",
}
#: The options of ``budget set``, by the limit's field.
_OPTIONS = {
    "cap_minor_units": "--cap",
    "per_call_minor_units": "--per-call",
    "per_hour_minor_units": "--per-hour",
    "per_day_minor_units": "--per-day",
}
_COLUMNS = (
    Column("envelope", folds=FOLDED_WIDTH_MIN),
    Column("state"),
    Column("unit"),
    Column("settled", number=True),
    Column("reserved", number=True),
    Column("headroom", number=True),
    Column("limits", folds=FOLDED_WIDTH_MIN),
)
_AGENT_COLUMNS = (
    Column("agent", folds=FOLDED_WIDTH_MIN),
    Column("spent sat", number=True),
    Column("fees in it", number=True),
    Column("payments", number=True),
)

if TYPE_CHECKING:
    _IntegerType = click.ParamType[int]
else:
    _IntegerType = click.ParamType  # not generic in older versions of click

#: The value of ``--cap none`` and the like. None means that the option wasn't given.
NO_LIMIT = -1


class LimitType(_IntegerType):
    """A limit on the command line: a whole number, or ``none``, which is `NO_LIMIT`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Raises: click.BadParameter for anything else."""
        text = str(value).strip().lower()
        if text == "none" or value == NO_LIMIT:
            return NO_LIMIT
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_MINOR_UNITS)) and int(text) <= MAX_MINOR_UNITS):
            self.fail(f"a limit is a whole number from 0 to {MAX_MINOR_UNITS}, or 'none'", param, ctx)
        return int(text)


@click.group(cls=Group)
def budget() -> None:
    """Show, set, freeze and audit the budgets in a ledger.

    A budget is an envelope: an id, limits, and what counts against them. Programs that share a ledger and name the same envelope
    share its totals. An envelope may lie in another one, as those of several agents may lie in one for all: what is spent counts in
    both, and the limits of both hold.

    \b
    Examples:
      routeweiler-sync budget list
      routeweiler-sync budget set lab --per-call 100 --per-day 5000
      routeweiler-sync budget set lab --cap none
      routeweiler-sync budget set scout --per-day 500 --parent lab
      routeweiler-sync budget show lab --by agent
      routeweiler-sync budget freeze lab

    \b
    Exit codes:
      0  done; list, show: also if nothing was bought yet;
         audit: the accounts agree
      1  audit: the accounts differ
      2  wrong usage, or no such ledger or envelope
      3  the ledger can't be used; audit: an account can't be read,
         the others agree
    """


@budget.command("list")
@ledger_option
@json_option
def list_envelopes(*, ledger: str | None, as_json: bool) -> None:
    """List all envelopes, with their totals and limits.

    \b
    settled    paid, routing fees included
    reserved   for payments whose outcome isn't known yet
    headroom   what the limits leave to spend at this moment

    Amounts are in sat, or in cents or other whole units of the envelope's currency, which the column "unit" names. In JSON they are
    exact: whole msat (null if the envelope doesn't count in sat), and minor units as strings.

    \b
    Examples:
      routeweiler-sync budget list
      routeweiler-sync budget list --json
    """
    with reading(ledger) as (opened, exists):
        rows = list(opened.envelopes()) if exists else []
        empty = (
            f"{opened.url} holds no envelope yet: nothing was ever bought with it."
            if exists
            else nothing_bought(opened, exists=False)
        )
    if as_json:
        print_json(map(envelope_json, rows))
    else:
        print_table(_COLUMNS, [_cells(row) for row in rows], empty=empty)


@budget.command()
@click.argument("envelope", required=False)
@click.option("--by", type=click.Choice(["agent"]), help="Show what was spent, by agent.")
@ledger_option
@json_option
@click.pass_context
def show(context: click.Context, *, envelope: str | None, by: str | None, ledger: str | None, as_json: bool) -> None:
    """Show everything about ENVELOPE: limits, totals, grant. Without ENVELOPE, list all envelopes.

    --by agent shows what each agent has spent from ENVELOPE and from those that lie in it, or in all. An agent is the agent_id of
    sessions. A payment belongs to the agent that began it; others may use its token.

    \b
    Examples:
      routeweiler-sync budget show default
      routeweiler-sync budget show lab --by agent
    """
    if by is not None:
        _show_agents(envelope, ledger, as_json=as_json)
        return
    if envelope is None:
        context.invoke(list_envelopes, ledger=ledger, as_json=as_json)
        return
    with opened_ledger(ledger) as opened:
        row = opened.envelope(envelope)
    if as_json:
        print_json([envelope_json(row)])
    else:
        print_facts(_facts(row, ledger))


def _show_agents(envelope: str | None, ledger: str | None, *, as_json: bool) -> None:
    with reading(ledger) as (opened, exists):
        if envelope is not None:
            opened.envelope(envelope)
        spent = opened.spending_by_agent(envelope=envelope)
        empty = (
            f"{opened.url}: nothing was spent{'' if envelope is None else f' from envelope {envelope!r}'} yet."
            if exists
            else nothing_bought(opened, exists=False)
        )
    if as_json:
        print_json(
            {"agentId": agent, "totalMsat": each.total_msat, "feesMsat": each.fees_msat, "payments": each.payments}
            for agent, each in spent.items()
        )
        return
    rows = [
        (
            agent or "(none)",
            plain(Decimal(each.total_msat) / MSAT_PER_SAT),
            plain(Decimal(each.fees_msat) / MSAT_PER_SAT),
            each.payments,
        )
        for agent, each in spent.items()
    ]
    print_table(_AGENT_COLUMNS, rows, empty=empty)


@budget.command("set")
@click.argument("envelope")
@click.option("--cap", type=LimitType(), metavar="N", help="The most that may be spent in all.")
@click.option("--per-call", type=LimitType(), metavar="N", help="The most that one call may spend.")
@click.option("--per-hour", type=LimitType(), metavar="N", help="The most within any hour.")
@click.option("--per-day", type=LimitType(), metavar="N", help="The most within any day.")
@click.option("--parent", metavar="ENVELOPE", help="Put it into this envelope: the limits of both hold.")
@click.option("--no-parent", is_flag=True, help="Take it out of the envelope that it lies in.")
@click.option(
    "--currency", type=click.Choice(CURRENCIES), help="What N counts: sat, cents of usd and eur, pence of gbp, jpy. Default: sat."
)
@ledger_option
@json_option
def set_limits(
    *,
    envelope: str,
    cap: int | None,
    per_call: int | None,
    per_hour: int | None,
    per_day: int | None,
    parent: str | None,
    no_parent: bool,
    currency: str | None,
    ledger: str | None,
    as_json: bool,
) -> None:
    """Create ENVELOPE, or change its limits, and show what is in force then.

    Limits that aren't named stay as they are; none removes one. Totals stay, so a limit may be set below what is spent already:
    nothing more is bought then until it is raised, or until the hour or day has moved on. Limits count routing fees too.

    --parent puts ENVELOPE into another one, which must exist and count in the same currency. What is spent from ENVELOPE then
    counts in both, and the limits of both hold. This can't be changed once a payment has counted in ENVELOPE.

    They hold from the next purchase on, for all programs that name the envelope by its id: budget_envelope="ENVELOPE". A program
    that brings limits of its own for this id, by BudgetEnvelope("ENVELOPE", ...) or by ROUTEWEILER_BUDGET for the envelope
    "default", writes those at its next purchase.

    \b
    Examples:
      routeweiler-sync budget set lab --per-call 100 --per-day 5000
      routeweiler-sync budget set lab --cap none
      routeweiler-sync budget set scout --per-day 500 --parent lab
      routeweiler-sync budget set shop --currency eur --per-day 250
    """
    given = {
        "cap_minor_units": cap,
        "per_call_minor_units": per_call,
        "per_hour_minor_units": per_hour,
        "per_day_minor_units": per_day,
    }
    changes: dict[str, Any] = {name: None if value == NO_LIMIT else value for name, value in given.items() if value is not None}
    if parent is not None and no_parent:
        raise click.UsageError("--parent and --no-parent exclude each other. Nothing was changed.")
    if parent is not None or no_parent:
        changes["parent"] = parent
    if not changes:
        raise click.UsageError("give --cap, --per-call, --per-hour, --per-day, --parent or --no-parent. Nothing was changed.")
    existed = False

    def decide(limits: BudgetEnvelope | None) -> BudgetEnvelope:
        nonlocal existed
        existed = limits is not None
        return _changed(limits, envelope, currency, changes)

    try:
        with opened_ledger(ledger, create=True) as opened:
            row = opened.set_limits(envelope, decide)
            url = opened.url
    except ValueError as error:
        raise click.UsageError(printable(f"{error}. Nothing was changed.")) from None
    if as_json:
        print_json([envelope_json(row)])
    else:
        done = f"Envelope {row.id!r} of {url} is {'changed' if existed else 'made'}."
        whom = "programs that name it by its id and bring no limits of their own"
        print_line(f"{done} In force from the next purchase on, for {whom}:")
        print_facts(_facts(row, ledger))
    for warning in (*_exceeded(row), *_brought_along(row)):
        print_line(warning, "yellow", err=True)


def _changed(limits: BudgetEnvelope | None, envelope_id: str, currency: str | None, changes: Mapping[str, Any]) -> BudgetEnvelope:
    """Return ``limits`` with ``changes``, or a new envelope with them if the ledger has none.

    Raises: click.UsageError for another currency than the envelope counts in. ValueError for changes that can't be made.
    """
    from ..budgets.schema import BudgetEnvelope

    if limits is None:
        return BudgetEnvelope(envelope_id, cap_currency=currency or "sat", **changes)
    if currency not in (None, limits.cap_currency):
        raise click.UsageError(
            f"envelope {printable(repr(envelope_id))} counts in {limits.cap_currency}, and its totals can't be converted: use "
            "another envelope for another currency. Nothing was changed."
        )
    return replace(limits, **changes)


@budget.command()
@click.argument("envelope")
@ledger_option
@json_option
def freeze(*, envelope: str, ledger: str | None, as_json: bool) -> None:
    """Refuse all further purchases from ENVELOPE.

    This holds in all programs that share the ledger. A payment that is under way is still made, and tokens that are paid for are
    still used.

    \b
    Example:
      routeweiler-sync budget freeze lab
    """
    with opened_ledger(ledger) as opened:
        row, url = opened.freeze(envelope), opened.url
    if as_json:
        print_json([envelope_json(row)])
    else:
        print_line(f"Envelope {envelope!r} of {url} is frozen: nothing more is bought from it.")


@budget.command()
@click.argument("envelope")
@ledger_option
@json_option
def thaw(*, envelope: str, ledger: str | None, as_json: bool) -> None:
    """Allow purchases from ENVELOPE again, within its limits.

    \b
    Example:
      routeweiler-sync budget thaw lab
    """
    with opened_ledger(ledger) as opened:
        row, url = opened.thaw(envelope), opened.url
    if as_json:
        print_json([envelope_json(row)])
    else:
        rest = ": its limits apply"
        if row.frozen_id is not None:
            rest = f" any more, but {row.frozen_id!r}, in which it lies, is: nothing is bought from it"
        print_line(f"Envelope {envelope!r} of {url} isn't frozen{rest}.")


budget.add_command(audit)


# Warnings


def _exceeded(row: EnvelopeRow) -> list[str]:
    """Return a sentence for each limit that is below what counts against it already."""
    until = {"cap_minor_units": "it is raised"}
    return [
        f"{_OPTIONS[name]} {getattr(row.limits, name)} is below the {_amount(used, row)} that are spent or reserved already: "
        f"nothing is bought until {until.get(name, 'it is raised, or the time has moved on')}."
        for name, used in row.used_minor_units.items()
        if used > getattr(row.limits, name)
    ]


def _brought_along(row: EnvelopeRow) -> list[str]:
    """Return what to know of an envelope whose limits sessions without a budget of their own bring along."""
    from ..budgets.schema import SAFE_DEFAULT

    currency = row.limits.cap_currency
    if row.id != (SAFE_DEFAULT.id if currency == "sat" else f"{SAFE_DEFAULT.id}-{currency}"):
        return []
    safe, these = (", ".join(_limits(limits, limits.cap_currency)) for limits in (SAFE_DEFAULT, row.limits))
    return [
        f"Programs that name no envelope bring limits for {row.id!r} themselves: those of {env_vars.BUDGET}, or else {safe}. These "
        f"replace what was set here at the next purchase. To make them bring what was set: {env_vars.BUDGET}='{these or 'none'}'"
    ]


# Output


def _cells(row: EnvelopeRow) -> Sequence[object]:
    headroom = row.headroom_minor_units
    return (
        row.id,
        _state(row),
        _unit(row).replace(" ", "-"),
        plain(row.settled_minor_units),
        plain(row.reserved_minor_units),
        None if headroom is None else plain(headroom),
        [*_limits(row.limits, _unit(row)), *_origins(row.limits), *([] if row.parent is None else [f"within {row.parent.id}"])]
        or "none",
    )


def _facts(row: EnvelopeRow, ledger: str | None) -> list[tuple[str, object]]:
    limits, end, headroom = row.limits, _grant_end(row), row.headroom_minor_units
    thaw_command = command_text("budget", "thaw", row.frozen_id or row.id, ledger=ledger)
    return [
        ("envelope", row.id),
        ("state", [_state(row), f"To allow purchases again: {thaw_command}"] if row.frozen_id else _state(row)),
        ("limits", _limits(limits, _unit(row)) or ("none: any amount may be spent" if row.parent is None else "none of its own")),
        ("left", [_left(name, row) for name in _PERIODS if name in row.used_minor_units and name != "per_call_minor_units"]),
        ("settled", f"{_amount(row.settled_minor_units, row)}, routing fees included"),
        ("reserved", f"{_amount(row.reserved_minor_units, row)}, for payments whose outcome isn't known yet"),
        ("headroom", "no limit" if headroom is None else f"{_amount(headroom, row)} to spend at this moment"),
        ("grant", None if limits.ttl_seconds is None else f"{limits.ttl_seconds} s from the first purchase"),
        ("grant settled", None if limits.ttl_seconds is None else _amount(row.grant_settled_minor_units, row)),
        ("grant began", None if limits.ttl_seconds is None else row.granted_at),
        ("grant ends", end),
        ("origins", "all" if tuple(limits.allowed_origins_glob) == ("*",) else list(limits.allowed_origins_glob) or "none"),
        ("rails", list(limits.allowed_rails) or "none"),
        ("owner", limits.owner_agent_id),
        ("within", None if row.parent is None else [*(f"{each.id}: {_outer(each)}" for each in _parents(row))]),
    ]


def _parents(row: EnvelopeRow) -> Iterator[EnvelopeRow]:
    """Yield the envelopes that ``row`` lies in, from the inside out."""
    parent = row.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _outer(row: EnvelopeRow) -> str:
    """Return what an envelope allows those that lie in it."""
    limits = ", ".join(_limits(row.limits, _unit(row))) or "no limit"
    left = "" if row.headroom_minor_units is None else f", {_amount(row.headroom_minor_units, row)} left"
    return f"{limits}{left}{', frozen' if row.frozen else ''}"


def _left(name: str, row: EnvelopeRow) -> str:
    left, period = row.headrooms_minor_units[name], _PERIODS[name] or " in all"
    return f"{_amount(left, row)}{period} ({plain(row.used_minor_units[name])} of {getattr(row.limits, name)} used)"


def _state(row: EnvelopeRow) -> Styled:
    if row.frozen_id is not None:
        return Styled("frozen" if row.frozen else f"frozen by {row.frozen_id}", "bold red")
    return Styled("open", "")


def _limits(limits: BudgetEnvelope, unit: str) -> list[str]:
    """Return the limits, one a text. With the currency as ``unit``, ROUTEWEILER_BUDGET can be set to them, joined by commas."""
    return [f"{value} {unit}{period}" for name, period in _PERIODS.items() if (value := getattr(limits, name)) is not None]


def _origins(limits: BudgetEnvelope) -> list[str]:
    return [] if tuple(limits.allowed_origins_glob) == ("*",) else [f"at {glob}" for glob in limits.allowed_origins_glob]


def _unit(row: EnvelopeRow) -> str:
    return UNITS[row.limits.cap_currency]


def _amount(minor_units: Decimal, row: EnvelopeRow) -> str:
    return f"{plain(minor_units)} {_unit(row)}"


def _grant_end(row: EnvelopeRow) -> datetime | None:
    """Return when the present grant (``ttl_seconds``) ends. None if there is no grant, or if it ends beyond the year 9999."""
    if row.granted_at is None or row.limits.ttl_seconds is None:
        return None
    try:
        return row.granted_at + timedelta(seconds=row.limits.ttl_seconds)
    except OverflowError:
        return None


def _msat(minor_units: Decimal | None, row: EnvelopeRow) -> int | None:
    """Return an amount of a sat envelope in msat, exactly; None for other currencies, whose rate changes."""
    if minor_units is None or row.limits.cap_currency != "sat":
        return None
    from fractions import Fraction

    exact = Fraction(minor_units) * MSAT_PER_SAT
    return -(-exact.numerator // exact.denominator)


def envelope_json(row: EnvelopeRow) -> Mapping[str, Any]:
    """Return an envelope as an object of ``--json``."""
    limits, end, headroom = row.limits, _grant_end(row), row.headroom_minor_units
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
        "parentId": limits.parent_id,
        "frozenById": row.frozen_id,
        "settledMsat": _msat(row.settled_minor_units, row),
        "reservedMsat": _msat(row.reserved_minor_units, row),
        "headroomMsat": _msat(headroom, row),
        "reservedMinorUnits": plain(row.reserved_minor_units),
        "settledMinorUnits": plain(row.settled_minor_units),
        "grantSettledMinorUnits": plain(row.grant_settled_minor_units),
        "headroomMinorUnits": None if headroom is None else plain(headroom),
        "grantedAt": None if row.granted_at is None else row.granted_at.isoformat(),
        "grantEndsAt": None if end is None else end.isoformat(),
    }
