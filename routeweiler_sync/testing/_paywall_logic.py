"""What a paywall answers: challenges, the verification of tokens, refusals, and faults on demand; by default, as aperture (v0.5).

Sockets are left to `paywall`: `Paywall` serves this over HTTP, `add_paywall` through the ``responses`` library. The options of a
service are in `_services`, what a token opens in `_ways`, how it is written in `_tokens`, how a challenge is written in `_forms`.
Sources: aperture's ``mint/mint.go``, ``l402/identifier.go``, ``l402/header.go``, ``l402/satisfier.go``.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args
from urllib.parse import parse_qs, unquote, urlsplit

from requests.structures import CaseInsensitiveDict

from ._forms import JSON_TYPE, TEXT_TYPE, Offer, charge_line, plain_body
from ._messages import Page, PaidRequests, PaywallRequest, Refusal, Reply
from ._services import Service, ServiceOptions
from ._signatures import spelled_out
from ._tokens import caveats_of, is_signed, make_token, mint as mint, parse, token_id_of
from ._ways import Grant, credit_msat

if TYPE_CHECKING:
    from typing_extensions import Unpack

FREE_PATH = "/free"
REDIRECT_PATH = "/redirect"
_CREDENTIAL = re.compile(r"(LSAT|L402) ([^:]+):([0-9a-f]{64})")
_EXPIRED_FOR_S = 3_600
#: How many requests the text of a paywall shows. pytest cuts longer texts in the middle.
_SHOWN_MAX = 4
#: What the body of a refusal says.
_REASONS: dict[Refusal, str] = {
    "malformed": "the credential is malformed",
    "forged": "the token or the preimage is not genuine",
    "revoked": "the token was revoked",
    "unpaid": "the invoice is not paid",
    "expired": "the token has expired",
    "elsewhere": "the token is not valid for this request",
    "used": "the token was used up",
    "late": "the invoice is not paid",
    "fault": "the token was refused",
}

CutWhen = Literal["before", "after"]


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


class PaywallOptions(ServiceOptions, total=False):
    """The options of `Paywall`."""

    price_msat: int
    service: str
    sells: str | Callable[[PaywallRequest], Hashable]
    content: bytes
    respond: Callable[[PaywallRequest], Page] | None
    faults: Faults | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What a credential came to: the grant if it opens the page, else why not. ``proves`` is that of `PaywallRequest`."""

    grant: Grant | None = None
    refused: Refusal | None = None
    proves: str | None = None


class PaywallLogic:
    """A paywall without a server. Safe for threads. Its arguments are those of `Paywall`, and explained there.

    Raises: ValueError for an option that isn't possible. The text lists those that are.
    """

    @spelled_out(ServiceOptions, Service)
    def __init__(
        self,
        lnd: InvoiceIssuer,
        *,
        price_msat: int = 10_000,
        service: str = "paywall",
        sells: str | Callable[[PaywallRequest], Hashable] = "service",
        content: bytes = b"paid content\n",
        respond: Callable[[PaywallRequest], Page] | None = None,
        faults: Faults | None = None,
        **options: Unpack[ServiceOptions],
    ) -> None:
        self.lnd = lnd
        self.content = content
        self.respond = respond
        self.faults = faults or Faults()
        self._changed = threading.Condition()
        self._requests: list[PaywallRequest] = []
        self._grants: dict[bytes | str, Grant] = {}
        self._offers: dict[bytes, int] = {}
        self._last_challenges: dict[Hashable, Offer] = {}
        self._instance: int | None = None
        self._turn = 0
        self._cuts: list[CutWhen] = []
        self._planned: list[Page] = []
        self._services: list[Service] = []
        self.service = self.add_service("/", name=service, price_msat=price_msat, sells=sells, **options)

    def __repr__(self) -> str:
        """Show the last requests: failed assertions about a paywall print it."""
        requests = self.requests
        last = ", ".join(f"{request.method} {request.path} {request.status}" for request in requests[-_SHOWN_MAX:])
        count = len(requests)
        return f"<{self._name}: {count} request{'' if count == 1 else 's'}{', the last: ' if last else ''}{last}>"

    # What tests set, call and read

    @spelled_out(ServiceOptions, Service)
    def add_service(
        self,
        prefix: str,
        *,
        name: str,
        price_msat: int,
        sells: str | Callable[[PaywallRequest], Hashable] = "service",
        **options: Unpack[ServiceOptions],
    ) -> Service:
        """Sell another service under the path ``prefix``, and return it. Of several prefixes that fit, the longest counts.

        ``name`` is what it is called in tokens. The options are those of `Paywall`; they aren't taken from the service at ``/``.

        Raises: ValueError for an option that isn't possible.
        """
        service = Service(prefix=prefix, name=name, price_msat=price_msat, way=sells, **options)
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
    def instance(self) -> int | None:
        """The instance that answers all requests; None (the default): each request goes to the next. For ``sells="instance"``.

        It may be set at any time. Raises: ValueError for a number that no service has.
        """
        return self._instance

    @instance.setter
    def instance(self, value: int | None) -> None:
        count = max((each.instances for each in self._services if each.way == "instance"), default=0)
        if value is not None and value not in range(count):
            raise ValueError(f"instance must be None or a number below {count}, the number of instances, not {value!r}.")
        self._instance = value

    @property
    def requests(self) -> list[PaywallRequest]:
        """All requests so far, in the order in which they were answered."""
        with self._changed:
            return list(self._requests)

    def paid_for(self, page: str) -> PaidRequests:
        """Return the requests for ``page`` that came with a good token, in the order in which they were answered.

            assert paywall.paid_for("/weather")
            assert not paywall.paid_for("/archive")

        ``page`` is a path, or the URL of a page; with a query, only that query counts. One token may pay for many requests: how
        often money moved is ``len(lnd.payments)``. Where such an assertion fails, the text lists what was asked for instead.

        Raises: ValueError for something else than a path or URL of this paywall.
        """
        path, query = self._page(page)
        requests = self.requests
        paid = [each for each in requests if each.paid and each.path == path and query in (None, each.query)]
        return PaidRequests(page, requests, paid)

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

        Raises: ValueError for any other ``when``.
        """
        if when not in get_args(CutWhen):
            raise ValueError(f"when is one of {', '.join(get_args(CutWhen))}, not {when!r}")
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
            for grant in self._grants.values():
                grant.revoked = True

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _page(self, page: str) -> tuple[str, str | None]:
        """Return the path and the query (None if it has none) that ``page`` names. Raises: ValueError as `paid_for` does."""
        parts = urlsplit(page)
        if not parts.path.startswith("/") and not parts.netloc:
            raise ValueError(f"page must be a path that begins with a slash, or a URL, not {page!r}.")
        return unquote(parts.path) or "/", parts.query if "?" in page else None

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
            return self._sold(request, credential)
        return reply, replace(request, status=reply.status)

    def _sold(self, request: PaywallRequest, credential: re.Match[str] | None) -> tuple[Reply, PaywallRequest]:
        """Answer a request for a page that costs something."""
        service = next(each for each in self._services if each.sells(request.path))
        if service.way == "instance":
            request = replace(request, instance=self._next_instance(service))
        if not request.authorized:
            reply = self._unasked(service, request)
            return reply, replace(request, status=reply.status)
        if not self._reads(service, credential):
            reply = self._unasked(service, request) if credential else self._refusal(service, request, "malformed")
            return reply, replace(request, refused="malformed", status=reply.status)
        verdict = self._verdict(service, request, credential)
        request = replace(request, proves=verdict.proves, refused=verdict.refused)
        if verdict.grant is not None:
            return self._paid(replace(request, paid=True, payment_hash=verdict.proves), service, verdict.grant)
        reply = self._refusal(service, request, verdict.refused or "forged")
        return reply, replace(request, status=reply.status)

    def _next_instance(self, service: Service) -> int:
        with self._changed:
            if self._instance is not None:
                return self._instance % service.instances
            self._turn += 1
            return (self._turn - 1) % service.instances

    def _paid(self, request: PaywallRequest, service: Service, grant: Grant) -> tuple[Reply, PaywallRequest]:
        with self._changed:
            cut = self._cuts.pop(0) if self._cuts else None
            planned = self._planned.pop(0) if self._planned and cut != "before" else None
            if cut == "before":
                grant.spend(service.price_msat, times=-1)  # it never was handled
        if cut == "before":
            return Reply(status=0, cut=True), request
        status, headers, body = planned or (self.respond(request) if self.respond else (200, {}, self.content))
        reply = Reply(status=status, headers=tuple(headers.items()), body=body, cut=cut is not None)
        return reply, replace(request, status=status)

    # What those get that aren't let in

    def _unasked(self, service: Service, request: PaywallRequest) -> Reply:
        """Answer a request without a credential that the server reads."""
        if not service.offers_at(request.path):
            return Reply(status=401, headers=(TEXT_TYPE,), body=b"unauthorized\n")
        if service.accept_authenticate is not None and not _accepts(request):
            free = service.accept_authenticate < 300
            return Reply(
                status=service.accept_authenticate, headers=(TEXT_TYPE,), body=b"free\n" if free else b"payment required\n"
            )
        return self._challenge(service, request)

    def _refusal(self, service: Service, request: PaywallRequest, reason: Refusal) -> Reply:
        """Refuse a credential, in the way of the service."""
        if self.faults.bare_401:
            return Reply(status=401)
        if not service.offers_at(request.path):
            return self._unasked(service, request)
        words = service.refuses_with or ("challenge" if service.refuses == 402 else "nothing")
        if words == "challenge" and (service.accept_authenticate is None or _accepts(request)):
            return replace(self._challenge(service, request), status=service.refuses)
        scheme = self._scheme(service)
        lines = {"scheme": (scheme,), "realm": (f'{scheme} realm="{service.name}"',)}.get(words, ())
        headers = (*(("WWW-Authenticate", line) for line in lines), JSON_TYPE)
        return Reply(status=service.refuses, headers=headers, body=json.dumps({"error": _REASONS[reason]}).encode())

    def _challenge(self, service: Service, request: PaywallRequest) -> Reply:
        """Return a 402 with a challenge in the service's form. To a HEAD it may tell the price only."""
        if request.method == "HEAD" and service.head == "price-only":
            price = ("X-L402-Price-Sats", str(-(-service.invoice_msat // 1000)))
            line = ("WWW-Authenticate", f"{self._scheme(service)} price-only")
            return Reply(status=402, headers=(line, price, ("Cache-Control", "no-store")))
        form = service.header_form(self.faults.token_param)
        offer = self._offer(service, request)
        lines = form.written(offer)
        if form.charges:
            lines.append(charge_line(service.name, self._invoice(service), amount_msat=service.invoice_msat))
        where = service.challenge_in or ("header" if form.body is None else "header and body")
        told: dict[str, Any] | None = None
        if where != "header":
            told = {**({} if service.challenge_in is None else plain_body(offer)), **(form.body(offer) if form.body else {})}
        headers = (
            *(("WWW-Authenticate", line) for line in lines if where != "body"),
            ("Cache-Control", "no-store"),
            TEXT_TYPE if told is None else JSON_TYPE,
        )
        body = b"payment required\n" if told is None else json.dumps(told).encode()
        return Reply(status=402, headers=headers, body=body, endless=self.faults.endless_402)

    def _scheme(self, service: Service) -> str:
        return service.header_form(self.faults.token_param).lines[-1].partition(" ")[0]

    # Tokens

    def _offer(self, service: Service, request: PaywallRequest) -> Offer:
        """Return a token with its invoice: new ones, or the last ones if ``repeat_invoice`` is set."""
        thing = service.thing(request)
        with self._changed:
            offer = self._last_challenges.get((service.name, thing)) if self.faults.repeat_invoice else None
        if offer is None:
            invoice, amount_msat = self._invoice(service), service.invoice_msat
            token = self._token(service, request.path, thing, invoice.payment_hash)
            offer = Offer(token=token, bolt11=invoice.bolt11, payment_hash=invoice.payment_hash, amount_msat=amount_msat)
            with self._changed:
                self._last_challenges[(service.name, thing)] = offer
        return offer

    def _invoice(self, service: Service) -> Invoice:
        """Issue an invoice for the service, with the faults that concern invoices."""
        faulty: dict[str, Any] = {}
        if self.faults.expire_invoices:
            faulty["created_at"] = int(time.time()) - 2 * _EXPIRED_FOR_S
        if self.faults.currency is not None:
            faulty["currency"] = self.faults.currency
        return self.lnd.invoice(service.invoice_msat, memo=f"L402 {service.name}", expiry_s=_EXPIRED_FOR_S, **faulty)

    def _token(self, service: Service, path: str, thing: Hashable, payment_hash: bytes) -> str:
        """Make a token for this payment hash (32 bytes) that opens ``thing``, and note what it is good for."""
        if self.faults.mismatch:
            payment_hash = hashlib.sha256(payment_hash).digest()
        kind = "opaque" if self.faults.opaque_tokens else service.token or service.header_form(self.faults.token_param).token
        expires_at = None if service.valid_for_s is None or service.dynamic else int(time.time()) + service.valid_for_s
        root_key, token_id = secrets.token_bytes(32), secrets.token_bytes(32)
        caveats = service.caveats(path, expires_at)
        token = make_token(kind, root_key=root_key, token_id=token_id, payment_hash=payment_hash, caveats=caveats)
        with self._changed:
            self._grants[token_id if kind == "macaroon" else token] = Grant(
                payment_hash=payment_hash,
                root_key=root_key,
                thing=thing,
                uses=1 if service.way == "once" else None,
                credit_msat=credit_msat(service.way),
                expires_at=expires_at,
            )
        return token

    def _reads(self, service: Service, credential: re.Match[str] | None) -> bool:
        """Return whether there is a credential of a scheme that the server reads. aperture reads both."""
        return credential is not None and (
            service.form == "aperture" or credential[1] in service.header_form(self.faults.token_param).schemes
        )

    def _verdict(self, service: Service, request: PaywallRequest, credential: re.Match[str] | None) -> _Verdict:
        """Judge a credential, as strictly as aperture does. If it is good, one use of it is spent.

        The faults ``refuse_tokens`` and ``settle_lag`` are applied here.
        """
        if credential is None:
            return _Verdict(refused="malformed")
        grant, narrowed = self._found(credential[2], service.name_for(request.path))
        preimage = bytes.fromhex(credential[3])
        if grant is None or hashlib.sha256(preimage).digest() != grant.payment_hash:
            return _Verdict(refused="forged")
        if not self.lnd.settled(grant.payment_hash):
            return _Verdict(refused="unpaid")
        proves = grant.payment_hash.hex()
        thing = service.thing(request)
        with self._changed:
            reason = grant.reason_against(thing, service.price_msat) or narrowed or self._fault_against(grant)
            if reason is None:
                grant.spend(service.price_msat)
        return _Verdict(grant=grant if reason is None else None, refused=reason, proves=proves)

    def _fault_against(self, grant: Grant) -> Refusal | None:
        """Return the fault that a good credential meets, if any, and count it. The caller holds the lock."""
        offers = self._offers[grant.payment_hash] = self._offers.get(grant.payment_hash, 0) + 1
        if self.faults.refuse_tokens:
            if self.faults.refuse_tokens is not True:
                self.faults.refuse_tokens -= 1
            return "fault"
        return "late" if offers <= self.faults.settle_lag else None

    def _found(self, token: str, name: str) -> tuple[Grant | None, Refusal | None]:
        """Return what was sold with ``token``; and why its own caveats don't let it open the service ``name``, if so.

        A macaroon of aperture's kind may have been narrowed by its owner. Any other token must be the one that was sold.
        """
        with self._changed:
            grant = self._grants.get(token)
        if grant is not None:
            return grant, None
        macaroon = parse(token)
        token_id = None if macaroon is None else token_id_of(macaroon)
        if macaroon is None or token_id is None:
            return None, None
        with self._changed:
            grant = self._grants.get(token_id)
        if grant is None or not is_signed(macaroon, grant.root_key):
            return None, None
        caveats = caveats_of(macaroon)
        services = [value for condition, value in caveats if condition == "services"]
        if any(name not in [each.rpartition(":")[0] for each in value.split(",")] for value in services):
            return grant, "elsewhere"
        expiries = [value for condition, value in caveats if condition == f"{name}_valid_until"]
        return grant, None if all(value.isdigit() and time.time() < int(value) for value in expiries) else "expired"


def _accepts(request: PaywallRequest) -> bool:
    """Return whether the request says that it understands challenges."""
    accepted = request.headers.get("Accept-Authenticate", "").upper()
    return "L402" in accepted or "LSAT" in accepted
