"""A server that sells tokens as one of the real ones does: what a token opens, how a bad one is refused, what a path sells."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from routeweiler_sync.testing import FakeLnd

from .http_server import server
from .shop import challenge_line

#: A status with a new challenge, in place of a refusal without one.
FRESH = "fresh"


def json_token() -> str:
    """Base64 of JSON, which says nothing of what it opens."""
    return base64.b64encode(json.dumps({"id": secrets.token_hex(8), "exp": 1 << 41}).encode()).decode()


#: Kinds of tokens that real servers make, none of which says what it opens.
TOKEN_KINDS: dict[str, Callable[[], str]] = {
    "JSON": json_token,
    "UUID": lambda: str(uuid.uuid4()),
    "hex": lambda: secrets.token_hex(32),
    "JWT": lambda: ".".join(base64.urlsafe_b64encode(secrets.token_bytes(24)).decode().rstrip("=") for _ in range(3)),
}


@dataclass
class Asked:
    """A request as the server saw it, and how it answered."""

    method: str
    path: str
    body: bytes
    token: str | None
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path} {'token' if self.token else 'bare'}:{self.status}"


@dataclass
class Grant:
    """A token that was sold, for the request ``asked``."""

    payment_hash: bytes
    asked: Asked
    instance: int
    uses: int = 0
    revoked: bool = False


Accepts = Callable[[Asked, Grant], bool]


@dataclass
class Seller:
    """The server. ``accepts`` says what a token opens; by default everything, as often as you like.

    ``refuses`` is how a bad token is answered: (status, `FRESH`), or (status, WWW-Authenticate or None). ``unasked`` answers a
    request without a token; by default everything is sold. ``app`` is the application behind the paywall: the status of a page.
    """

    lnd: FakeLnd
    accepts: Accepts = lambda asked, grant: True
    refuses: tuple[int, str | None] = (402, FRESH)
    unasked: Callable[[Asked], tuple[int, str | None]] = lambda asked: (402, FRESH)
    app: Callable[[Asked], int] = lambda asked: 200
    token_kind: str = "JSON"
    price_sat: int = 10
    challenge: str = 'L402 macaroon="{token}", invoice="{invoice}"'
    scope: Callable[[Asked], str | None] = lambda asked: None
    instance: int = 0
    instances: int = 1
    seen: list[Asked] = field(default_factory=list)
    grants: dict[str, Grant] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def answer(self, handler: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        credential = handler.headers.get("Authorization", "").partition(" ")[2]
        token, _, preimage = credential.rpartition(":")
        asked = Asked(handler.command, handler.path.partition("?")[0], handler.body, token or None)
        with self._lock:
            status, words = self._judged(asked, preimage) if token else self.unasked(asked)
            lines = [] if words is None else [("WWW-Authenticate", self._sold(asked) if words == FRESH else words)]
            asked.status = status
            self.seen.append(asked)
            if self.instances > 1:
                self.instance = (self.instance + 1) % self.instances
        return status, lines, f"{asked.method} {asked.path}".encode()

    def _judged(self, asked: Asked, preimage: str) -> tuple[int, str | None]:
        grant = self.grants.get(asked.token or "")
        genuine = grant is not None and hashlib.sha256(bytes.fromhex(preimage)).digest() == grant.payment_hash
        if grant is None or not genuine or grant.revoked or not self.accepts(asked, grant):
            return self.refuses
        grant.uses += 1
        return self.app(asked), None

    def _sold(self, asked: Asked) -> str:
        invoice = self.lnd.invoice(self.price_sat * 1000)
        token, scope = TOKEN_KINDS[self.token_kind](), self.scope(asked)
        if scope is not None:
            token, line = challenge_line(self.lnd, self.price_sat * 1000, scope)
            self.grants[token] = Grant(_payment_hash_of(token), asked, self.instance)
            return line
        self.grants[token] = Grant(invoice.payment_hash, asked, self.instance)
        return self.challenge.format(token=token, invoice=invoice.bolt11)

    @property
    def wire(self) -> list[str]:
        """What was asked and answered, a short text for each request."""
        return [str(asked) for asked in self.seen]

    @property
    def paid(self) -> int:
        """How many payments the node has made."""
        return sum(payment.status == "SUCCEEDED" for payment in self.lnd.payments)

    def revoke(self) -> None:
        """Refuse all tokens that were sold so far."""
        for grant in self.grants.values():
            grant.revoked = True


def _payment_hash_of(token: str) -> bytes:
    from pymacaroons.serializers import BinarySerializer

    identifier: bytes = BinarySerializer().deserialize_raw(base64.standard_b64decode(token)).identifier_bytes
    return identifier[2:34]


@contextlib.contextmanager
def seller(lnd: FakeLnd, **how: Any) -> Iterator[tuple[Seller, str]]:
    """Run a `Seller`. Give it and its URL."""
    made = Seller(lnd, **how)
    with server(made.answer) as url:
        yield made, url


# -- what a token opens ----------------------------------------------------------------------------------------------------------


def everything(asked: Asked, grant: Grant) -> bool:
    return True


def one_path(asked: Asked, grant: Grant) -> bool:
    return asked.path == grant.asked.path


def one_method(asked: Asked, grant: Grant) -> bool:
    return (asked.method, asked.path) == (grant.asked.method, grant.asked.path)


def one_body(asked: Asked, grant: Grant) -> bool:
    return one_method(asked, grant) and asked.body == grant.asked.body


def once(asked: Asked, grant: Grant) -> bool:
    return one_path(asked, grant) and grant.uses == 0


def five_pages(asked: Asked, grant: Grant) -> bool:
    return grant.uses < 5


def nothing(asked: Asked, grant: Grant) -> bool:
    return False
