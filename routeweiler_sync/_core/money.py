"""Amounts as integers: msat, minor units (sat, cent, yen) and the millionths of a minor unit in which totals are kept.

Every conversion from msat rounds up, so that rounding never lets a limit be passed; the way back rounds down. Where a price of
bitcoin comes from is left to `budgets`.

A program may set any decimal context: precision, rounding, traps. Arithmetic with Decimals is done in `EXACT`, so that none of them
matters here.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction

from .secret_text import shown

#: Totals are kept in millionths of a minor unit, so that a 10-sat call doesn't cost a whole cent.
MICRO = 1_000_000
#: The decimal context of this package: enough digits for every amount, limit and price. All parts are given, because a part that
#: isn't is taken from `decimal.DefaultContext`, which a program may have changed. Use it by ``with localcontext(EXACT):``.
EXACT = Context(
    prec=60,
    rounding=ROUND_HALF_EVEN,
    Emin=MIN_EMIN,
    Emax=MAX_EMAX,
    capitals=1,
    clamp=0,
    flags=[],
    traps=[InvalidOperation, DivisionByZero, Overflow],
)
MSAT_PER_SAT = 1_000
MSAT_PER_BTC = 100_000_000_000
#: Decimal places of a currency's minor unit; the sat is its own minor unit.
FIAT_DECIMALS = {"usd": 2, "eur": 2, "gbp": 2, "jpy": 0}
CURRENCIES = ("sat", *FIAT_DECIMALS)
#: The most decimal places, before or after the point, of a price of bitcoin. The bound keeps arithmetic on a wrong price short.
MAX_PRICE_PLACES = 18
#: Limits are bounded so that totals in millionths fit a signed 64-bit column with room to spare.
MAX_MINOR_UNITS = 4_000_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """An exchange rate from msat to an envelope's currency, and how it is known.

    ``btc_price`` is the price of one bitcoin in units (not minor units) of ``currency``; None for ``sat``, which needs no price.
    ``quality`` says how the price is known, as the trace writes it (``exact``, ``static``, ``coingecko_simple``, …).

    Raises: ValueError for an unknown currency or an impossible price.
    """

    currency: str
    btc_price: Decimal | None = None
    quality: str = "exact"

    def __post_init__(self) -> None:
        if self.currency not in CURRENCIES:
            raise ValueError(f"unknown currency {shown(self.currency)}: one of {', '.join(CURRENCIES)}")
        if (self.btc_price is None) != (self.currency == "sat"):
            raise ValueError("a fiat currency needs a price of bitcoin, sat has none")
        if self.btc_price is not None and not (self.btc_price.is_finite() and self.btc_price > 0):
            raise ValueError("the price of bitcoin must be positive and finite")
        if self.btc_price is not None and abs(self.btc_price.adjusted()) > MAX_PRICE_PLACES:
            raise ValueError(f"{self.btc_price:.3e} can't be the price of a bitcoin")

    @property
    def _micro_per_msat(self) -> Fraction:
        if self.btc_price is None:
            return Fraction(MICRO, MSAT_PER_SAT)
        return Fraction(self.btc_price) * Fraction(10 ** FIAT_DECIMALS[self.currency] * MICRO, MSAT_PER_BTC)

    def micro_of(self, amount_msat: int) -> int:
        """Return ``amount_msat`` in millionths of a minor unit, rounded up."""
        return -((-amount_msat * self._micro_per_msat) // 1)

    def msat_within(self, micro: int) -> int:
        """Return the most msat whose `micro_of` is at most ``micro``, millionths of a minor unit. 0 for a negative ``micro``."""
        return max(0, micro) // self._micro_per_msat

    def minor_units_of(self, amount_msat: int) -> Decimal:
        """Return ``amount_msat`` in minor units, rounded up at the sixth decimal place."""
        return minor_units(self.micro_of(amount_msat))


def minor_units(micro: int) -> Decimal:
    """Return ``micro``, millionths of a minor unit, as minor units, exactly."""
    return Decimal(f"{micro}E-6")  # no arithmetic, which would round as the program's decimal context says


def plain(amount: Decimal) -> str:
    """Return ``amount`` as a text without an exponent and without zeros at its end, such as ``10.5``."""
    with localcontext(EXACT):
        return f"{amount.normalize():f}"


def minor_text(amount: Decimal | int, currency: str) -> str:
    """Return ``amount``, in minor units of ``currency``, as a text for people: ``10 sat``, ``0.05 usd``."""
    places = FIAT_DECIMALS.get(currency, 0)
    with localcontext(EXACT):
        units = Decimal(amount).scaleb(-places)
        whole = units.quantize(Decimal(1).scaleb(-places))
        return f"{whole:f} {currency}" if whole == units else f"{plain(units)} {currency}"


def sats(amount_msat: int) -> str:
    """Return an amount as a text for people, such as ``10 sat`` or ``10.500 sat``."""
    whole, rest = divmod(amount_msat, MSAT_PER_SAT)
    return f"{whole}.{rest:03d} sat" if rest else f"{whole} sat"
