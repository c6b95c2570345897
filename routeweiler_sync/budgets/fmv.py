"""The fair market value (FMV): what one bitcoin costs in the currency of a budget envelope.

This module knows the interface of a price source, `FmvProvider`, and one with a fixed price. `coingecko` has one that asks a
server. Converting amounts is left to `Rate` in `_core.money`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Protocol, runtime_checkable

from .._core.forks import importing
from .._core.money import EXACT, Rate
from ..errors import FmvUnavailableError


@runtime_checkable
class FmvProvider(Protocol):
    """A source for the price of bitcoin. Implement it to use prices of your own for envelopes in a fiat currency."""

    @property
    def quality(self) -> str:
        """How the price is known, e.g. ``static``. The trace writes it as ``fmvQuality``."""

    def btc_price(self, currency: str) -> Decimal:
        """Return the price of one bitcoin in ``currency`` (``usd``, ``eur``, …), in units, not minor units.

        Raises: any exception if the price isn't known. The payment is then refused with FmvUnavailableError.
        """


class StaticRate:
    """A fixed price of bitcoin: the same number for every currency, or a mapping with one price for each.

    ``quality`` is what the trace writes as ``fmvQuality``.

    >>> StaticRate(60_000).btc_price("usd")
    Decimal('60000')
    """

    def __init__(self, price: Decimal | int | str | Mapping[str, Decimal | int | str], *, quality: str = "static") -> None:
        with localcontext(EXACT):
            self._prices = {k: Decimal(v) for k, v in price.items()} if isinstance(price, Mapping) else Decimal(price)
        self.quality = quality

    def btc_price(self, currency: str) -> Decimal:
        """Return the fixed price of one bitcoin in ``currency``.

        Raises: FmvUnavailableError for a currency without a price.
        """
        if isinstance(self._prices, Decimal):
            return self._prices
        try:
            return self._prices[currency]
        except KeyError:
            raise FmvUnavailableError(
                f"StaticRate has no price of bitcoin in {currency}.", advice=f"Give StaticRate a price in {currency}."
            ) from None


#: The provider of all sessions that were given none; None until one of them needs it.
_default: FmvProvider | None = None


def default_provider() -> FmvProvider:
    """Return the provider of sessions that were given none: one `CoinGecko` for the whole process, made when it is first needed."""
    global _default
    if _default is None:
        with importing:
            from .coingecko import CoinGecko

            _default = _default or CoinGecko()
    return _default


def rate_for(currency: str, provider: FmvProvider | None) -> Rate:
    """Return the rate at which a payment is converted to ``currency`` now. ``sat`` needs no provider.

    ``provider`` None means the default, CoinGecko.

    Raises: FmvUnavailableError if there is no usable price, whatever the provider raised. Without a price, nothing is paid.
    """
    if currency == "sat":
        return Rate(currency="sat")
    if provider is None:
        provider = default_provider()
    try:
        price = provider.btc_price(currency)
        quality = str(provider.quality)
        with localcontext(EXACT):
            return Rate(currency=currency, btc_price=price if isinstance(price, Decimal) else Decimal(str(price)), quality=quality)
    except FmvUnavailableError:
        raise
    except Exception as error:
        raise FmvUnavailableError(
            f"The price of bitcoin in {currency} isn't available: {type(error).__name__}: {error}.",
            advice="Try again later, or use an envelope in sat.",
        ) from error
