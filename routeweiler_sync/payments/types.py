"""The values that go into and out of a purchase: what is requested, what it would cost, what was bought.

`checkout` uses them to buy, `paywall` to ask for a token and to offer it. They hold no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from .._core.display import facts_table, foreign, moment_text
from .._core.money import minor_text, sats
from .._core.urls import without_userinfo
from ..errors import RouteweilerError
from ..ledger.types import EnvelopeRow, PaymentRow
from ..protocol.challenge import Challenge
from . import block_limit
from .presenting import Presenter
from .tally import Tally
from .token import Token


@dataclass(frozen=True, kw_only=True, repr=False)
class Quote:
    """What a call would pay: ``amount_msat`` by the signed invoice, and up to ``max_fee_msat`` for routing on top.

    ``amount_minor_units`` is ``amount_msat`` in minor units of ``currency``, the budget's, rounded up at the sixth decimal.
    ``payment_hash`` is hex. ``description`` is the invoice's, ``expires_at`` the time when it or its challenge expires. ``scheme``
    is that of the challenge: ``L402`` or ``LSAT``, whose token serves later calls too, or ``Payment``, which buys one request.
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
    scheme: str = "L402"

    def __repr__(self) -> str:
        said = f" for {self._shown(self.description)!r}" if self.description.strip() else ""
        return f"<Quote: {self._price}, fee at most {sats(self.max_fee_msat)}{said}, {self._shown(without_userinfo(self.url))}>"

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [
            ("price", self._price),
            ("routing fee", f"at most {sats(self.max_fee_msat)}"),
            ("URL", self._shown(without_userinfo(self.url))),
            ("description", self._shown(self.description)),
            ("scheme", self.scheme),
            ("opens", self._shown(self.scope)),
            ("expires", moment_text(self.expires_at)),
            ("payment hash", self.payment_hash),
        ]
        return facts_table("Quote, not paid", facts)

    @property
    def _price(self) -> str:
        price = sats(self.amount_msat)
        return price if self.currency == "sat" else f"{price} ({minor_text(self.amount_minor_units, self.currency)})"

    def _shown(self, text: str) -> str:
        return foreign(text, (self.payment_hash,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """The payment behind a response, as ``response.payment`` has it.

    ``payment_hash`` is hex, amounts are in msat. ``reused``: an earlier call had paid for the token, and this one paid nothing.
    ``scheme`` is that of the challenge which was paid (``L402``, ``LSAT``, ``Payment``).
    """

    payment_hash: str
    amount_msat: int
    fee_msat: int
    reused: bool
    scheme: str = "L402"

    def _repr_html_(self) -> str:
        paid: list[tuple[str, object]] = [("amount", sats(self.amount_msat)), ("routing fee", sats(self.fee_msat))]
        by = "an earlier call: this one paid nothing" if self.reused else "this call"
        return facts_table("Payment", [*paid, ("paid by", by), ("scheme", self.scheme), ("payment hash", self.payment_hash)])


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """A request for a token: the URL that answered 402, its origin and path, its challenge and the challenge's scope.

    ``resource_digest`` is a digest of path and query. ``spent_in_call_msat`` is what the same call has paid already, on earlier
    hops. ``limits`` are the ``limit()`` blocks around the call, ``tallies`` count what it spends. ``still_useful`` is called right
    before the intent is written to the ledger: it raises if a token would buy nothing any more. ``body_digest`` returns the SHA-256
    of the request's body in base64, None if it can't be read. ``presenter`` claims the charges that the call pays for or presents.
    ``proxied``: the request goes through a proxy of another machine that can read it.
    """

    url: str
    origin: str
    path: str
    scope: str
    challenge: Challenge = field(repr=False)
    resource_digest: str = ""
    spent_in_call_msat: int = 0
    limits: tuple[block_limit.SpendingLimit, ...] = ()
    tallies: tuple[Tally, ...] = field(default=(), repr=False)
    still_useful: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    body_digest: Callable[[], str | None] = field(default=lambda: None, repr=False, compare=False)
    presenter: Presenter = field(default_factory=Presenter, repr=False, compare=False)
    proxied: bool = False


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a call would do about a 402. Either ``unfinished``, ``token`` or ``quote`` is set.

    ``unfinished``: it would carry this payment of an earlier call to its end. ``token``: it would use the token of this payment.
    ``quote``: it would buy a token at this price from ``envelope`` (None: no limit applies), unless ``refusal`` says why not.
    ``trial``: before it buys, it would try the token of this payment, which has opened another page or this one before.
    """

    unfinished: PaymentRow | None = None
    token: PaymentRow | None = None
    quote: Quote | None = None
    refusal: RouteweilerError | None = None
    envelope: EnvelopeRow | None = None
    trial: PaymentRow | None = None


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """A token and its ledger row.

    ``bought``: this call carried the payment to its end; False if the payment was there already. ``settlement_latency_ms`` is how
    long the call took to settle the payment, None if it didn't settle it. ``on_trial``: nothing says that the token opens the page
    that is requested; it opened others of the same origin.
    """

    token: Token
    row: PaymentRow
    bought: bool
    settlement_latency_ms: int | None = None
    on_trial: bool = False
