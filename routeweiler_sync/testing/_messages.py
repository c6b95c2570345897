"""What comes to a paywall, and what goes out: requests, replies, pages, and why a credential is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from requests.structures import CaseInsensitiveDict

#: Why a credential is refused. `PaywallRequest` says what each means.
Refusal = Literal["malformed", "forged", "elsewhere", "used", "expired", "revoked", "unpaid", "late", "fault"]
#: A page: status, headers, body.
Page = tuple[int, Mapping[str, str], bytes]
#: How many requests the text of `PaidRequests` lists. pytest cuts longer texts in the middle.
_SHOWN_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PaywallRequest:
    """A request as the paywall received it, without its credential.

    ``path`` is without the query. ``authorized``: the request had a credential for L402, LSAT or Payment. ``scheme`` is which of
    the three, None without a well-formed credential. ``paid``: the credential was good; ``payment_hash`` (64 hex digits) is the
    payment that it proves. ``status`` is the status of the answer, 0 if the connection was cut before the request was handled.

    ``proves`` is the payment hash of a genuine token or challenge of this paywall that came with its preimage and was paid for,
    also where it was refused. ``refused`` says why a credential was:

    - ``malformed``: it can't be read, or is of a scheme that the server doesn't read;
    - ``forged``: the token or the echoed challenge is unknown or altered, or the preimage is wrong;
    - ``elsewhere``: it was sold for another service, path, method, body or instance;
    - ``used`` (up), ``expired``, ``revoked``, ``unpaid``: what they say;
    - ``late``, ``fault``: for `Faults.settle_lag`, `Faults.refuse_tokens`.

    ``instance`` is the number of the instance that answered, where tokens are sold by instance.
    """

    method: str
    path: str
    query: str
    headers: CaseInsensitiveDict[str] = field(repr=False)
    body: bytes = field(repr=False)
    authorized: bool = False
    scheme: str | None = None
    paid: bool = False
    payment_hash: str | None = None
    status: int = 0
    proves: str | None = None
    refused: Refusal | None = None
    instance: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer of the paywall. ``headers`` are the header lines; a name may occur in several.

    ``cut``: nothing is sent, and the connection is closed. ``endless``: the body never ends.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    cut: bool = False
    endless: bool = False


class PaidRequests(tuple[PaywallRequest, ...]):
    """The requests for one page that were paid for, in the order in which they were answered. Empty, and so false, if none was.

    Its text tells what was asked for instead, so that a failed ``assert paywall.paid_for("/paid")`` says why.
    """

    _told: str

    def __new__(cls, page: str, requests: Sequence[PaywallRequest], paid: Sequence[PaywallRequest]) -> PaidRequests:
        """Take ``paid``, those of ``requests`` that were paid for and asked for ``page``."""
        made = super().__new__(cls, paid)
        made._told = _told_of(page, requests, paid)
        return made

    def __repr__(self) -> str:
        return f"<{self._told}>"


def _told_of(page: str, requests: Sequence[PaywallRequest], paid: Sequence[PaywallRequest]) -> str:
    if paid:
        payments = len({request.payment_hash for request in paid})
        return f"{page} was paid for in {_count(len(paid), 'request')}, with {_count(payments, 'payment')}"
    if not requests:
        return f"{page} wasn't paid for: the paywall had no requests"
    lines = [f"{request.method} {request.path} {request.status}" for request in requests]
    shown = [*lines[:_SHOWN_MAX], *(["…"] if len(lines) > _SHOWN_MAX else [])]
    return f"{page} wasn't paid for: the paywall had {_count(len(lines), 'request')}: {', '.join(shown)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
