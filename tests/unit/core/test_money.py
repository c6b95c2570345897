"""Integers of money: what is worth something never counts as less, and no way of calculating lets a limit be passed."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from routeweiler_sync._core.money import FIAT_DECIMALS, Rate, minor_units
from routeweiler_sync.budgets.fmv import StaticRate, rate_for
from routeweiler_sync.budgets.schema import BudgetEnvelope
from routeweiler_sync.errors import FmvUnavailableError
from routeweiler_sync.ledger.types import EnvelopeRow

AMOUNTS = st.integers(0, 2_100_000_000_000_000_000)
PRICES = st.decimals("0.00000001", "100000000000", allow_nan=False, allow_infinity=False)
RATES = st.one_of(
    st.just(Rate(currency="sat")),
    st.builds(lambda currency, price: Rate(currency=currency, btc_price=price), st.sampled_from(sorted(FIAT_DECIMALS)), PRICES),
)


def envelope_row(*, cap: int, used: Decimal) -> EnvelopeRow:
    return EnvelopeRow(
        limits=BudgetEnvelope("e", cap_minor_units=cap),
        reserved_minor_units=used,
        settled_minor_units=Decimal(0),
        grant_settled_minor_units=Decimal(0),
        used_minor_units={"cap_minor_units": used},
        frozen=False,
        granted_at=None,
    )


def worth(rate: Rate, amount_msat: int) -> Fraction:
    """In millionths of a minor unit, exactly."""
    if rate.btc_price is None:
        return Fraction(amount_msat, 1_000) * 1_000_000
    return Fraction(amount_msat, 100_000_000_000) * Fraction(rate.btc_price) * int(10 ** FIAT_DECIMALS[rate.currency]) * 1_000_000


@given(rate=RATES, amount_msat=AMOUNTS)
def test_a_conversion_rounds_up_by_less_than_a_millionth(rate: Rate, amount_msat: int) -> None:
    """Else small payments would cost nothing, and any number of them fit under a limit."""
    assert 0 <= rate.micro_of(amount_msat) - worth(rate, amount_msat) < 1


@given(rate=RATES, micro=st.integers(-(10**6), 2**62))
def test_the_way_back_finds_the_most_that_fits(rate: Rate, micro: int) -> None:
    """Else the fee limit given to lnd would pass the budget, or a price that fits be refused."""
    most_msat = rate.msat_within(micro)
    assert most_msat >= 0
    assert rate.micro_of(most_msat) <= max(0, micro)
    assert rate.micro_of(most_msat + 1) > micro


@given(rate=RATES, amount_msat=AMOUNTS)
def test_there_and_back_loses_nothing(rate: Rate, amount_msat: int) -> None:
    """Else a limit that was reserved to the last millionth couldn't pay what it was reserved for."""
    micro = rate.micro_of(amount_msat)
    assert rate.msat_within(micro) >= amount_msat
    assert rate.micro_of(rate.msat_within(micro)) == micro
    assert rate.minor_units_of(amount_msat) * 1_000_000 == micro


@given(rate=RATES, amount_msat=AMOUNTS, fee_cap_msat=AMOUNTS, share=st.fractions(0, 1))
def test_what_is_reserved_covers_whatever_is_charged(rate: Rate, amount_msat: int, fee_cap_msat: int, share: Fraction) -> None:
    """Else the settlement would book more than was reserved, and pass a limit that had been kept."""
    assert rate.micro_of(amount_msat + int(share * fee_cap_msat)) <= rate.micro_of(amount_msat + fee_cap_msat)


@given(rate=RATES, amounts=st.lists(AMOUNTS, max_size=20))
def test_a_sum_of_bookings_never_counts_less_than_the_sum(rate: Rate, amounts: list[int]) -> None:
    """Else a thousand small payments would cost the budget less than one of their sum."""
    assert sum(map(rate.micro_of, amounts)) >= rate.micro_of(sum(amounts))


@given(rate=RATES, one=AMOUNTS, other=AMOUNTS)
def test_amount_and_fee_apart_never_cost_less_than_together(rate: Rate, one: int, other: int) -> None:
    """Else what is reserved for a payment wouldn't cover it."""
    assert rate.micro_of(one + other) <= rate.micro_of(one) + rate.micro_of(other)
    assert rate.micro_of(one) <= rate.micro_of(one + other)


@given(
    micro=st.integers(-(2**70), 2**70), digits=st.integers(1, 40), rounding=st.sampled_from([decimal.ROUND_DOWN, decimal.ROUND_UP])
)
def test_a_programs_own_decimal_context_changes_no_amount(micro: int, digits: int, rounding: str) -> None:
    """Else a program that calculates with six digits would round a price down, under a limit that it is above."""
    with decimal.localcontext() as context:
        context.prec, context.rounding = digits, rounding
        told = minor_units(micro)
        left = envelope_row(cap=4 * 10**12, used=minor_units(abs(micro) % 10**18)).headroom_minor_units
    assert Fraction(told) * 1_000_000 == micro
    assert left is not None
    assert Fraction(left) == max(0, 4 * 10**12 - Fraction(abs(micro) % 10**18, 1_000_000))


@pytest.mark.parametrize(
    ("currency", "price"),
    [
        ("usd", None),
        ("sat", Decimal(1)),
        ("usd", Decimal(0)),
        ("usd", Decimal(-1)),
        ("usd", Decimal("NaN")),
        ("usd", Decimal("inf")),
        ("usd", Decimal("1e400")),
        ("usd", Decimal("1e-400")),
        ("usd", Decimal("1e999999999")),
        ("btc", None),
    ],
)
def test_a_rate_that_cant_be_is_refused(currency: str, price: Decimal | None) -> None:
    """Else a price of zero would make every payment free of charge to the budget."""
    with pytest.raises(ValueError):
        Rate(currency=currency, btc_price=price)


class Provider:
    quality = "made up"

    def __init__(self, price: object) -> None:
        self.price = price

    def btc_price(self, currency: str) -> Decimal:
        if isinstance(self.price, BaseException):
            raise self.price
        return self.price  # type: ignore[return-value]


@pytest.mark.parametrize(
    "price", [0, -1, "1e99999999", "NaN", "Infinity", None, "", "a lot", float("nan"), OSError("down"), ZeroDivisionError(), []]
)
def test_no_rate_means_no_payment(price: object) -> None:
    """Else an outage of the rate's source would lift every limit in dollars."""
    with pytest.raises(FmvUnavailableError) as refused:
        rate_for("usd", Provider(price))
    assert refused.value.spent is False
    with pytest.raises(FmvUnavailableError):
        rate_for("usd", None)


@pytest.mark.parametrize("price", [60_000, "60000", 60_000.0, Decimal("6e4")])
def test_a_price_may_come_in_any_number(price: object) -> None:
    """Else a user's own provider would fail for a type that says the same."""
    assert rate_for("eur", Provider(price)) == Rate(currency="eur", btc_price=Decimal(60_000), quality="made up")


def test_a_sat_needs_no_rate() -> None:
    """Else budgets in sat would depend on somebody's web service."""
    assert rate_for("sat", Provider(OSError("down"))) == Rate(currency="sat")


def test_fixed_rates_are_for_their_currencies() -> None:
    """Else a dollar's price would be taken for a yen's."""
    rates = StaticRate({"usd": 60_000, "jpy": "9000000"}, quality="by hand")
    assert (rates.btc_price("usd"), rates.btc_price("jpy"), rates.quality) == (Decimal(60_000), Decimal(9_000_000), "by hand")
    with pytest.raises(FmvUnavailableError):
        rates.btc_price("eur")
