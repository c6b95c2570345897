"""What the budget leaves to spend, and what can be paid at most: the least of budget and wallet."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

from .._core import env_vars
from .._core.money import EXACT, MSAT_PER_SAT, Rate, plain
from .._core.secret_text import shown
from ..budgets.fmv import rate_for
from ..budgets.schema import BudgetEnvelope
from ..errors import FmvUnavailableError
from ..ledger.envelopes import how_to_raise
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by
from .wallets import whole_sats

if TYPE_CHECKING:
    from ..ledger.types import EnvelopeRow
    from .ledger_file import Look
    from .wallets import Examination

_PERIODS = {
    "per_call_minor_units": "a call",
    "per_hour_minor_units": "this hour",
    "per_day_minor_units": "today",
    "cap_minor_units": "in all",
}
#: How a currency's minor unit is called.
_MINOR_UNITS = {"usd": "cents (usd)", "eur": "cents (eur)", "gbp": "pence (gbp)", "jpy": "yen"}


def findings(
    looked: Look, envelope: BudgetEnvelope | str | None, *, from_environment: bool, look_s: float, paying: Examination | None
) -> Iterator[Finding]:
    """Yield what the budget leaves, and the largest payment.

    ``envelope`` is the session's: an envelope, the id of one in the ledger, or None for no limit.
    """
    most_msat: int | None = None
    if envelope is None:
        advice = f"Set {env_vars.BUDGET}, for example to '1000 sat/call, 50000 sat/day'." if from_environment else "Give it one."
        yield warning("budget", "there is no limit: a program may spend all that the node has", advice)
    elif isinstance(envelope, str) and envelope not in looked.envelopes:
        if looked.is_readable or looked.is_new:
            advice = "Correct the id: routeweiler-sync budget show lists those that there are."
            yield wrong("budget", f"the ledger holds no envelope {shown(envelope)}", advice)
        return
    else:
        row = looked.envelopes.get(envelope if isinstance(envelope, str) else envelope.id)
        limits = row.limits if isinstance(envelope, str) and row is not None else envelope
        assert isinstance(limits, BudgetEnvelope)
        if row is not None and row.limits.cap_currency != limits.cap_currency:
            what = f"the ledger counts the envelope {shown(limits.id)} in {row.limits.cap_currency}, not in {limits.cap_currency}"
            yield wrong("budget", what, "Use another envelope id, or name another ledger.")
            return
        chain = list(_chain(limits, row, looked.envelopes))
        missing = chain[-1].missing_id
        if missing is not None:
            advice = "Correct the id: routeweiler-sync budget show lists those that there are."
            yield wrong("budget", f"the ledger holds no envelope {shown(missing)}, in which {shown(limits.id)} is to lie", advice)
            return
        yield _budget(chain, from_environment=from_environment)
        if row is not None and row.frozen_id is not None:
            return
        rate = Rate(currency="sat")
        if limits.cap_currency != "sat":
            found, priced = _rate(limits.cap_currency, look_s)
            yield found
            if priced is None:
                return
            rate = priced
        lefts = [left for each in chain for left in each.left.values()]
        if lefts:
            most_msat = rate.msat_within(int(min(lefts).scaleb(6)))
    if paying is not None:
        yield from _largest(most_msat, paying.payable_msat, has_channels=paying.has_channels)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """An envelope of a chain: its limits as a purchase would find them, and its row, None if it isn't in the ledger yet.

    ``missing_id``: the envelope that it is to lie in, if nothing has that.
    """

    limits: BudgetEnvelope
    row: EnvelopeRow | None
    missing_id: str | None

    @property
    def left(self) -> dict[str, Decimal]:
        """What each limit that is set leaves, in minor units, by the name of its field."""
        with localcontext(EXACT):
            used = {} if self.row is None else self.row.used_minor_units
            return {
                name: max(Decimal(0), Decimal(getattr(self.limits, name)) - used.get(name, Decimal(0)))
                for name in _PERIODS
                if getattr(self.limits, name) is not None
            }

    @property
    def unit(self) -> str:
        """How the minor unit of its amounts is called."""
        return _MINOR_UNITS.get(self.limits.cap_currency, self.limits.cap_currency)

    @property
    def said(self) -> str:
        """What each limit leaves, in words."""
        left = self.left
        return ", ".join(
            f"{plain(left[name])} {self.unit} {period}" if name == "per_call_minor_units"
            else f"{plain(left[name])} of {getattr(self.limits, name)} {self.unit} {period}"
            for name, period in _PERIODS.items()
            if name in left
        )  # fmt: skip


def _chain(limits: BudgetEnvelope | None, row: EnvelopeRow | None, envelopes: Mapping[str, EnvelopeRow]) -> Iterator[_Level]:
    """Yield an envelope and all that it lies in, as it is given or else as the ledger has it, from the inside out."""
    while limits is not None:
        parent_id = limits.parent_id if row is None or limits.parent is not None else row.limits.parent_id
        outer = None if parent_id is None else envelopes.get(parent_id)
        given = limits.parent if isinstance(limits.parent, BudgetEnvelope) else None
        around = given if given is not None or outer is None else outer.limits
        yield _Level(limits=limits, row=row, missing_id=parent_id if around is None else None)
        limits, row = around, outer


def _budget(chain: Sequence[_Level], *, from_environment: bool) -> Finding:
    limits, row = chain[0].limits, chain[0].row
    named = f"envelope {shown(limits.id)}"
    if row is not None and row.frozen_id is not None:
        thaw = f"To allow payments from it again, run: routeweiler-sync budget thaw {shlex.quote(row.frozen_id)}"
        whose = "" if row.frozen else f" lies in {shown(row.frozen_id)}, which"
        return wrong("budget", f"{named}{whose} is frozen: nothing is paid from it", thaw)
    if not any(each.left for each in chain):
        return warning("budget", f"{named} has no limit: a program may spend all that the node has", "Set one.")
    reserved = (
        f"; {plain(row.reserved_minor_units)} {chain[0].unit} reserved" if row is not None and row.reserved_minor_units else ""
    )
    for each in chain:
        spent = [name for name, left in each.left.items() if left <= 0]
        if not spent:
            continue
        wait = ", or wait until the window has moved on" if {"per_hour_minor_units", "per_day_minor_units"} & set(spent) else ""
        raising = how_to_raise(each.limits, spent[0]) if from_environment or each is not chain[0] else "Raise the limit"
        periods = ", ".join(_PERIODS[name] for name in spent)
        if each is chain[0]:
            return wrong("budget", f"{named} is used up ({periods}): {each.said} left{reserved}", f"{raising}{wait}.")
        what = f"{named} lies in {shown(each.limits.id)}, which is used up ({periods}): {each.said} left"
        return wrong("budget", what, f"{raising}{wait}.")
    around = "".join(f"; within {shown(each.limits.id)}: {each.said} left" for each in chain[1:] if each.left)
    own = f"{chain[0].said} left" if chain[0].left else "no limit of its own"
    return ok("budget", f"{named}: {own}{reserved}{around}")


def _rate(currency: str, look_s: float) -> tuple[Finding, Rate | None]:
    """Return whether the price of bitcoin in ``currency`` can be had: a budget in a fiat currency needs it."""
    try:
        rate = within(look_s * 2, lambda: rate_for(currency, None))
    except TooSlowError as error:
        what = f"the price of bitcoin in {currency} can't be had: {error}"
        return wrong("rate", what, "Try again later, or use a budget in sat."), None
    except FmvUnavailableError as error:
        return wrong_by("rate", error), None
    assert rate.btc_price is not None
    return ok("rate", f"1 bitcoin is {plain(rate.btc_price)} {currency} ({rate.quality})"), rate


def _largest(budget_msat: int | None, wallet_msat: int | None, *, has_channels: bool) -> Iterator[Finding]:
    """Yield the most that one payment may be. ``has_channels``: the wallet is a node."""
    if not wallet_msat or budget_msat == 0:
        return
    could, holds = ("channels could carry", "channels hold") if has_channels else ("wallet could pay", "wallet holds")
    if budget_msat is not None and budget_msat <= wallet_msat:
        what = f"at most {_about(budget_msat)} with routing, by the budget; the {could} about {_about(wallet_msat)}"
        yield ok("payable", what)
    elif budget_msat is None:
        yield ok("payable", f"at most about {_about(wallet_msat)}, by what the {holds}")
    else:
        what = f"at most about {_about(wallet_msat)}: the {holds} less than the {_about(budget_msat)} that the budget allows"
        more = "Open another channel or get paid" if has_channels else "Put more money into it"
        yield warning("payable", what, f"{more}, if you want to pay more at once.")


def _about(msat: int) -> str:
    return whole_sats(msat) if msat >= MSAT_PER_SAT else f"{msat} msat"
