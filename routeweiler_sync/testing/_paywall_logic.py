"""What a paywall answers, as aperture (v0.5) does: challenges, macaroons and their verification, and faults on demand.

Sockets are left to `paywall`: `Paywall` serves this over HTTP, `add_paywall` through the ``responses`` library. Sources: aperture's
``mint/mint.go``, ``l402/identifier.go``, ``l402/header.go``, ``l402/satisfier.go``.
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
#: A page: status, headers, body.
Page = tuple[int, Mapping[str, str], bytes]


class Invoice(Protocol):
    """What the paywall needs of an invoice. ``payment_hash`` is 32 bytes."""

    @property
    def bolt11(self) -> str: ...
    @property
    def payment_hash(self) -> bytes: ...


class InvoiceIssuer(Protocol):
    """What the paywall needs of the node that issues its invoices. `FakeLnd` has it.

    ``invoice(amount_msat, *, memo, expiry_s)`` issues an `Invoice`. Some faults also pass ``created_at`` and ``currency``.
    """

    @property
    def invoice(self) -> Callable[..., Invoice]: ...
    def settled(self, payment_hash: bytes) -> bool:
        """Return whether the payee has the money for the invoice with this payment hash (32 bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaywallRequest:
    """A request as the paywall received it, without its credential.

    ``path`` is without the query. ``authorized``: the request had an ``Authorization`` for L402 or LSAT. ``scheme`` is which of the
    two, None without a well-formed credential. ``paid``: the credential was good; ``payment_hash`` (64 hex digits) is the payment
    that it proves. ``status`` is the status of the answer, 0 if the connection was cut before the request was handled.
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
    """An answer of the paywall. ``headers`` are the header lines; a name may occur in several.

    ``cut``: nothing is sent, and the connection is closed. ``endless``: the body never ends.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    cut: bool = False
    endless: bool = False


@dataclass(slots=True, kw_only=True)
class Service:
    """What is sold under a path prefix. The fields may be changed while the paywall runs.

    ``valid_for_s``: tokens have the caveat ``<name>_valid_until``, this many seconds ahead (negative: they have expired already).
    ``dynamic``: a token opens one exact path, and has no caveat but ``services``. ``scheme``: a challenge has one header line for
    each of these, in this order.
    """

    prefix: str
    name: str
    price_msat: int
    valid_for_s: int | None = None
    dynamic: bool = False
    scheme: Sequence[str] = ("LSAT", "L402")

    def sells(self, path: str) -> bool:
        """Return whether ``path`` is the prefix or lies under it."""
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")

    def name_for(self, path: str) -> str:
        """Return the name in the ``services`` caveat. If ``dynamic``, it contains the path."""
        return self.name + path if self.dynamic else self.name


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong. All faults may be set and combined at any time.

    - ``refuse_tokens``: refuse good credentials, all of them (True) or the next so many (a number).
    - ``settle_lag``: refuse each good credential so many times first, like a server that learns late of the settlement.
    - ``bare_401``: answer refused credentials with 401 and no challenge.
    - ``expire_invoices``: invoices have expired an hour ago.
    - ``currency``: invoices are for another network, by its BOLT-11 prefix (``bc``, ``tb``).
    - ``mismatch``: the token names another payment hash than the invoice.
    - ``repeat_invoice``: each service repeats the last challenge that it gave.
    - ``opaque_tokens``: tokens are random strings, not macaroons.
    - ``token_param``: the token's name in the challenge: ``macaroon`` as in aperture, ``token`` as in the specification.
    - ``delay_s``: seconds to wait before each answer (`Paywall` only).
    - ``endless_402``: the body of a 402 never ends (`Paywall` only).
    """

    refuse_tokens: bool | int = 0
    settle_lag: int = 0
    bare_401: bool = False
    expire_invoices: bool = False
    currency: str | None = None
    mismatch: bool = False
    repeat_invoice: bool = False
    opaque_tokens: bool = False
    token_param: Literal["macaroon", "token"] = "macaroon"  # noqa: S105 - the name of a parameter
    delay_s: float = 0.0
    endless_402: bool = False


class PaywallLogic:
    """A paywall without a server. Safe for threads.

    ``lnd`` issues the invoices (`FakeLnd`). The service at ``/`` sells everything for ``price_msat`` under the name ``service``;
    ``valid_for_s``, ``dynamic`` and ``scheme`` are those of `Service`. A paid request gets ``content``, or what
    ``respond(request)`` returns. ``faults`` may be changed at any time.
    """

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

    # What tests set, call and read

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
        """Sell another service under the path ``prefix``, and return it. Of several prefixes that fit, the longest counts."""
        service = Service(prefix=prefix, name=name, price_msat=price_msat, valid_for_s=valid_for_s, dynamic=dynamic, scheme=scheme)
        with self._changed:
            self._services = sorted([*self._services, service], key=lambda each: len(each.prefix), reverse=True)
        return service

    @property
    def price_msat(self) -> int:
        """The price of the service at ``/``, in msat. It may be set at any time."""
        return self.service.price_msat

    @price_msat.setter
    def price_msat(self, value: int) -> None:
        self.service.price_msat = value

    @property
    def price(self) -> int:
        """`price_msat` in sats, rounded up. It may be set at any time."""
        return -(-self.price_msat // 1000)

    @price.setter
    def price(self, value: int) -> None:
        self.price_msat = value * 1000

    @property
    def requests(self) -> list[PaywallRequest]:
        """All requests so far, in the order in which they were answered."""
        with self._changed:
            return list(self._requests)

    def wait_for(self, predicate: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait until ``predicate`` holds. It is called after each request, and every 50 ms.

        Raises: TimeoutError after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"Timed out after {timeout_s:g} s.")
            with self._changed:
                self._changed.wait(0.05)

    def cut_next(self, when: CutWhen = "before", *, times: int = 1) -> None:
        """Close the connection of the next ``times`` requests with a good credential, without an answer.

        ``before``: before the request is handled, so `respond` isn't called; ``after``: after that.
        """
        with self._changed:
            self._cuts += [when] * times

    def answer_next(
        self, status: int, *, times: int = 1, headers: Mapping[str, str] | None = None, body: bytes = b"not now\n"
    ) -> None:
        """Answer the next ``times`` requests with a good credential with this status (429, 500, …), these headers and this body."""
        with self._changed:
            self._planned += [(status, headers or {}, body)] * times

    def revoke_tokens(self) -> None:
        """Refuse all tokens issued so far."""
        with self._changed:
            self._root_keys.clear()
            self._opaque.clear()

    # Answers

    def answer(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Reply:
        """Return the reply to a request, and record the request. ``target`` is the path with the query.

        ``headers`` are the header lines in their order.
        """
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
        """Return a 402 such as aperture sends: a header line for each scheme, all with the same token and invoice."""
        name = service.name_for(path)
        with self._changed:
            challenge = self._last_challenges.get(name) if self.faults.repeat_invoice else None
        if challenge is None:
            invoice = self._invoice(service)
            challenge = self._token(service, name, invoice.payment_hash), invoice.bolt11
            with self._changed:
                self._last_challenges[name] = challenge
        token, bolt11 = challenge
        version = 'version="0", ' if self.faults.token_param == "token" else ""  # noqa: S105 - the name of a parameter
        lines = [
            ("WWW-Authenticate", f'{scheme} {version}{self.faults.token_param}="{token}", invoice="{bolt11}"')
            for scheme in service.scheme
        ]
        headers = (*lines, ("Cache-Control", "no-store"), ("Content-Type", "text/plain; charset=utf-8"))
        return Reply(status=402, headers=headers, body=b"payment required\n", endless=self.faults.endless_402)

    def _invoice(self, service: Service) -> Invoice:
        """Issue an invoice for the service, with the faults that concern invoices."""
        faulty: dict[str, Any] = {}
        if self.faults.expire_invoices:
            faulty["created_at"] = int(time.time()) - 2 * _EXPIRED_FOR_S
        if self.faults.currency is not None:
            faulty["currency"] = self.faults.currency
        return self.lnd.invoice(service.price_msat, memo=f"L402 {service.name}", expiry_s=_EXPIRED_FOR_S, **faulty)

    def _token(self, service: Service, name: str, payment_hash: bytes) -> str:
        """Make a token for this payment hash (32 bytes): a macaroon, or a random string if ``opaque_tokens`` is set."""
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
        """Return the payment hash (32 bytes) of a credential that is good for the service ``name``, else None.

        The checks are as strict as aperture's. The faults ``refuse_tokens`` and ``settle_lag`` are applied here.
        """
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
        """Return the payment hash in the macaroon ``token`` if signature, services and expiry are good for ``name``, else None."""
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
    """Return a macaroon such as aperture mints: version 2, identifier of 66 bytes, standard padded base64.

    ``root_key``, ``token_id`` and ``payment_hash`` are 32 bytes each; ``caveats`` are texts like ``services=weather:0``.
    """
    from pymacaroons import MACAROON_V2, Macaroon
    from pymacaroons.serializers import BinarySerializer

    identifier = _IDENTIFIER.pack(0, payment_hash, token_id)
    macaroon = Macaroon(location="lsat", identifier=identifier, key=root_key, version=MACAROON_V2)
    for caveat in caveats:
        macaroon.add_first_party_caveat(caveat)
    return base64.standard_b64encode(BinarySerializer().serialize_raw(macaroon)).decode("ascii")


def parse(token: str) -> Macaroon | None:
    """Return the macaroon in ``token``. None unless ``token`` is padded standard base64 of its one canonical encoding."""
    from pymacaroons.serializers import BinarySerializer

    try:
        raw = base64.b64decode(token, validate=True)
        macaroon = BinarySerializer().deserialize_raw(raw)
        rewritten = BinarySerializer().serialize_raw(macaroon)
    except Exception:  # noqa: BLE001 - pymacaroons raises many kinds of errors for junk
        return None
    return macaroon if rewritten == raw and base64.standard_b64encode(raw).decode("ascii") == token else None


def is_signed(macaroon: Macaroon, root_key: bytes) -> bool:
    """Return whether the HMAC chain of ``macaroon`` starts at ``root_key``. The caveats' conditions aren't checked."""
    from pymacaroons import Verifier
    from pymacaroons.exceptions import MacaroonVerificationFailedException

    verifier = Verifier()
    verifier.satisfy_general(lambda _: True)
    try:
        return bool(verifier.verify(macaroon, root_key))
    except MacaroonVerificationFailedException:
        return False
