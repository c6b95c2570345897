"""A challenge of any scheme: what is offered, for which invoice, until when, and how often its credential can be used.

Each scheme's folder makes these values from its own challenges in ``WWW-Authenticate``. Code that buys reads nothing but these
values, so no code outside `protocol` knows a scheme by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .._core.urls import bounded_key
from .invoice import Invoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """An offer that can be paid: once ``invoice`` is paid, the server accepts ``token``.

    - ``scheme``: the scheme to answer with, as it is written in ``Authorization`` (``L402``, ``LSAT``, ``Payment``).
    - ``rail``: the scheme's name in budgets, policies and traces.
    - ``token``: what the credential repeats, exactly as it came. Of several parameters, a text that holds them all.
    - ``names_scope``: what the token opens, by its own account (``services=…``); None if it doesn't say.
    - ``names_payment_hash``: the hash (32 bytes) of the payment that the token belongs to, by its own account; None if it doesn't
      say. It must be compared with ``payment_hash`` before paying.
    - ``valid_until``: the unix time in seconds after which the token is refused, paid or not; None if the token doesn't say.
    - ``expires_at``: the unix time in seconds after which the challenge is dead: what is paid later, or first offered later, opens
      nothing. The invoice may live longer. None if the challenge doesn't say.
    - ``body_digest``: the SHA-256 of the request's body, in standard base64, that the challenge is for; None if it doesn't say.
    - ``credential_header``: the header that the credential goes into.
    - ``reusable``: whether the credential opens more than one request.
    """

    scheme: str
    rail: str
    token: str = field(repr=False)
    invoice: Invoice
    names_scope: str | None = None
    names_payment_hash: bytes | None = None
    valid_until: int | None = None
    expires_at: float | None = None
    body_digest: str | None = None
    credential_header: str = "Authorization"
    reusable: bool = True

    @property
    def payment_hash(self) -> bytes:
        """The invoice's payment hash, 32 bytes. It is the key of the purchase's ledger row."""
        return self.invoice.payment_hash


def scope_of(challenge: Challenge, path: str) -> str:
    """Return what a token for ``challenge`` opens at its origin: the scope, at most `MAX_SCOPE_CHARS` of printable ASCII.

    The scope is the one that the token names. If it names none, it is ``path`` (the path of the URL that answered 402), because
    nothing wider is known. The ledger uses the scope as a key.
    """
    return challenge.names_scope if challenge.names_scope is not None else bounded_key(path or "/")
