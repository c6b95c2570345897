"""One fetch for an agent: a request with a limit of its own, and an answer that says what came, what was paid and what is left.

Frameworks' tools and the MCP server are thin layers around `fetch` and `fetch_async`. What an agent may ask for are URL, method,
headers and body. Limits are the program's (`Rules`): nothing that the agent passes, and nothing that a page says, changes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from .._core.log import log
from .._core.money import MAX_MINOR_UNITS, MSAT_PER_SAT, minor_text, sats
from .._core.secret_text import shown as shown_value
from .._core.urls import origin_of, without_userinfo, without_userinfos
from ..errors import RouteweilerError
from ..payments import block_limit
from ..paywall.call import url_check
from ..policy import patterns
from ..protocol.http_auth import is_name
from . import pages
from .pages import Page
from .problems import Problem, problem_of, shown
from .waits import watch_heads, watching

if TYPE_CHECKING:
    from ..payments.types import Payment, Rehearsal
    from ..transport.session import Routeweiler

#: The most characters of a page that an agent gets, if the program doesn't say.
MAX_CHARS = 20_000
#: Seconds to wait for the connection, and for each part of the answer (requests' connect and read timeouts).
TIMEOUT_S = (30.0, 60.0)
#: After so many seconds, payments included, a call follows no further redirect.
REDIRECTS_S_MAX = 300.0
#: The methods that an agent may use.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PAYS_ANEW = "What was paid was for this one answer: fetching again pays anew. Ask the user."
#: Headers that aren't an agent's to set: they say where a request goes and how it is framed.
_RESERVED_HEADERS = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "proxy-authorization")
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the program lets an agent do. The agent can't change it.

    - ``max_sats_per_call``: the most that one fetch may spend, over redirects, routing included. None: the session's budget alone
      limits it.
    - ``max_chars``: a page is cut after so many characters.
    - ``allow_origins``: the servers that may be asked, also by redirects: patterns as in ``BudgetEnvelope.allowed_origins_glob``,
      for instance ``https://*.example.com``. None: any.

    Raises: ValueError for a limit or a pattern that can't be one.
    """

    max_sats_per_call: int | None
    max_chars: int = MAX_CHARS
    allow_origins: Sequence[str] | None = None

    def __post_init__(self) -> None:
        limit = self.max_sats_per_call
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= MAX_MINOR_UNITS):
            raise ValueError(
                f"max_sats_per_call is a whole number of sats from 0 to {MAX_MINOR_UNITS}, or None, not {shown_value(limit)}"
            )
        if isinstance(self.max_chars, bool) or not isinstance(self.max_chars, int) or self.max_chars < 1:
            raise ValueError(f"max_chars is a whole number from 1, not {shown_value(self.max_chars)}")
        if isinstance(self.allow_origins, str):
            raise ValueError("allow_origins is a list of patterns, not one text")
        if problem := next(filter(None, map(patterns.problem_of_origin, self.allow_origins or ())), None):
            raise ValueError(f"allow_origins: {problem}")

    def allows(self, url: str) -> bool:
        """Return whether ``url`` may be asked: a URL as `requests` sends it, not as somebody wrote it."""
        if self.allow_origins is None:
            return True
        origin = origin_of(url)
        return any(patterns.matches_origin(origin, each) for each in self.allow_origins)


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a fetch would pay: ``amount_msat``, and up to ``max_fee_msat`` for routing on top. Both are 0 for what costs nothing.

    ``verdict`` says in a sentence what a fetch would do.
    """

    amount_msat: int
    max_fee_msat: int
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return the price for JSON."""
        return {"amountMsat": self.amount_msat, "maxFeeMsat": self.max_fee_msat, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch brought: the ``page``, or the ``price`` if it was asked for, or the ``problem`` that kept it from coming.

    ``payment`` is the payment behind the page, None for a free one. ``spent_msat`` is what this fetch has paid, routing included;
    0 if the page was paid for before. ``pending_msat`` is the most that its payment may cost whose outcome isn't known yet.
    ``left_msat`` is what the limits around this fetch still allow, None if there is none, or none in sat; ``left`` says it in
    words.
    """

    method: str
    url: str
    status: int | None = None
    content_type: str | None = None
    page: Page | None = None
    payment: Payment | None = None
    spent_msat: int = 0
    pending_msat: int = 0
    left_msat: int | None = None
    left: str | None = None
    price: Price | None = None
    problem: Problem | None = None

    @property
    def money(self) -> str:
        """What was paid and what is left, in a sentence or two."""
        return " ".join(filter(None, (self._paid_text(), self.left and f"Left: {self.left}.")))

    def _paid_text(self) -> str:
        if self.spent_msat:
            return f"Paid {sats(self.spent_msat)}, routing included."
        if self.pending_msat:
            return f"A payment of at most {sats(self.pending_msat)} isn't finished."
        if self.payment is not None:
            return "Nothing was paid: what was paid for before was used again."
        return "Nothing was paid." if self.problem is None or self.problem.spent is False else self._spent_elsewhere()

    def _spent_elsewhere(self) -> str:
        assert self.problem is not None
        return "The money is spent." if self.problem.spent else "Whether money was spent isn't known yet."

    def as_json(self) -> dict[str, Any]:
        """Return the answer for an agent, as JSON has it. It holds no secret."""
        page, payment = self.page, self.payment
        return {
            "url": pages.encodable(self.url),
            "status": self.status,
            "contentType": self.content_type,
            "text": None if page is None else page.text,
            "cut": page is not None and page.cut,
            "sizeBytes": None if page is None else page.size_bytes,
            "note": None if page is None else page.note,
            "money": self.money,
            "spentMsat": self.spent_msat,
            "pendingMsat": self.pending_msat,
            "leftMsat": self.left_msat,
            "price": None if self.price is None else self.price.as_json(),
            "payment": None
            if payment is None
            else {
                "paymentHash": payment.payment_hash,
                "amountMsat": payment.amount_msat,
                "feeMsat": payment.fee_msat,
                "reused": payment.reused,
            },
            "error": None if self.problem is None else self.problem.as_json(),
        }

    def as_text(self) -> str:
        """Return `as_json` as a text, for frameworks whose tools return one."""
        return json.dumps(self.as_json(), ensure_ascii=False)


class _RefusedError(Exception):
    """The rules don't allow it. Nothing was sent to that server."""

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(message)
        self.code, self.advice = code, advice


@dataclass(kw_only=True)
class Call:
    """One fetch, which runs in one thread and may be cancelled from another.

    URL, method, headers, body and ``price_only`` are the agent's, and may be anything: what can't be used is told in the answer.
    ``price_only``: nothing is paid; see `fetch`. ``spent_before_msat`` is what the same call has spent in an earlier run, which the
    limit and the answer count. ``read`` reads the page from the response, and closes it.
    """

    session: Routeweiler
    rules: Rules
    url: str
    method: str = "GET"
    headers: Mapping[str, str] | None = None
    body: str | None = None
    price_only: bool = False
    spent_before_msat: int = 0
    read: Callable[[requests.Response, int], Page] = pages.read
    #: The tokens and preimages that the call has seen or sent.
    _secrets: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _is_redirected: bool = field(default=False, init=False, repr=False)
    #: The payment for an answer that was a redirect, if it was for that one answer: the redirect has used it up.
    _used_up: Payment | None = field(default=None, init=False, repr=False)
    _limit: block_limit.SpendingLimit | None = field(default=None, init=False, repr=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def run(self) -> Fetched:
        """Make the call, and return its answer; what goes wrong is in the answer.

        Money: may be paid, at most ``rules.max_sats_per_call``.
        """
        method = self.method.upper() if isinstance(self.method, str) else ""
        most, name = self.rules.max_sats_per_call, "max_sats_per_call"
        block = block_limit.Block(
            self.session._payer, MAX_MINOR_UNITS if most is None else most, option=None if most is None else f"{name}={most}"
        )
        with block as limit:
            if self.spent_before_msat:
                limit.count_before(self.spent_before_msat)
            with self._guard:
                self._limit = limit
                if self._cancelled.is_set():
                    limit.stop()
            watch_heads(self.session)
            token, watched = url_check.set(partial(self._check, time.monotonic() + REDIRECTS_S_MAX)), watching.set(True)
            try:
                found = self._fetched(method, limit)
            finally:
                watching.reset(watched)
                url_check.reset(token)
        if self._cancelled.is_set():
            log.warning("A cancelled fetch of %s has ended. %s", found.url, found.money)
        return found

    def cancel(self) -> str:
        """Let the call pay nothing from now on, and return what became of the money, as a sentence.

        A payment whose order may have left already goes on: what it buys is kept for the next fetch of the same URL.
        """
        with self._guard:
            self._cancelled.set()
            limit = self._limit
        if limit is None:
            return "The fetch was cancelled before it began: nothing is spent."
        limit.stop()
        spent, reserved = limit.spent_msat, limit.reserved_msat
        again = "Fetch the same URL again: nothing is paid twice."
        if reserved:
            may = f"up to {sats(reserved)} may be spent"
            return f"The fetch was cancelled while it paid: {may}. The payment goes on, and what it buys is kept. {again}"
        if spent:
            return f"The fetch was cancelled after it had paid {sats(spent)}. What it bought is kept. {again}"
        return "The fetch was cancelled before it paid: nothing is spent."

    @property
    def moves_money(self) -> bool:
        """Whether the call has paid, or an order of it may have left."""
        limit = self._limit
        return limit is not None and bool(limit.spent_msat or limit.reserved_msat)

    def _fetched(self, method: str, limit: block_limit.SpendingLimit) -> Fetched:
        response = None
        page, problem, rehearsal = None, None, None
        try:
            arguments = self._arguments(method)
            if self.price_only:
                response, rehearsal = self._priced(method, arguments)
                problem = _refusal(rehearsal, method)
            else:
                response = self.session.request(method, self.url, stream=True, **arguments)
                page = self.read(response, self.rules.max_chars)
        except _RefusedError as refused:
            spent = bool(limit.spent_msat)
            problem = Problem(code=refused.code, message=shown(str(refused)), spent=spent, retryable=False, advice=refused.advice)
        except pages.PageBrokenError as broken:
            problem = self._broken(method, response, broken, bool(limit.spent_msat))
        except (requests.RequestException, ValueError, OSError, urllib3.exceptions.HTTPError) as error:
            has_paid, is_kept = bool(limit.spent_msat), self._used_up is None
            problem = problem_of(error, method=method, has_paid=has_paid, is_kept=is_kept, is_redirected=self._is_redirected)
            response = getattr(error, "response", None) if isinstance(error, RouteweilerError) else None
        if problem is None and rehearsal is None and response is not None and response.status_code == 402:
            problem = Problem(
                code="unpaid_402",
                message="The server asks for a payment, and none was made: its offer isn't one that can be paid here.",
                spent=bool(limit.spent_msat),
                retryable=False,
                advice="Use another source, or tell the user.",
            )
        left_msat, left = what_is_left(self.session, limit)
        asked = without_userinfo(self.url) if isinstance(self.url, str) else ""
        return Fetched(
            method=method,
            url=self._clean(asked if response is None or not response.url else without_userinfo(response.url)),
            status=None if response is None else response.status_code,
            content_type=None if response is None else self._header(response, "Content-Type"),
            page=page,
            payment=getattr(response, "payment", None),
            spent_msat=limit.spent_msat,
            pending_msat=limit.reserved_msat,
            left_msat=left_msat,
            left=left,
            price=None if not self.price_only else _price_of(rehearsal, problem),
            problem=None if problem is None else self._told(problem),
        )

    def _priced(self, method: str, arguments: dict[str, Any]) -> tuple[requests.Response, Rehearsal | None]:
        """Ask for the price. Return the answer, and what a fetch would do about it: None if the server asks for no payment."""
        from ..paywall.call import QuoteReady

        answer = self.session._priced(method, self.url, **arguments)
        if not isinstance(answer, QuoteReady):
            return answer, None
        assert answer.request is not None  # only a pickled one has none
        return answer.response, self.session._payer.checkout.rehearse(answer.request)

    def _arguments(self, method: str) -> dict[str, Any]:
        """Return what is passed to the session's ``request``, besides method and URL. Refuse what an agent may not ask for."""
        if self._cancelled.is_set():
            raise _RefusedError("cancelled", "The fetch was cancelled before it began.", "Fetch again, if it is still wanted.")
        if method not in METHODS:
            raise _RefusedError("bad_method", "The method isn't one that may be used.", f"Use one of {', '.join(METHODS)}.")
        if not isinstance(self.url, str):
            raise _RefusedError("bad_argument", "The URL isn't a text.", "Give one URL, such as https://example.com/page.")
        if not isinstance(self.headers or {}, Mapping):
            raise _RefusedError("bad_argument", "The headers aren't an object of names and values.", "Give an object, or none.")
        if not isinstance(self.price_only, bool):  # "false" is true
            raise _RefusedError("bad_argument", "price_only is neither true nor false.", "Give true or false, or leave it out.")
        headers = {str(name).strip(): str(value) for name, value in (self.headers or {}).items()}
        for name in headers:
            if not is_name(name):  # one with a space, say, may hide the token from the server once that is paid for
                raise _RefusedError("bad_header", "A header's name isn't one.", "Correct it, or leave it out.")
            if name.lower() in _RESERVED_HEADERS:
                raise _RefusedError("bad_header", f"The header {name} isn't yours to set.", "Leave it out.")
        data = None
        if self.body is not None and self.body != "":  # models write an empty text where they have none
            try:
                body = self.body if isinstance(self.body, str) else json.dumps(self.body)
            except (TypeError, ValueError, RecursionError):
                raise _RefusedError("bad_argument", "The body is no text, and no JSON.", "Give a text.") from None
            data = body.encode("utf-8", "replace")
            if "content-type" not in {name.lower() for name in headers}:
                headers["Content-Type"] = "application/json" if _is_json(body) else "text/plain; charset=utf-8"
        hooks = {"response": [*self.session.hooks.get("response", ()), self._look_at]}
        return {"headers": headers, "data": data, "timeout": TIMEOUT_S, "hooks": hooks}

    def _check(self, until_s: float, url: str) -> None:
        """Refuse a URL that is about to be asked, by the agent or by a redirect, if the rules don't allow its server."""
        if time.monotonic() > until_s:
            raise _RefusedError("too_slow", f"No page has come in {REDIRECTS_S_MAX:g} s, only redirects.", "Use another source.")
        if not self.rules.allows(url):
            raise _RefusedError(
                "origin_not_allowed",
                f"{shown(without_userinfos(origin_of(url)))} isn't among the servers that may be asked.",
                "Use one of the servers that are allowed, or tell the user. Only they can allow another.",
            )

    def _look_at(self, response: requests.Response, **kwargs: object) -> None:
        """Look at an answer before `requests` follows it: a hook. Of a redirect's body little is read: it may have no end."""
        from ..paywall.credentialed import secrets_of

        self._secrets = self._secrets.union(*map(secrets_of, (response, *response.history)))
        if response.is_redirect:
            from ..paywall.replay import drain
            from ..protocol.schemes import is_reusable

            drain(response)
            self._is_redirected = True
            payment: Payment | None = getattr(response, "payment", None)
            if payment is not None and not is_reusable(payment.scheme):
                self._used_up = payment

    def _header(self, response: requests.Response, name: str) -> str | None:
        value = response.headers.get(name)
        return None if value is None else shown(self._clean(value))

    def _clean(self, text: str) -> str:
        """Return ``text`` without the secrets of the call: a server may write them into a URL, or into its headers."""
        from ..protocol.token_search import without_tokens

        return without_tokens(text, self._secrets, by_value=True) if self._secrets else text

    def _told(self, problem: Problem) -> Problem:
        """Return ``problem`` without secrets. If a payment for one answer was used up before, the same call would pay anew."""
        problem = replace(problem, message=self._clean(problem.message))
        if self._used_up is None:
            return problem
        advice = _PAYS_ANEW if problem.retryable else f"What was paid was for this one answer. {problem.advice}"
        payment_hash = problem.payment_hash or self._used_up.payment_hash
        return replace(problem, retryable=False, advice=advice, payment_hash=payment_hash)

    @staticmethod
    def _broken(method: str, response: requests.Response | None, broken: Exception, has_paid: bool) -> Problem:
        from ..protocol.schemes import is_reusable

        payment: Payment | None = getattr(response, "payment", None)
        retryable, advice = method in ("GET", "HEAD"), "Fetch again in a minute, once."
        if payment is not None and is_reusable(payment.scheme):
            advice = "Fetch the same URL again: it is paid for, so that costs nothing."
        elif payment is not None:
            retryable, advice = False, _PAYS_ANEW
        if not retryable and method not in ("GET", "HEAD"):
            advice = f"The server has carried out the {method}. {advice}"
        return Problem(
            code="page_broken",
            message=f"The page didn't arrive whole: {shown(str(broken))}",
            spent=has_paid,
            retryable=retryable,
            advice=advice,
            payment_hash=None if payment is None else payment.payment_hash,
        )


def fetch(
    session: Routeweiler,
    rules: Rules,
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    price_only: bool = False,
) -> Fetched:
    """Fetch ``url`` for an agent, and pay for it if the server asks for that and the limits allow it.

    A body without a ``Content-Type`` among ``headers`` is sent as ``application/json`` if it is a JSON object or list, else as
    plain text. With ``price_only``, the request is sent without any token and nothing is paid: the answer has the `Price` in place
    of the page. A server that asks for no payment carries the request out.

    Returns what came; what goes wrong is in its ``problem``, and nothing is raised for it.
    Money: may be paid, at most ``rules.max_sats_per_call`` and what the session's budget allows.
    """
    return Call(session=session, rules=rules, url=url, method=method, headers=headers, body=body, price_only=price_only).run()


async def fetch_async(
    session: Routeweiler,
    rules: Rules,
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    price_only: bool = False,
) -> Fetched:
    """Do as `fetch` in a worker thread of the running loop of asyncio. Limits of the caller's context hold there too.

    If the task is cancelled, the call pays nothing from then on. What became of the money by then is in the log, in a note of the
    CancelledError, and, if any may have moved, in a RuntimeWarning. A payment whose order has left goes on in its thread, and the
    log tells its end; the next fetch of the same URL uses what it bought.
    """
    call = Call(session=session, rules=rules, url=url, method=method, headers=headers, body=body, price_only=price_only)
    return await run_async(call)


async def run_async(call: Call) -> Fetched:
    """Run ``call`` in a worker thread: see `fetch_async`."""
    context = contextvars.copy_context()
    work = asyncio.get_running_loop().run_in_executor(None, context.run, call.run)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError as cancelled:
        _tell_cancelled(call, cancelled)
        raise


def _tell_cancelled(call: Call, cancelled: asyncio.CancelledError) -> None:
    """Cancel ``call``, and say what became of the money. Raises nothing: the cancellation itself must get through."""
    text = call.cancel()
    with contextlib.suppress(Exception):
        log.warning("%s", text)
    if hasattr(cancelled, "add_note"):  # Python 3.11
        cancelled.add_note(text)
    if call.moves_money:
        with contextlib.suppress(Exception):
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _is_json(body: str) -> bool:
    if not body.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def what_is_left(session: Routeweiler, own: block_limit.SpendingLimit | None = None) -> tuple[int | None, str | None]:
    """Return what the limits around a call still allow, in msat, and the same as a text. None where there is none.

    ``own`` is the limit of the call itself, which isn't counted.
    """
    around = [each for each in block_limit.active((session._payer,)) if each is not own]
    msat = [max(0, each.limit_msat - each.spent_msat - each.reserved_msat) for each in around]
    texts = []
    with contextlib.suppress(RouteweilerError, OSError):
        row = session.budget
        if row is not None and (left := row.headroom_minor_units) is not None:
            if row.limits.cap_currency == "sat":
                msat.append(int(left * MSAT_PER_SAT))
            else:
                texts.append(minor_text(left, row.limits.cap_currency))
    if msat:
        texts.insert(0, sats(min(msat)))
    return min(msat, default=None), " and ".join(texts) or None


def _refusal(rehearsal: Rehearsal | None, method: str) -> Problem | None:
    if rehearsal is None or rehearsal.refusal is None:
        return None
    return problem_of(rehearsal.refusal, method=method, has_paid=False)


def _price_of(rehearsal: Rehearsal | None, problem: Problem | None) -> Price | None:
    """Return what a fetch would pay. None if that can't be told."""
    if rehearsal is None:
        return Price(amount_msat=0, max_fee_msat=0, verdict="The server asks for no payment.") if problem is None else None
    if (row := rehearsal.unfinished) is not None:
        amount = sats(row.amount_msat)
        verdict = f"An earlier payment of {amount} isn't finished: a fetch would carry it to its end, and pay it once."
        return Price(amount_msat=row.amount_msat, max_fee_msat=row.max_fee_msat, verdict=verdict)
    if rehearsal.token is not None:
        return Price(amount_msat=0, max_fee_msat=0, verdict="Nothing would be paid: it was paid for before.")
    assert rehearsal.quote is not None
    quote = rehearsal.quote
    if problem is not None:
        verdict = f"It would be refused: {problem.message}"
    else:
        verdict = f"{sats(quote.amount_msat)} would be paid, and at most {sats(quote.max_fee_msat)} for routing."
    return Price(amount_msat=quote.amount_msat, max_fee_msat=quote.max_fee_msat, verdict=verdict)
