"""The call that is under way, over all its redirects and paid retries; what it has to account for is in `account`.

Light, since each call makes one, also where nothing is ever paid.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import requests

from .._core.forks import in_child
from ..payments.report_claims import claimed, release_all

if TYPE_CHECKING:
    from types import TracebackType

    from ..config.payer import Payer
    from ..payments.token import Token
    from ..payments.types import Payment, Quote
    from .call_record import CallRecord

#: The call that is under way in this context. Set by `Routeweiler.send`, found by the adapter.
current: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("routeweiler_sync_call", default=None)

#: Set inside `Routeweiler.quote`: no token goes along, and nothing is paid.
quoting: contextvars.ContextVar[bool] = contextvars.ContextVar("routeweiler_sync_quoting", default=False)

#: By a request's id, the context that it is being sent from, through an adapter that isn't ours: such a one may have a thread of
#: its own, which knows neither `quoting` nor limits. None: several send it at once.
contexts: dict[int, contextvars.Context | None] = {}
in_child(contexts.clear)
#: Set where such a thread has taken the context for its own.
in_thread: contextvars.ContextVar[bool] = contextvars.ContextVar("routeweiler_sync_in_thread", default=False)

#: The net (see `net`, which puts it here): it must stay on no request.
call_hooks: list[Callable[..., object]] = []


def remove_hooks(request: Any) -> None:
    """Take the net off a request that was made of one that had it."""
    _take_off(request, call_hooks)


def for_quote(response: requests.Response, **kwargs: object) -> None:
    """A response hook that does nothing: it marks the requests of `Routeweiler.quote`, for a class that sends them in a thread."""


def is_for_quote(request: requests.PreparedRequest) -> bool:
    """Whether ``request`` bears the mark `for_quote`, which is taken off it."""
    return _take_off(request, [for_quote])


def _take_off(request: Any, ours: list[Callable[..., object]]) -> bool:
    """Take these response hooks off ``request``. Whether it had any. The caller's dict of hooks is left as it is."""
    hooks = getattr(request, "hooks", None)
    listed = hooks.get("response") if isinstance(hooks, dict) else None
    if not isinstance(listed, list) or not any(each in ours for each in listed):
        return False
    request.hooks = {**hooks, "response": [each for each in listed if each not in ours]}  # type: ignore[dict-item]
    return True


class QuoteReady(Exception):  # noqa: N818  (no error: the way out of `requests` with the answer)
    """Inside `Routeweiler.quote`: a 402 was met. Its ``quote``, None where the ledger has a token for it."""

    def __init__(self, quote: Quote | None, response: requests.Response) -> None:
        super().__init__(quote, response)  # it may come out of another process, pickled
        self.quote, self.response = quote, response


def payment_of(response: requests.Response) -> Payment | None:
    """The payment that a response was bought with, or the token that it used; None for free traffic. No money moves."""
    payment: Payment | None = getattr(response, "payment", None)
    return payment


class CallContext:
    """A call of ``payer``'s: who sends it, and how far its present hop is. Current inside its ``with``, accounted for at its end.

    ``session``: the one that sends it; None for an adapter on a session that isn't ours, where each request is a call.
    ``around``: the call that it is made in by an adapter with a payer of its own.
    """

    #: What came of it; set before its end.
    response: requests.Response | None = None
    #: Set while `requests` follows a redirect: the next send is the call's next hop.
    redirecting = False
    #: Whether a `PaywallAdapter` has seen to the present hop, or the net behind other adapters has.
    handled = False
    #: The token that was sent along through an adapter that isn't ours, and whether it is a guess.
    carried: tuple[Token, bool] | None = None
    #: What the present hop was paid for with.
    payment: Payment | None = None
    _record: CallRecord | None = None

    def __init__(
        self,
        payer: Payer,
        request: requests.PreparedRequest,
        session: requests.Session | None = None,
        *,
        around: CallContext | None = None,
    ) -> None:
        self.payer = payer
        #: Those whose `limit` blocks hold for it.
        self.payers: tuple[Payer, ...] = (payer,) if around is None else (payer, *around.payers)
        self.session = session
        #: The present hop's, as the caller or a redirect made it.
        self.request = request
        self.method, self.url = request.method or "", request.url or ""
        self.started_s = time.time()

    def begin_hop(self, request: requests.PreparedRequest) -> None:
        """``request`` goes out next."""
        self.request, self.handled, self.carried, self.payment = request, False, None, None

    @property
    def record(self) -> CallRecord:
        """What there is to account for."""
        if self._record is None:
            from .call_record import CallRecord

            self._record = CallRecord(payer=self.payer, method=self.method, url=self.url, started_s=self.started_s)
        return self._record

    def end_with(self, response: requests.Response) -> None:
        """``response`` is what the caller gets."""
        self.response = response
        if self._record is not None:
            self._record.complete_history(response)

    def __enter__(self) -> CallContext:
        self._token = current.set(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        current.reset(self._token)
        if error is not None and isinstance(error, QuoteReady):
            self.response, error = error.response, None
        if error is not None or self._record is not None or self.payer.trace_sink is not None:
            self.record.finish(self.response, error)
        if claimed and current.get() is None:
            release_all()
