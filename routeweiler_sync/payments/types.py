"""The values that a purchase takes and gives: what is wanted, what it would cost, what was bought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from ..ledger.types import PaymentRow
from ..protocol.challenge import Challenge
from . import block_limit
from .token import Token


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What a call would pay: the signed invoice's amount, and the most that routing may cost on top.

    ``amount_minor_units`` is ``amount_msat`` in minor units of ``currency`` (the budget's), rounded up at the sixth decimal.
    ``payment_hash`` is hex.
    """

    url: str
    amount_msat: int
    max_fee_msat: int
    amount_minor_units: Decimal
    currency: str
    scope: str
    payment_hash: str
    description: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """The payment behind a response: ``response.payment``.

    ``payment_hash`` is hex, amounts in msat. ``reused``: the token had been paid for before, this call paid nothing.
    """

    payment_hash: str
    amount_msat: int
    fee_msat: int
    reused: bool


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """Who needs a token for what: the URL that answered 402, its origin, path and the scope of its challenge.

    ``target``: a digest of path and query. ``spent_in_call_msat``: what the same call has paid already, on the hops before.
    ``limits``: the ``limit()`` blocks around the call. ``still_useful`` is called right before the intent is written down: it
    raises where a token would buy nothing any more.
    """

    url: str
    origin: str
    path: str
    scope: str
    challenge: Challenge = field(repr=False)
    resource_digest: str = ""
    spent_in_call_msat: int = 0
    limits: tuple[block_limit.SpendingLimit, ...] = ()
    still_useful: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """A token, and whether this call ended its payment (``bought``) or found it made."""

    token: Token
    row: PaymentRow
    bought: bool
    settlement_latency_ms: int | None = None
