"""A server that sells things in the way that a test says, each for 10 sat: by page, method, body, with another scope each time."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.testing._tokens import mint

from .http_server import server

Thing = Callable[[Any], object]


class Shop:
    """A server that sells things for 10 sat each. Each 402 names another scope, or none if ``scoped`` is False.

    ``thing`` says what a request asks for: a token opens the thing that it was sold for, ``uses`` times. ``refuses`` is the status
    for any other token. ``serves`` is switched off to deliver nothing.
    """

    def __init__(self, lnd: FakeLnd, thing: Thing, *, scoped: bool = True, refuses: int = 402, uses: int = 10**6) -> None:
        self.lnd, self.thing, self.scoped, self.refuses, self.uses = lnd, thing, scoped, refuses, uses
        self.serves = True
        self.sold: dict[str, object] = {}
        self.used: dict[str, int] = {}
        self.requests = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def answer(self, request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        with self._lock:
            self.requests += 1
            token = request.headers.get("Authorization", "").partition(" ")[2].rpartition(":")[0]
            thing = self.thing(request)
            if self.serves and token in self.sold and self.sold[token] == thing and self.used[token] < self.uses:
                self.used[token] += 1
                return 200, [], b"page"
            if token and self.refuses != 402:
                return self.refuses, [], b""
            scope = f"scope{next(self._numbers)}" if self.scoped else None
            token, line = challenge_line(self.lnd, 10_000, scope)
            self.sold[token], self.used[token] = thing, 0
            return 402, [("WWW-Authenticate", line)], b""


@contextlib.contextmanager
def shop(lnd: FakeLnd, thing: Thing = lambda request: request.path, **how: Any) -> Iterator[tuple[Shop, str]]:
    made = Shop(lnd, thing, **how)
    with server(made.answer) as url:
        yield made, url


def challenge_line(lnd: FakeLnd, amount_msat: int, scope: str | None) -> tuple[str, str]:
    """A token as aperture makes them, for an invoice of the node, and the value of WWW-Authenticate that offers it."""
    invoice = lnd.invoice(amount_msat)
    caveats = [] if scope is None else [f"services={scope}:0"]
    token = mint(secrets.token_bytes(32), secrets.token_bytes(32), invoice.payment_hash, caveats)
    return token, f'L402 macaroon="{token}", invoice="{invoice.bolt11}"'
