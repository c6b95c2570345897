"""A challenge of any scheme: what is offered, for which invoice, until when, and how often its credential can be used.

Each scheme's room makes these values from its own part of ``WWW-Authenticate``. Nothing that buys looks behind them, so that no
code outside `protocol` knows a scheme by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .._core.urls import bounded_key
from .invoice import Invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """An offer that can be paid: this token, once that invoice is paid.

    ``scheme`` is the one to answer with, as in ``Authorization`` (``L402``, ``LSAT``), ``rail`` its name in budgets, policies and
    traces. ``token`` is what the credential repeats, exactly as it came. ``names_scope`` is what the token says it opens
    (``services=…``), None where it doesn't say. ``names_payment_hash`` (32 bytes) is the payment that the token says it belongs to,
    None where it doesn't say; compare it with ``payment_hash`` before paying. ``valid_until``: unix seconds after which the token
    is refused, paid or not; None where it doesn't say. ``reusable``: whether the credential opens more than one request.
    """

    scheme: str
    rail: str
    token: str = field(repr=False)
    invoice: Invoice
    names_scope: str | None = None
    names_payment_hash: bytes | None = None
    valid_until: int | None = None
    reusable: bool = True

    @property
    def payment_hash(self) -> bytes:
        """The invoice's payment hash, 32 bytes. It names the purchase in the ledger."""
        return self.invoice.payment_hash


def scope_of(challenge: Challenge, path: str) -> str:
    """Return what a token for ``challenge`` opens at its origin: the ledger's key, at most `MAX_SCOPE_CHARS` of printable ASCII.

    What the token says of itself; else ``path`` (of the URL that answered 402), since nothing wider is known.
    """
    return challenge.names_scope if challenge.names_scope is not None else bounded_key(path or "/")
