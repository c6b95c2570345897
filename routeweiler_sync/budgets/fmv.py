"""Fair value: what a bitcoin costs in the currency of an envelope."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Protocol, runtime_checkable

from .._core.money import Rate
from ..errors import FmvUnavailableError


@runtime_checkable
class FmvProvider(Protocol):
    """Who knows the price of bitcoin. ``quality`` names how it is known, for the trace."""

    @property
    def quality(self) -> str:
        """How the price is known, e.g. ``static``."""

    def btc_price(self, currency: str) -> Decimal:
        """The price of one bitcoin in ``currency`` (``usd``, ``eur``, …); raises where it isn't known."""


class StaticRate:
    """A fixed price of bitcoin: one for every currency, or one for each.

    >>> StaticRate(60_000).btc_price("usd")
    Decimal('60000')
    """

    def __init__(self, price: Decimal | int | str | Mapping[str, Decimal | int | str], *, quality: str = "static") -> None:
        self._prices = {k: Decimal(v) for k, v in price.items()} if isinstance(price, Mapping) else Decimal(price)
        self.quality = quality

    def btc_price(self, currency: str) -> Decimal:
        """The fixed price; FmvUnavailableError for a currency without one."""
        if isinstance(self._prices, Decimal):
            return self._prices
        try:
            return self._prices[currency]
        except KeyError:
            raise FmvUnavailableError(
                f"No fixed rate was given for {currency}.", advice="Give StaticRate a price for it."
            ) from None


def rate_for(currency: str, provider: FmvProvider | None) -> Rate:
    """The rate at which a draw is converted now. Fails closed: FmvUnavailableError, nothing spent."""
    if currency == "sat":
        return Rate(currency="sat")
    if provider is None:
        raise FmvUnavailableError(
            f"The budget is in {currency}, and no fmv_provider was given to tell the price of bitcoin.",
            advice="Give the session an fmv_provider, or an envelope in sat.",
        )
    try:
        price = provider.btc_price(currency)
        price = price if isinstance(price, Decimal) else Decimal(str(price))
        return Rate(currency=currency, btc_price=price, quality=str(provider.quality))
    except FmvUnavailableError:
        raise
    except Exception as error:
        raise FmvUnavailableError(
            f"The price of bitcoin in {currency} can't be had: {type(error).__name__}: {error}.",
            advice="Try again later, or use an envelope in sat.",
        ) from error
