"""What comes to a paywall, and what goes out: requests, replies, pages, and why a credential is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from requests.structures import CaseInsensitiveDict

#: Why a credential is refused. `PaywallRequest` says what each means.
Refusal = Literal["malformed", "forged", "elsewhere", "used", "expired", "revoked", "unpaid", "late", "fault"]
#: A page: status, headers, body.
Page = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaywallRequest:
    """A request as the paywall received it, without its credential.

    ``path`` is without the query. ``authorized``: the request had an ``Authorization`` for L402 or LSAT. ``scheme`` is which of the
    two, None without a well-formed credential. ``paid``: the credential was good; ``payment_hash`` (64 hex digits) is the payment
    that it proves. ``status`` is the status of the answer, 0 if the connection was cut before the request was handled.

    ``proves`` is the payment hash of a genuine token of this paywall that came with its preimage and was paid for, also where it
    was refused. ``refused`` says why a credential was:

    - ``malformed``: it can't be read, or is of a scheme that the server doesn't read;
    - ``forged``: the token is unknown or altered, or the preimage is wrong;
    - ``elsewhere``: the token was sold for another service, path, method, body or instance;
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
