"""The tools that ``routeweiler-sync mcp`` offers: fetch, quote, budget, payments, and the resource spending. No MCP in here.

A tool takes arguments that were checked against its schema, and returns a JSON object. All limits come from `Options`, which the
user gives when the server starts. No argument of a tool raises a limit, so neither can a page that an agent has read. One fetch,
and what an agent is told of it, is left to `agents.fetching`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import requests

from .._core.money import MAX_MINOR_UNITS, MSAT_PER_SAT, sats
from .._core.urls import origin_of, without_userinfo
from .._version import VERSION
from ..agents.fetching import MAX_CHARS, Call, Fetched, Rules, what_is_left
from ..agents.folder import Folder, FolderError
from ..agents.pages import Page, read
from ..agents.problems import Problem, problem_of
from ..config import env_settings, environment
from ..errors import FundingError, NoFundingForRailError, PaymentDeclinedError, RouteweilerError
from ..payments import block_limit
from ..transport.session import Routeweiler
from .budget import envelope_json
from .outcome import printable, text_of
from .payment_words import as_json as payment_as_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..ledger.spending import Spending
    from ..payments.types import Quote

#: Seconds to wait for the outcome of a payment.
PAYMENT_TIMEOUT_S = 60.0
#: How many payments are listed unless the agent asks for another number, and at most.
PAYMENTS_LISTED, PAYMENTS_LISTED_MAX = 20, 200
#: How many servers the resource ``spending`` names.
ORIGINS_MAX = 100
#: How much of an invoice's description a question shows. The server wrote it.
_DESCRIPTION_CHARS_MAX = 200


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user allows, as the command's options say. ``None`` is no limit of this kind; the budget holds besides.

    Raises: ValueError for an origin that can't be one.
    """

    max_sats: int | None = None
    max_sats_per_call: int | None = None
    origins: Sequence[str] = ()
    confirm: bool = False
    folder: str | None = None
    max_chars: int = MAX_CHARS
    agent_id: str | None = None

    def __post_init__(self) -> None:
        self.rules()

    def rules(self, max_sats: int | None = None) -> Rules:
        """Return the rules of one call. ``max_sats`` is the agent's own limit, which can only be tighter."""
        limits = [min(each, MAX_MINOR_UNITS) for each in (self.max_sats_per_call, max_sats) if each is not None]
        return Rules(
            max_sats_per_call=min(limits, default=None), max_chars=self.max_chars, allow_origins=tuple(self.origins) or None
        )


@dataclass(frozen=True, kw_only=True)
class Approval:
    """What the user has agreed to: one payment for ``url`` of at most ``most_msat``, routing included."""

    url: str
    most_msat: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the user must agree to before the call can go on.

    ``spent_msat`` is what the call has paid until then. ``approvals`` are earlier ones that it hasn't used.
    """

    text: str
    approval: Approval
    spent_msat: int = 0
    approvals: tuple[Approval, ...] = ()


@dataclass(kw_only=True)
class _Asking:
    """What the user has agreed to for the fetch in progress, and the quote that wasn't agreed to."""

    approvals: list[Approval] = field(default_factory=list)
    unapproved: Quote | None = None


_asking: contextvars.ContextVar[_Asking | None] = contextvars.ContextVar("routeweiler_sync_mcp_asking", default=None)


class _Session(Routeweiler):
    """A session that several agents share: it keeps no cookies, and sends no password of the user's netrc."""

    def __init__(self, **settings: Any) -> None:
        from http.cookiejar import DefaultCookiePolicy

        super().__init__(**settings)
        self.auth = _unauthenticated
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers["User-Agent"] = f"routeweiler-sync/{VERSION}"

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        before = prepared_request.headers.get("Authorization")
        super().rebuild_auth(prepared_request, response)
        after = prepared_request.headers.get("Authorization")
        if after is not None and after != before:  # from netrc
            del prepared_request.headers["Authorization"]


def _unauthenticated(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave ``request`` as it is. As the session's auth, it keeps `requests` from looking into the user's netrc."""
    return request


class Tools:
    """The tools, on one session. Thread-safe: each tool may be called in several threads at once.

    Raises: ValueError for an option, or a variable of the environment, that can't be used.
    Money: only `fetch` can move any.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = None if options.folder is None else Folder(options.folder)
        self._no_wallet: str | None = None
        funding = []
        try:
            funding = environment.node()
        except FundingError as error:
            self._no_wallet = text_of(error)
        self.session = _Session(
            funding=funding,
            budget_envelope=env_settings.budget(),
            trace_sink=env_settings.trace_sink(),
            confirm=_is_approved if options.confirm else None,
            payment_timeout=PAYMENT_TIMEOUT_S,
            agent_id=options.agent_id or env_settings.agent_id(),
        )
        self._limit: block_limit.SpendingLimit | None = None
        if options.max_sats is not None:
            most_msat = min(options.max_sats, MAX_MINOR_UNITS) * MSAT_PER_SAT
            self._limit = block_limit.SpendingLimit(self.session._payer, most_msat, option=f"--max-sats {options.max_sats}")
            block_limit.of_process.append(self._limit)

    def close(self) -> None:
        """Close the session, and lift the limit of the process."""
        if self._limit is not None:
            block_limit.of_process.remove(self._limit)
            self._limit = None
        self.session.close()

    # The tools

    def fetch(
        self,
        arguments: Mapping[str, Any],
        approvals: Sequence[Approval] = (),
        *,
        spent_msat: int = 0,
        can_ask: bool = False,
        started: Callable[[Call], object] = lambda call: None,
    ) -> dict[str, Any] | Question:
        """Fetch a URL, and pay if the server asks for that and all limits allow it. Return the result, or what to ask the user.

        ``approvals`` are payments that the user has agreed to already, ``spent_msat`` is what the call has paid before it was asked
        about the last of them. ``can_ask`` says whether the user can be asked. ``started`` gets the call before it begins, so that
        it can be cancelled.
        """
        name, path = arguments.get("save_as"), None
        asking = _Asking(approvals=list(approvals))
        token = _asking.set(asking)
        try:
            with contextlib.ExitStack() as stack:
                page = read
                if name is not None:
                    if self.folder is None:
                        return self._refused(arguments, "No folder is allowed, so no file can be written.", "Leave out save_as.")
                    try:
                        stack.enter_context(self.folder.taken(name))
                    except FolderError as problem:
                        return self._refused(arguments, f"{problem}.", "Choose a name that can be used.")
                    path, page = self.folder.path / name, partial(self._saved, name)
                call = self._call(arguments, read=page, spent_before_msat=spent_msat)
                started(call)
                found = call.run()
        finally:
            _asking.reset(token)
        if found.problem is not None and found.problem.code == PaymentDeclinedError.code and asking.unapproved is not None:
            if can_ask:
                return _question(asking.unapproved, found.spent_msat, tuple(asking.approvals))
            found = replace(found, problem=_unasked(found.problem, asking.unapproved))
        is_saved = path is not None and found.page is not None and (found.status or 0) < 400
        return {**self._explained(found).as_json(), "file": str(path) if is_saved else None}

    def declined(self, arguments: Mapping[str, Any], spent_msat: int = 0) -> dict[str, Any]:
        """Return the result of a ``fetch`` whose payment the user has declined, after it had paid ``spent_msat``."""
        error = PaymentDeclinedError("The user declined the payment.", advice="Do without this page.")
        problem = problem_of(error, method="", has_paid=bool(spent_msat))
        return self._unfetched(arguments, problem, spent_msat)

    def _refused(self, arguments: Mapping[str, Any], message: str, advice: str) -> dict[str, Any]:
        """Return the result of a ``fetch`` whose arguments can't be used. Nothing was sent."""
        return self._unfetched(arguments, _bad_argument(message, advice))

    def _unfetched(self, arguments: Mapping[str, Any], problem: Problem, spent_msat: int = 0) -> dict[str, Any]:
        left_msat, left = what_is_left(self.session)
        url = without_userinfo(str(arguments["url"]))
        found = Fetched(method="", url=url, spent_msat=spent_msat, left_msat=left_msat, left=left, problem=problem)
        return {**found.as_json(), "file": None}

    def quote(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ``fetch`` with the same arguments would pay, and whether all limits allow it. Pays nothing."""
        return {**self._explained(self._call(arguments, price_only=True).run()).as_json(), "file": None}

    def budget(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the limits in force and what is left of them."""
        error = None
        try:
            row = self.session.budget
        except RouteweilerError as problem:
            row, error = None, problem_of(problem, method="", has_paid=False).as_json()
        return {
            "budget": None if row is None else envelope_json(row),
            "maxSats": self.options.max_sats,
            "maxSatsPerCall": self.options.max_sats_per_call,
            "allowedOrigins": list(self.options.origins) or None,
            "confirm": self.options.confirm,
            "spentMsat": self.session.spent_msat,
            "leftMsat": self._left_msat(),
            "error": error,
        }

    def payments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the newest payments in the ledger, of all programs that share it."""
        # 20.0 is a whole number by JSON Schema.
        limit, rows, error = int(arguments.get("limit", PAYMENTS_LISTED)), list[Any](), None
        try:
            origin = arguments.get("origin")
            rows = list(islice(self._rows(None if origin is None else origin_of(origin), arguments), limit + 1))
        except ValueError:
            error = _bad_argument("That is no origin.", "Give scheme and host, such as https://example.com.").as_json()
        except RouteweilerError as problem:
            error = problem_of(problem, method="", has_paid=False).as_json()
        return {"payments": [payment_as_json(row) for row in rows[:limit]], "more": len(rows) > limit, "error": error}

    def spending(self) -> dict[str, Any]:
        """Return what was spent: by this server since it began, and by all programs that share its ledger.

        Raises: LedgerError if the ledger can't be read.
        """
        ledger = self.session.ledger
        total = ledger.spending() if ledger.exists() else None
        return {
            "server": {**_sum(self.session.spending()), "maxSats": self.options.max_sats, "leftMsat": self._left_msat()},
            "ledger": {"spentMsat": 0, "feesMsat": 0, "payments": 0, "byOrigin": []} if total is None else _sum(total),
        }

    # Their parts

    def _call(self, arguments: Mapping[str, Any], **more: Any) -> Call:
        body, most = arguments.get("body"), arguments.get("max_sats")
        return Call(
            session=self.session,
            rules=self.options.rules(None if most is None else int(most)),
            url=arguments["url"],
            method=arguments.get("method") or ("GET" if body is None else "POST"),
            headers=arguments.get("headers"),
            body=body,
            **more,
        )

    def _saved(self, name: str, response: requests.Response, max_chars: int) -> Page:
        """Write the page to the file ``name``; the page of an HTTP error is read as usual."""
        assert self.folder is not None
        return self.folder.write(name, response) if response.status_code < 400 else read(response, max_chars)

    def _explained(self, found: Fetched) -> Fetched:
        """Return ``found``; where there is no wallet to pay with, its problem says why."""
        problem = found.problem
        if problem is None or problem.code != NoFundingForRailError.code or self._no_wallet is None:
            return found
        message = f"The server asks for payment, and there is no wallet to pay with: {self._no_wallet}"
        return replace(found, problem=replace(problem, message=printable(message)))

    def _rows(self, origin: str | None, arguments: Mapping[str, Any]) -> Iterable[Any]:
        ledger = self.session.ledger
        if not ledger.exists():
            return ()
        rows = ledger.payments(origin=origin, newest_first=True)
        return (row for row in rows if row.unfinished) if arguments.get("unfinished") else rows

    def _left_msat(self) -> int | None:
        """Return what --max-sats leaves at this moment; None without it."""
        limit = self._limit
        return None if limit is None else max(0, limit.limit_msat - limit.spent_msat - limit.reserved_msat)


def _is_approved(quote: Quote) -> bool:
    """Return whether the user has agreed to ``quote`` already. Each agreement serves once."""
    asking = _asking.get()
    if asking is None:
        return False
    for each in asking.approvals:
        if each.url == quote.url and quote.amount_msat + quote.max_fee_msat <= each.most_msat:
            asking.approvals.remove(each)
            return True
    asking.unapproved = quote
    return False


def _question(quote: Quote, spent_msat: int, approvals: tuple[Approval, ...]) -> Question:
    """Return what to ask the user about ``quote``. The description is the server's: it is marked as such, and cut."""
    most_msat = quote.amount_msat + quote.max_fee_msat
    said = printable(quote.description.strip())[:_DESCRIPTION_CHARS_MAX]
    url = printable(without_userinfo(quote.url))
    text = f"Pay {sats(quote.amount_msat)}, and at most {sats(quote.max_fee_msat)} for routing, for {url}?"
    if spent_msat:
        text += f" This call has paid {sats(spent_msat)} already."
    if said:
        text += f" The server says that it is for: “{said}”"
    approval = Approval(url=quote.url, most_msat=most_msat)
    return Question(text=text, approval=approval, spent_msat=spent_msat, approvals=approvals)


def _unasked(problem: Problem, quote: Quote) -> Problem:
    """Return the problem of a payment that nobody could be asked about."""
    return replace(
        problem,
        message=f"The page costs {sats(quote.amount_msat)}. This server asks the user before each payment, and can't ask here.",
        advice="Tell the user: it needs a client with elicitation, or a server without --confirm.",
    )


def _bad_argument(message: str, advice: str) -> Problem:
    return Problem(code="bad_argument", message=message, spent=False, retryable=False, advice=advice)


def _sum(spending: Spending) -> dict[str, Any]:
    return {
        "spentMsat": spending.total_msat,
        "feesMsat": spending.fees_msat,
        "payments": spending.payments,
        "byOrigin": [
            {"origin": printable(origin), "spentMsat": each.total_msat, "payments": each.payments}
            for origin, each in islice(spending.by_origin.items(), ORIGINS_MAX)
        ],
    }
