"""Amounts and rates as a report writes them: exact decimals, fiat in its main unit (dollars, not cents)."""

from __future__ import annotations

from functools import lru_cache

from .._core.money import FIAT_DECIMALS


def sat(amount_msat: int) -> str:
    """Return an amount in sat as a plain decimal, such as ``10.5``."""
    return _decimal(amount_msat, 3)


def major(micro: int, currency: str) -> str:
    """Return millionths of a minor unit of ``currency`` in its main unit, as a plain decimal. The sat is its own main unit."""
    return _decimal(micro, 6 + FIAT_DECIMALS.get(currency, 0))


@lru_cache(maxsize=4096)  # prices recur
def _decimal(number: int, places: int) -> str:
    """Return ``number``, which isn't negative, with its last ``places`` digits behind the point, without zeros at the end."""
    whole, rest = divmod(number, 10**places)
    return f"{whole}.{rest:0{places}d}".rstrip("0") if rest else str(whole)


def unit(currency: str) -> str:
    """Return the name of a currency's main unit."""
    return currency if currency == "sat" else currency.upper()


def duration(ms: int) -> str:
    """Return a time for people."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 120_000:
        return f"{ms / 1000:.3g} s" if ms < 100_000 else f"{ms // 1000} s"
    return f"{ms // 60_000} min"


def percent(share: float | None) -> str:
    """Return a percentage for people; a dash for none."""
    if share is None:
        return "–"
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"
