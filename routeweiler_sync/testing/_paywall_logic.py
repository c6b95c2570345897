"""How aperture (v0.5) answers: challenges, macaroons and their verification, and faults on demand. No sockets.

`Paywall` puts it behind HTTP, `add_paywall` behind the ``responses`` library. Sources: aperture's ``mint/mint.go``,
``l402/identifier.go``, ``l402/header.go``, ``l402/satisfier.go``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from requests.structures import CaseInsensitiveDict

if TYPE_CHECKING:
    from pymacaroons import Macaroon

FREE_PATH = "/free"
REDIRECT_PATH = "/redirect"
_CREDENTIAL = re.compile(r"(LSAT|L402) ([^:]+):([0-9a-f]{64})")
_IDENTIFIER = struct.Struct(">H32s32s")
_EXPIRED_FOR_S = 3_600

CutWhen = Literal["before", "after"]
#: What the paid page is: status, headers, body.
Page = tuple[int, Mapping[str, str], bytes]


class Invoice(Protocol):
    """What the paywall needs of an invoice."""

    @property
    def bolt11(self) -> str: ...
    @property
    def payment_hash(self) -> bytes: ...


class InvoiceIssuer(Protocol):
    """What the paywall needs of a node; `FakeLnd` is one.

    ``invoice(amount_msat, *, memo, expiry_s)`` issues one (the faults also give ``created_at`` and ``currency``).
    """

    @property
    def invoice(self) -> Callable[..., Invoice]: ...
    def settled(self, payment_hash: bytes) -> bool:
        """Whether the payee has the money for this hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaywallRequest:
    """A request as the paywall met it, without its credential.

    ``authorized``: it carried an L402 or LSAT credential, of ``scheme``; ``paid``: a good one, for ``payment_hash`` (hex).
    ``status``: what was answered, 0 where the connection was cut before that. ``path`` comes without the query.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back: ``headers`` as lines, repeated names and all. ``cut``: nothing goes back, the connection is closed."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    cut: bool = False
    endless: bool = False


@dataclass(slots=True, kw_only=True)
class Service:
    """What is sold under a path prefix; its fields may be changed while the paywall runs.

    ``valid_for_s``: tokens carry ``<name>_valid_until`` (negative: long expired). ``dynamic``: a token opens one exact path,
    and carries no other caveat. ``scheme``: one header line for each, in this order.
    """

    prefix: str
    name: str
    price_msat: int
    valid_for_s: int | None = None
    dynamic: bool = False
    scheme: Sequence[str] = ("LSAT", "L402")

    def sells(self, path: str) -> bool:
        """Whether ``path`` is the prefix or lies under it."""
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")

    def name_for(self, path: str) -> str:
        """The name in the ``services`` caveat: for dynamic prices it holds the path."""
        return self.name + path if self.dynamic else self.name


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong; all may be set and combined at any time.

    ``refuse_tokens``: refuse good credentials: True for ever, or the next so many. ``settle_lag``: refuse the first so many
    offers of each good credential, as a server does that hears late of the settlement. ``bare_401``: refused credentials are
    answered 401 without a challenge. ``expire_invoices``: they have expired an hour ago. ``currency``: BOLT-11 prefix of
    another network (``bc``, ``tb``). ``mismatch``: the token is for another payment hash. ``repeat_invoice``: each service keeps
    giving the challenge it gave last. ``opaque_tokens``: no macaroons. ``token_param``: ``token`` is the specification's spelling.
    ``delay_s`` before each answer, ``endless_402``: the body of a 402 never ends (both need the socket).
    """

    refuse_tokens: bool | int = 0
    settle_lag: int = 0
    bare_401: bool = False
    expire_invoices: bool = False
    currency: str | None = None
    mismatch: bool = False
    repeat_invoice: bool = False
    opaque_tokens: bool = False
    token_param: Literal["macaroon", "token"] = "macaroon"  # noqa: S105 - a header's word
    delay_s: float = 0.0
    endless_402: bool = False


class PaywallLogic:
    """The paywall without its server; see `Paywall` for what each argument means. Safe for threads."""

    def __init__(
        self,
        lnd: InvoiceIssuer,
        *,
        price_msat: int = 10_000,
        service: str = "paywall",
        valid_for_s: int | None = None,
        dynamic: bool = False,
        scheme: Sequence[str] = ("LSAT", "L402"),
        content: bytes = b"paid content\n",
        respond: Callable[[PaywallRequest], Page] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.lnd = lnd
        self.content = content
        self.respond = respond
        self.faults = faults or Faults()
        self._changed = threading.Condition()
        self._requests: list[PaywallRequest] = []
        self._root_keys: dict[bytes, bytes] = {}
        self._opaque: dict[str, tuple[bytes, str]] = {}
        self._offers: dict[bytes, int] = {}
        self._last_challenges: dict[str, tuple[str, str]] = {}
        self._cuts: list[CutWhen] = []
        self._planned: list[Page] = []
        self._services: list[Service] = []
        self.service = self.add_service(
            "/", name=service, price_msat=price_msat, valid_for_s=valid_for_s, dynamic=dynamic, scheme=scheme
        )

    # For tests

    def add_service(
        self,
        prefix: str,
        *,
        name: str,
        price_msat: int,
        valid_for_s: int | None = None,
        dynamic: bool = False,
        scheme: Sequence[str] = ("LSAT", "L402"),
    ) -> Service:
        """Sell something else under ``prefix`` (the longest that fits counts)."""
        service = Service(prefix=prefix, name=name, price_msat=price_msat, valid_for_s=valid_for_s, dynamic=dynamic, scheme=scheme)
        with self._changed:
            self._services = sorted([*self._services, service], key=lambda each: len(each.prefix), reverse=True)
        return service

    @property
    def price_msat(self) -> int:
        """Price of the service at ``/``; may be set at any time."""
        return self.service.price_msat

    @price_msat.setter
    def price_msat(self, value: int) -> None:
        self.service.price_msat = value

    @property
    def price(self) -> int:
        """`price_msat` in sats, rounded up; may be set at any time."""
        return -(-self.price_msat // 1000)

    @price.setter
    def price(self, value: int) -> None:
        self.price_msat = value * 1000

    @property
    def requests(self) -> list[PaywallRequest]:
        """All requests so far, in the order of their answers."""
        with self._changed:
            return list(self._requests)

    def wait_for(self, predicate: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait until ``predicate`` holds; it is asked after each request, and every 50 ms. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the paywall waited {timeout_s} s in vain")
            with self._changed:
                self._changed.wait(0.05)

    def cut_next(self, when: CutWhen = "before", *, times: int = 1) -> None:
        """Close the connection of the next ``times`` requests with a good credential, before or after handling them."""
        with self._changed:
            self._cuts += [when] * times

    def answer_next(
        self, status: int, *, times: int = 1, headers: Mapping[str, str] | None = None, body: bytes = b"not now\n"
    ) -> None:
        """Answer the next ``times`` requests with a good credential like this (429, 500, …)."""
        with self._changed:
            self._planned += [(status, headers or {}, body)] * times

    def revoke_tokens(self) -> None:
        """Take none of the tokens issued so far any more."""
        with self._changed:
            self._root_keys.clear()
            self._opaque.clear()

    # What goes over the wire

    def answer(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Reply:
        """The reply to a request; ``target`` is its path with the query, ``headers`` its lines in their order."""
        lines = list(headers)
        authorization = [value for name, value in lines if name.lower() == "authorization"]
        credential = _CREDENTIAL.fullmatch(authorization[-1]) if authorization else None  # aperture takes the last line
        kept = CaseInsensitiveDict[str]()
        for name, value in lines:
            if name.lower() != "authorization" or not re.match(r"(?i)(l402|lsat)\b", value):
                kept[name] = f"{kept[name]}, {value}" if name in kept else value
        parts = urlsplit(target)
        request = PaywallRequest(
            method=method,
            path=unquote(parts.path),
            query=parts.query,
            headers=kept,
            body=body,
            authorized=any(re.match(r"(?i)(l402|lsat)\b", value) for value in authorization),
            scheme=credential[1] if credential else None,
        )
        reply, request = self._reply(request, credential)
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return reply

    def _reply(self, request: PaywallRequest, credential: re.Match[str] | None) -> tuple[Reply, PaywallRequest]:
        if request.method == "OPTIONS":
            reply = Reply(status=200, headers=(("Access-Control-Allow-Methods", "GET, POST"),))
        elif request.path == REDIRECT_PATH:
            asked = parse_qs(request.query)
            reply = Reply(status=int(asked.get("status", ["302"])[0]), headers=(("Location", asked["to"][0]),))
        elif request.path == FREE_PATH or request.path.startswith(FREE_PATH + "/"):
            reply = Reply(status=200, body=b"free\n")
        else:
            service = next(each for each in self._services if each.sells(request.path))
            payment_hash = None if credential is None else self._verified(service.name_for(request.path), credential)
            if payment_hash is not None:
                return self._paid(replace(request, paid=True, payment_hash=payment_hash.hex()))
            reply = Reply(status=401) if request.authorized and self.faults.bare_401 else self._challenge(service, request.path)
        return reply, replace(request, status=reply.status)

    def _paid(self, request: PaywallRequest) -> tuple[Reply, PaywallRequest]:
        with self._changed:
            cut = self._cuts.pop(0) if self._cuts else None
            planned = self._planned.pop(0) if self._planned and cut != "before" else None
        if cut == "before":
            return Reply(status=0, cut=True), request
        status, headers, body = planned or (self.respond(request) if self.respond else (200, {}, self.content))
        reply = Reply(status=status, headers=tuple(headers.items()), body=body, cut=cut is not None)
        return reply, replace(request, status=status)

    def _challenge(self, service: Service, path: str) -> Reply:
        """402 as aperture says it: a header line for each scheme, with one token and one invoice."""
        name = service.name_for(path)
        with self._changed:
            challenge = self._last_challenges.get(name) if self.faults.repeat_invoice else None
        if challenge is None:
            invoice = self._invoice(service)
            challenge = self._token(service, name, invoice.payment_hash), invoice.bolt11
            with self._changed:
                self._last_challenges[name] = challenge
        token, bolt11 = challenge
        version = 'version="0", ' if self.faults.token_param == "token" else ""  # noqa: S105 - a header's word
        lines = [
            ("WWW-Authenticate", f'{scheme} {version}{self.faults.token_param}="{token}", invoice="{bolt11}"')
            for scheme in service.scheme
        ]
        headers = (*lines, ("Cache-Control", "no-store"), ("Content-Type", "text/plain; charset=utf-8"))
        return Reply(status=402, headers=headers, body=b"payment required\n", endless=self.faults.endless_402)

    def _invoice(self, service: Service) -> Invoice:
        odd: dict[str, Any] = {}
        if self.faults.expire_invoices:
            odd["created_at"] = int(time.time()) - 2 * _EXPIRED_FOR_S
        if self.faults.currency is not None:
            odd["currency"] = self.faults.currency
        return self.lnd.invoice(service.price_msat, memo=f"L402 {service.name}", expiry_s=_EXPIRED_FOR_S, **odd)

    def _token(self, service: Service, name: str, payment_hash: bytes) -> str:
        if self.faults.mismatch:
            payment_hash = hashlib.sha256(payment_hash).digest()
        if self.faults.opaque_tokens:
            opaque = secrets.token_urlsafe(24)
            with self._changed:
                self._opaque[opaque] = (payment_hash, name)
            return opaque
        caveats = [f"services={name}:0"]
        if not service.dynamic:
            caveats.append(f"{name}_capabilities=")
            if service.valid_for_s is not None:
                caveats.append(f"{name}_valid_until={int(time.time()) + service.valid_for_s}")
        root_key, token_id = secrets.token_bytes(32), secrets.token_bytes(32)
        with self._changed:
            self._root_keys[token_id] = root_key
        return mint(root_key, token_id, payment_hash, caveats)

    def _verified(self, name: str, credential: re.Match[str]) -> bytes | None:
        """The payment hash of a good credential for the service ``name``, as aperture's strict verification judges; else None."""
        token, preimage = credential[2], bytes.fromhex(credential[3])
        with self._changed:
            opaque = self._opaque.get(token)
        payment_hash = self._macaroon_hash(token, name) if opaque is None else opaque[0] if opaque[1] == name else None
        if payment_hash is None or hashlib.sha256(preimage).digest() != payment_hash or not self.lnd.settled(payment_hash):
            return None
        with self._changed:
            offers = self._offers[payment_hash] = self._offers.get(payment_hash, 0) + 1
            if self.faults.refuse_tokens:
                if self.faults.refuse_tokens is not True:
                    self.faults.refuse_tokens -= 1
                return None
        return payment_hash if offers > self.faults.settle_lag else None

    def _macaroon_hash(self, token: str, name: str) -> bytes | None:
        macaroon = parse(token)
        if macaroon is None or len(macaroon.identifier_bytes) != _IDENTIFIER.size:
            return None
        version, payment_hash, token_id = _IDENTIFIER.unpack(macaroon.identifier_bytes)
        with self._changed:
            root_key = self._root_keys.get(token_id)
        if version != 0 or root_key is None or not is_signed(macaroon, root_key):
            return None
        caveats = [caveat.caveat_id_bytes.decode(errors="replace").partition("=")[::2] for caveat in macaroon.caveats]
        services = [value for key, value in caveats if key == "services"]
        if not services or any(name not in [each.rpartition(":")[0] for each in value.split(",")] for value in services):
            return None
        expiries = [value for key, value in caveats if key == f"{name}_valid_until"]
        return payment_hash if all(value.isdigit() and time.time() < int(value) for value in expiries) else None


def mint(root_key: bytes, token_id: bytes, payment_hash: bytes, caveats: Sequence[str]) -> str:
    """A macaroon as aperture mints it: version 2, identifier of 66 bytes, standard padded base64."""
    from pymacaroons import MACAROON_V2, Macaroon
    from pymacaroons.serializers import BinarySerializer

    identifier = _IDENTIFIER.pack(0, payment_hash, token_id)
    macaroon = Macaroon(location="lsat", identifier=identifier, key=root_key, version=MACAROON_V2)
    for caveat in caveats:
        macaroon.add_first_party_caveat(caveat)
    return base64.standard_b64encode(BinarySerializer().serialize_raw(macaroon)).decode("ascii")


def parse(token: str) -> Macaroon | None:
    """The macaroon in ``token``; None unless it is padded standard base64 of the one way to write that macaroon."""
    from pymacaroons.serializers import BinarySerializer

    try:
        raw = base64.b64decode(token, validate=True)
        macaroon = BinarySerializer().deserialize_raw(raw)
        rewritten = BinarySerializer().serialize_raw(macaroon)
    except Exception:  # noqa: BLE001 - pymacaroons raises whatever junk leads to
        return None
    return macaroon if rewritten == raw and base64.standard_b64encode(raw).decode("ascii") == token else None


def is_signed(macaroon: Macaroon, root_key: bytes) -> bool:
    """Whether the HMAC chain of ``macaroon`` starts at ``root_key``; what its caveats say isn't looked at."""
    from pymacaroons import Verifier
    from pymacaroons.exceptions import MacaroonVerificationFailedException

    verifier = Verifier()
    verifier.satisfy_general(lambda _: True)
    try:
        return bool(verifier.verify(macaroon, root_key))
    except MacaroonVerificationFailedException:
        return False
