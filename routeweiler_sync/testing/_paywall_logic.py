"""What a paywall answers: challenges, the verification of tokens, refusals, and faults on demand; by default, as aperture (v0.5).

Sockets are left to `paywall`: `Paywall` serves this over HTTP, `add_paywall` through the ``responses`` library. The options of a
service are in `_services`, what a token opens in `_ways`, how it is written in `_tokens`, how a challenge is written in `_forms`.
Sources: aperture's ``mint/mint.go``, ``l402/identifier.go``, ``l402/header.go``, ``l402/satisfier.go``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args
from urllib.parse import parse_qs, unquote, urlsplit

from requests.structures import CaseInsensitiveDict

from . import _payment
from ._forms import JSON_TYPE, TEXT_TYPE, Form, Offer, plain_body
from ._messages import Page, PaidRequests, PaywallRequest, Refusal, Reply
from ._payment import AUTHORIZATION, OTHER_HEADER, SCHEME, Charge, Credential, PaymentForm, Problem
from ._services import Service, ServiceOptions
from ._signatures import spelled_out
from ._tokens import caveats_of, is_signed, make_token, mint as mint, parse, token_id_of
from ._ways import Grant, credit_msat

if TYPE_CHECKING:
    from typing_extensions import Unpack

FREE_PATH = "/free"
REDIRECT_PATH = "/redirect"
_FIELDS = (AUTHORIZATION.lower(), OTHER_HEADER.lower())
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
    - ``false_request``: fields of ``request`` in challenges of the scheme ``Payment`` that are put in as they are:
      ``{"amount": "1"}``, ``{"paymentHash": "ab" * 32}``, ``{"network": "mainnet"}``; None leaves one out.
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
    false_request: Mapping[str, Any] | None = None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _PaymentVerdict:
    """What a payment came to: the charge if it opens the page, else why not.

    ``known`` is the charge that was echoed, also where it doesn't open the page. ``problem`` is for the body of the refusal.
    ``same``: the parameters of the echoed challenge, where that is offered again as it is.
    """

    charge: Charge | None = None
    known: Charge | None = None
    same: Mapping[str, str] | None = None
    refused: Refusal | None = None
    proves: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """An answer that a test asked for instead of the page. ``used``: the use counts. ``receipt`` None: as the service has them."""

    page: Page
    used: bool = True
    receipt: bool | None = None


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
        self._planned: list[_Planned] = []
        self._charges: dict[str, Charge] = {}
        self._last_charges: dict[Hashable, str] = {}
        self._secret = secrets.token_bytes(32)
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
        self,
        status: int,
        *,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"not now\n",
        used: bool = True,
        receipt: bool | None = None,
    ) -> None:
        """Answer the next ``times`` requests with a good credential with this status (429, 500, …), these headers and this body.

        ``used=False``: such an answer uses nothing up, as if it came from a proxy in front of the server. ``receipt`` says whether
        it has a ``Payment-Receipt`` where it came with a payment; None: as the service has them.
        """
        with self._changed:
            self._planned += [_Planned(page=(status, headers or {}, body), used=used, receipt=receipt)] * times

    def revoke_tokens(self) -> None:
        """Refuse all tokens and payments sold so far."""
        with self._changed:
            for grant in self._grants.values():
                grant.revoked = True
            for charge in self._charges.values():
                charge.revoked = True

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
        ours = [value for name, value in lines if name.lower() in _FIELDS and _holds_ours(value)]
        kept = CaseInsensitiveDict[str]()
        for name, value in lines:
            if name.lower() not in _FIELDS or not _holds_ours(value):
                kept[name] = f"{kept[name]}, {value}" if name in kept else value
        parts = urlsplit(target)
        request = PaywallRequest(
            method=method,
            path=unquote(parts.path),
            query=parts.query,
            headers=kept,
            body=body,
            authorized=bool(ours),
            scheme=credential[1] if credential else None,
        )
        reply, request = self._reply(request, credential, lines)
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()
        return reply

    def _reply(
        self, request: PaywallRequest, credential: re.Match[str] | None, lines: Sequence[tuple[str, str]]
    ) -> tuple[Reply, PaywallRequest]:
        if request.method == "OPTIONS":
            reply = Reply(status=200, headers=(("Access-Control-Allow-Methods", "GET, POST"),))
        elif request.path == REDIRECT_PATH:
            asked = parse_qs(request.query)
            reply = Reply(status=int(asked.get("status", ["302"])[0]), headers=(("Location", asked["to"][0]),))
        elif request.path == FREE_PATH or request.path.startswith(FREE_PATH + "/"):
            reply = Reply(status=200, body=b"free\n")
        else:
            return self._sold(request, credential, lines)
        return reply, replace(request, status=reply.status)

    def _sold(
        self, request: PaywallRequest, credential: re.Match[str] | None, lines: Sequence[tuple[str, str]]
    ) -> tuple[Reply, PaywallRequest]:
        """Answer a request for a page that costs something."""
        service = next(each for each in self._services if each.sells(request.path))
        if service.way == "instance":
            request = replace(request, instance=self._next_instance(service))
        form = service.payment_form
        token = None if form is None else _payment.read(service.form.removesuffix("-mpp"), service.header, lines)
        if form is not None and token is not None:
            return self._sold_for_payment(service, form, replace(request, scheme=SCHEME), token)
        if not request.authorized:
            reply = self._unasked(service, request)
            return reply, replace(request, status=reply.status)
        if not self._reads(service, credential):
            reply = self._unasked(service, request) if credential else self._refusal(service, request, "malformed")
            return reply, replace(request, refused="malformed", status=reply.status)
        verdict = self._verdict(service, request, credential)
        request = replace(request, proves=verdict.proves, refused=verdict.refused)
        if verdict.grant is not None:
            grant, price_msat = verdict.grant, service.price_msat
            request = replace(request, paid=True, payment_hash=verdict.proves)
            return self._paid(request, give_back=lambda: grant.spend(price_msat, times=-1))
        reply = self._refusal(service, request, verdict.refused or "forged")
        return reply, replace(request, status=reply.status)

    def _next_instance(self, service: Service) -> int:
        with self._changed:
            if self._instance is not None:
                return self._instance % service.instances
            self._turn += 1
            return (self._turn - 1) % service.instances

    def _paid(
        self,
        request: PaywallRequest,
        *,
        give_back: Callable[[], None],
        receipt: Callable[[int, bool | None], Iterable[tuple[str, str]]] = lambda status, wanted: (),
    ) -> tuple[Reply, PaywallRequest]:
        """Answer with the page, or as a test has planned. ``give_back`` takes the use back; the caller doesn't hold the lock."""
        with self._changed:
            cut = self._cuts.pop(0) if self._cuts else None
            planned = self._planned.pop(0) if self._planned and cut != "before" else None
            if cut == "before" or (planned is not None and not planned.used):
                give_back()  # it never was handled
        if cut == "before":
            return Reply(status=0, cut=True), request
        status, headers, body = planned.page if planned else self._page_for(request)
        lines = (*receipt(status, planned.receipt if planned else None), *headers.items())
        return Reply(status=status, headers=lines, body=body, cut=cut is not None), replace(request, status=status)

    def _page_for(self, request: PaywallRequest) -> Page:
        return self.respond(request) if self.respond else (200, {}, self.content)

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

    def _challenge(
        self, service: Service, request: PaywallRequest, problem: Problem | None = None, again: _PaymentVerdict | None = None
    ) -> Reply:
        """Return a 402 with a challenge in the service's form. To a HEAD it may tell the price only.

        ``problem`` says why a payment isn't taken. ``again`` has what is offered again, if anything is.
        """
        if request.method == "HEAD" and service.head == "price-only":
            price = ("X-L402-Price-Sats", str(-(-service.invoice_msat // 1000)))
            line = ("WWW-Authenticate", f"{self._scheme(service)} price-only")
            return Reply(status=402, headers=(line, price, ("Cache-Control", "no-store")))
        form, pays = service.header_form(self.faults.token_param), service.payment_form
        if pays is not None:
            return self._payment_required(service, request, form, pays, problem, again)
        offer = self._offer(service, request)
        lines = form.written(offer)
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

    def _payment_required(
        self,
        service: Service,
        request: PaywallRequest,
        form: Form,
        pays: PaymentForm,
        problem: Problem | None,
        again: _PaymentVerdict | None,
    ) -> Reply:
        """Return a 402 of a service that takes payments, with a challenge in each of its schemes."""
        tokens = form.written(self._offer(service, request)) if form.lines else []
        known, same = (again.known, again.same) if again else (None, None)
        offered = [same or self._payment(service, request, pays, intent, known) for intent in service.intents]
        payments = [_payment.written(pays, parameters) for parameters in offered]
        if pays.joined:
            payments = [", ".join(payments)]
        # The lines stand in the order of the schemes.
        at = service.schemes.index(SCHEME) if SCHEME in service.schemes else len(tokens)
        lines = [*tokens[:at], *payments, *tokens[at:]]
        problem = problem or _payment.payment_required(pays, service.description, service.name)
        headers = (*(("WWW-Authenticate", line) for line in lines), *_payment.refusal_headers(pays))
        body = _payment.problem_body(pays, problem, offered[0]["id"] if offered else None)
        return Reply(status=problem.status, headers=headers, body=body, endless=self.faults.endless_402)

    def _scheme(self, service: Service) -> str:
        if service.schemes == (SCHEME,):
            return SCHEME
        return service.header_form(self.faults.token_param).lines[-1].partition(" ")[0]

    # Payments

    def _payment(
        self, service: Service, request: PaywallRequest, pays: PaymentForm, intent: str, known: Charge | None
    ) -> dict[str, str]:
        """Return the parameters of a fresh challenge. ``known`` is the charge that it is for, None: a new one."""
        told: dict[str, str | None] = {"realm": service.name, "method": "lightning", "intent": intent}
        if intent == "session":
            invoice = self.lnd.invoice(
                _payment.deposit_msat(service.price_msat), memo=f"session {service.name}", expiry_s=_EXPIRED_FOR_S
            )
            told["request"] = _payment.session_request(invoice, amount_msat=service.price_msat)
        else:
            told["request"] = self._charge(service, request, pays, known)
        life_s = math.inf if service.expires is None and service.form == "aperture-mpp" else service.expires
        told["expires"] = _payment.expiry(pays, time.time(), life_s)
        told["description"], told["header"] = service.description, service.header
        if service.digest and request.body:
            way = pays.digest if service.digest is True else service.digest
            told["digest"] = _payment.body_digest(way, request.body)
        if pays.bound:
            told["opaque"] = (
                base64.urlsafe_b64encode(json.dumps({"_mpp_nonce": secrets.token_hex(32)}).encode()).decode().rstrip("=")
            )
        parameters = {name: value for name, value in told.items() if value is not None}
        return {"id": _payment.challenge_id(self._secret, parameters), **parameters}

    def _charge(self, service: Service, request: PaywallRequest, pays: PaymentForm, known: Charge | None) -> str:
        """Return the parameter ``request`` for a charge: of ``known``, of the last one (`repeat_invoice`), or of a new one."""
        scope = _scope(request) if pays.bound else None
        place = (service.name, repr(scope))
        with self._changed:
            last = self._last_charges.get(place) if self.faults.repeat_invoice else None
        if known is not None or last is not None:
            return known.request if known is not None else last or ""
        invoice, amount_msat = self._invoice(service, service.price_msat), service.price_msat
        false = self.faults.false_request
        if self.faults.mismatch:
            false = {"paymentHash": hashlib.sha256(invoice.payment_hash).hexdigest(), **(false or {})}
        told = _payment.request_of(invoice, amount_msat=amount_msat, currency=self.faults.currency, scope=scope, false=false)
        with self._changed:
            self._charges[told] = Charge(request=told, payment_hash=invoice.payment_hash)
            self._last_charges[place] = told
        return told

    def _sold_for_payment(
        self, service: Service, form: PaymentForm, request: PaywallRequest, token: str
    ) -> tuple[Reply, PaywallRequest]:
        """Answer a request that came with a payment."""
        credential = _payment.decoded(token)
        verdict = self._payment_verdict(service, form, request, credential)
        request = replace(request, proves=verdict.proves, refused=verdict.refused)
        charge = verdict.charge
        if charge is not None and credential is not None:
            receipts = service.receipts or form.receipts

            def receipt(status: int, wanted: bool | None) -> Iterable[tuple[str, str]]:
                when = receipts if wanted is None else "always" if wanted else "never"
                return _payment.receipt_headers(form, when, credential, charge.payment_hash, time.time(), status)

            def give_back() -> None:
                charge.used = False

            request = replace(request, paid=True, payment_hash=verdict.proves)
            return self._paid(request, give_back=give_back, receipt=receipt)
        reply = self._refused_payment(service, form, request, verdict)
        return reply, replace(request, status=reply.status)

    def _payment_verdict(
        self, service: Service, form: PaymentForm, request: PaywallRequest, credential: Credential | None
    ) -> _PaymentVerdict:
        """Judge a payment as the service's form does. If it is good, and opens one page only, it is used up."""
        required = _payment.payment_required(form, service.description, service.name)
        if credential is None:
            problem = Problem(name="malformed-credential", detail="Credential is malformed: Invalid base64url or JSON..")
            return _PaymentVerdict(refused="malformed", problem=problem)
        echo = credential.echo
        with self._changed:
            charge = self._charges.get(echo["request"])
        if charge is None or echo["intent"] != "charge" or not _payment.is_issued(self._secret, credential):
            problem = Problem(
                name="invalid-challenge", detail=f'Challenge "{echo["id"]}" is invalid: challenge was not issued by this server.'
            )
            return _PaymentVerdict(refused="forged", known=charge, problem=problem)
        is_paid = credential.payment_hash == charge.payment_hash and self.lnd.settled(charge.payment_hash)
        proves = charge.payment_hash.hex() if is_paid else None
        refused: Refusal | None = None
        with self._changed:
            if form.bound and not _payment.has_scope(echo["request"], _scope(request)):
                refused, charge_known, problem = "elsewhere", None, required
            elif echo.get("digest") and echo["digest"] not in _digests(request.body):
                refused, charge_known, problem = "elsewhere", charge, required
            elif _payment.has_expired(echo.get("expires"), time.time()):
                detail = f"Payment expired at {echo.get('expires')}."
                refused, charge_known, problem = "expired", charge, Problem(name="payment-expired", detail=detail)
            elif service.authscheme == "l402" or service.way == "nothing":
                refused, charge_known, problem = "elsewhere", charge, required
            elif credential.preimage is None:
                detail = "Credential payload is invalid: preimage."
                refused, charge_known, problem = "malformed", charge, Problem(name="invalid-payload", detail=detail)
            else:
                reason = self._reason_against(form, charge, credential, proves)
                if reason is None:
                    charge.used = form.single_use
                    return _PaymentVerdict(charge=charge, known=charge, proves=proves)
                refused, detail = reason
                charge_known, problem = charge, _payment.failed(form, detail)
        same = echo if form.bound and problem.name == "verification-failed" else None
        return _PaymentVerdict(refused=refused, known=charge_known, same=same, proves=proves, problem=problem)

    def _reason_against(
        self, form: PaymentForm, charge: Charge, credential: Credential, proves: str | None
    ) -> tuple[Refusal, str] | None:
        """Return why a genuine challenge with its preimage isn't taken, with the server's words. The caller holds the lock."""
        if credential.payment_hash != charge.payment_hash:
            return "forged", f"Invalid preimage: sha256({credential.preimage}) != {charge.payment_hash.hex()}"
        if proves is None:
            return "unpaid", "Invoice not settled"
        if charge.revoked:
            return "revoked", "Unknown payment"
        if charge.used:
            known = f"Preimage already consumed for payment: {charge.payment_hash.hex()}"
            return "used", "already used" if form.bound else known
        fault = self._fault_against(charge.payment_hash)
        return None if fault is None else (fault, "Invoice not settled")

    def _refused_payment(self, service: Service, form: PaymentForm, request: PaywallRequest, verdict: _PaymentVerdict) -> Reply:
        """Refuse a payment, in the way of the service."""
        problem = verdict.problem or _payment.payment_required(form, service.description, service.name)
        if self.faults.bare_401:
            return Reply(status=401)
        if not service.offers_at(request.path):
            return self._unasked(service, request)
        if not form.names_challenge or (
            form.bound and problem.name in ("malformed-credential", "invalid-challenge", "payment-expired")
        ):
            problem = _payment.payment_required(form, service.description, service.name)
        if service.refuses != 402:
            problem = replace(problem, status=service.refuses)
        words = service.refuses_with or ("challenge" if service.refuses == 402 else "nothing")
        if words == "challenge":
            reoffers = form.reoffers if service.reoffers is None else service.reoffers
            return self._challenge(service, request, problem, verdict if reoffers else None)
        line = {"scheme": SCHEME, "realm": f'{SCHEME} realm="{service.name}"'}.get(words)
        headers = (*(() if line is None else (("WWW-Authenticate", line),)), *_payment.refusal_headers(form))
        return Reply(status=problem.status, headers=headers, body=_payment.problem_body(form, problem, None))

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

    def _invoice(self, service: Service, amount_msat: int | None = None) -> Invoice:
        """Issue an invoice for the service, with the faults that concern invoices. ``amount_msat`` None: for a token."""
        faulty: dict[str, Any] = {}
        if self.faults.expire_invoices:
            faulty["created_at"] = int(time.time()) - 2 * _EXPIRED_FOR_S
        if self.faults.currency is not None:
            faulty["currency"] = self.faults.currency
        memo = f"L402 {service.name}" if service.form.startswith("aperture") or amount_msat is None else ""
        return self.lnd.invoice(amount_msat or service.invoice_msat, memo=memo, expiry_s=_EXPIRED_FOR_S, **faulty)

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
            (service.form == "aperture" and service.schemes != (SCHEME,))
            or credential[1] in service.header_form(self.faults.token_param).schemes
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
            reason = grant.reason_against(thing, service.price_msat) or narrowed or self._fault_against(grant.payment_hash)
            if service.authscheme == "mpp":
                reason = "elsewhere"
            if reason is None:
                grant.spend(service.price_msat)
        return _Verdict(grant=grant if reason is None else None, refused=reason, proves=proves)

    def _fault_against(self, payment_hash: bytes) -> Refusal | None:
        """Return the fault that a good credential meets, if any, and count it. The caller holds the lock."""
        offers = self._offers[payment_hash] = self._offers.get(payment_hash, 0) + 1
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


def _holds_ours(value: str) -> bool:
    """Return whether a line of ``Authorization`` holds a credential of a scheme that is sold here."""
    return re.search(r"(?i)(?:^|,\s*)(l402|lsat|payment)\b", value) is not None


def _scope(request: PaywallRequest) -> dict[str, str]:
    """Return what a challenge for this request is bound to, where it is."""
    return _payment.scope_of(request.method, request.path, request.query)


def _digests(body: bytes) -> tuple[str, str]:
    return _payment.body_digest("colons", body), _payment.body_digest("bare", body)


def _accepts(request: PaywallRequest) -> bool:
    """Return whether the request says that it understands challenges."""
    accepted = request.headers.get("Accept-Authenticate", "").upper()
    return "L402" in accepted or "LSAT" in accepted
