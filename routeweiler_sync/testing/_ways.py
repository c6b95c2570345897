"""Ways to sell: what a token opens, how often and for how long.

How a token is written is left to `_tokens`, how a bad one is refused to `_paywall_logic`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ._messages import PaywallRequest, Refusal

#: What a request asks for. A token opens the thing that it was sold for.
Thing = Callable[[PaywallRequest], Hashable]
_NAMED = ("service", "path", "query", "method", "body", "everything", "once", "instance", "nothing")
#: The ways as an error message lists them.
WAYS = (*_NAMED, "credit:<sats>", "a function")
_CREDIT = re.compile(r"credit:([1-9][0-9]{0,9})")


@dataclass(slots=True, kw_only=True)
class Grant:
    """What was sold with one token.

    ``payment_hash`` (32 bytes) is the one in the token. ``thing`` is what it opens. ``uses`` and ``credit_msat`` are what is left,
    None where nothing is counted. ``expires_at`` is a unix time.
    """

    payment_hash: bytes
    root_key: bytes
    thing: Hashable
    uses: int | None = None
    credit_msat: int | None = None
    expires_at: int | None = None
    revoked: bool = False

    def reason_against(self, thing: Hashable, price_msat: int) -> Refusal | None:
        """Return why this doesn't open ``thing`` now, or None."""
        if self.revoked:
            return "revoked"
        if self.expires_at is not None and time.time() >= self.expires_at:
            return "expired"
        if self.thing != thing or thing == ("nothing",):
            return "elsewhere"
        if self.uses == 0 or (self.credit_msat is not None and self.credit_msat < price_msat):
            return "used"
        return None

    def spend(self, price_msat: int, *, times: int = 1) -> None:
        """Count ``times`` uses, each for ``price_msat``; -1 takes one back."""
        if self.uses is not None:
            self.uses -= times
        if self.credit_msat is not None:
            self.credit_msat -= price_msat * times


def credit_msat(sells: str | Thing) -> int | None:
    """Return the amount of ``credit:<sats>`` in msat, None for any other way."""
    found = _CREDIT.fullmatch(sells) if isinstance(sells, str) else None
    return None if found is None else int(found[1]) * 1000


def is_way(sells: object) -> bool:
    """Return whether ``sells`` is a way to sell: one of `WAYS`."""
    return callable(sells) or (isinstance(sells, str) and (_CREDIT.fullmatch(sells) is not None or sells in _NAMED))


def thing_of(sells: str | Thing, request: PaywallRequest, *, service: str, instance: int | None) -> Hashable:
    """Return what ``request`` asks for where tokens are sold in the way ``sells``, by the service named ``service``."""
    if not isinstance(sells, str):
        return ("own", sells(request))
    place = (request.method, request.path)
    if sells == "service":
        return (sells, service)
    if sells == "path":
        return (sells, request.path)
    if sells == "query":
        return (sells, *place, request.query)
    if sells == "method":
        return (sells, *place)
    if sells == "body":
        return (sells, *place, hashlib.sha256(request.body).digest())
    if sells == "instance":
        return (sells, instance)
    return ("credit",) if sells.startswith("credit:") else (sells,)
