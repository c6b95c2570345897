"""The call in progress: a request of the program's, with all its redirects and paid retries.

What a call has to account for (tokens used, payments made) is left to `call_record`. This module is light, because every call makes
a `CallContext`, also where nothing is ever paid.
"""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import requests

from .._core.deadline import PATIENCE_S_MIN, Patience, patience
from .._core.forks import in_child
from ..payments.first_use import end_first_uses, first_uses
from ..payments.report_claims import claimed, release_all
from ..payments.run_bill import note_page
from ..payments.tally import count_call

if TYPE_CHECKING:
    from types import TracebackType

    from ..config.payer import Payer
    from ..payments.tally import Tally
    from ..payments.token import Token
    from ..payments.types import Payment, Quote, TokenRequest
    from .call_record import CallRecord

#: The call in progress in this context. Set by `Routeweiler.send`, read by the adapter.
current: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("routeweiler_sync_call", default=None)

#: True inside `Routeweiler.quote`: no token is sent, and nothing is paid.
quoting: contextvars.ContextVar[bool] = contextvars.ContextVar("routeweiler_sync_quoting", default=False)

#: Called with the URL of each request before it is sent, also of redirects. It raises if that may not be asked. None: any may.
url_check: contextvars.ContextVar[Callable[[str], None] | None] = contextvars.ContextVar("routeweiler_sync_url_check", default=None)

#: The context of each request that is being sent through a foreign adapter, by the request's id. Such an adapter may send in a
#: thread of its own, where neither `quoting` nor the limits are set. None if several threads send the same request at once.
contexts: dict[int, contextvars.Context | None] = {}
in_child(contexts.clear)
#: True in such a thread once it runs in the request's context.
in_thread: contextvars.ContextVar[bool] = contextvars.ContextVar("routeweiler_sync_in_thread", default=False)

#: The most characters that the trace keeps of a method or URL that no request could be made of.
MAX_GIVEN_CHARS = 2_000

#: The response hooks that `transport.foreign_adapters` puts on requests. That module lists them here. They are put on a request for
#: one hop and must not stay on it.
call_hooks: list[Callable[..., object]] = []


def remove_hooks(request: Any) -> None:
    """Remove the hooks in `call_hooks` from ``request``, which is a copy of a request that has them."""
    _remove(request, call_hooks)


def for_quote(response: requests.Response, **kwargs: object) -> None:
    """Do nothing. As a response hook, this function marks the requests of `Routeweiler.quote`.

    The mark reaches a thread in which a subclass of the session sends the request. `quoting`, a context variable, doesn't.
    """


def is_for_quote(request: requests.PreparedRequest) -> bool:
    """Return whether ``request`` has the mark `for_quote`, and remove the mark."""
    return _remove(request, [for_quote])


def _remove(request: Any, unwanted: list[Callable[..., object]]) -> bool:
    """Remove the response hooks ``unwanted`` from ``request``. Return whether it had any of them.

    The request gets a new dict of hooks: the old one may be the program's own.
    """
    hooks = getattr(request, "hooks", None)
    listed = hooks.get("response") if isinstance(hooks, dict) else None
    if not listed or not isinstance(listed, list) or not any(each in unwanted for each in listed):
        return False
    request.hooks = {**hooks, "response": [each for each in listed if each not in unwanted]}  # type: ignore[dict-item]
    return True


class QuoteReady(Exception):  # noqa: N818  (no error: it carries the quote out of `requests`)
    """Raised inside `Routeweiler.quote` when a 402 arrives. ``quote`` is None if the ledger has a token for the request."""

    def __init__(self, quote: Quote | None, response: requests.Response) -> None:
        super().__init__(quote, response)  # both as arguments, so that it pickles: it may come out of another process
        self.quote, self.response = quote, response
        #: What the 402 asks for. None if this was pickled.
        self.request: TokenRequest | None = None


def payment_of(response: requests.Response) -> Payment | None:
    """Return the payment behind ``response``, with ``reused`` set if an earlier call made it. None for free traffic.

    Money: none moves.
    """
    payment: Payment | None = getattr(response, "payment", None)
    return payment


def mark_recorded(error: BaseException, started_s: float) -> bool:
    """Mark ``error`` as one that has its trace line. Return False if it got it in the call that began at ``started_s`` already.

    A program may raise one and the same error in many calls.
    """
    recorded_s = getattr(error, "_routeweiler_recorded_s", None)
    if isinstance(recorded_s, float) and recorded_s >= started_s:
        return False
    with suppress(AttributeError, TypeError):  # a class with __slots__, or with a __setattr__ of its own
        error._routeweiler_recorded_s = time.time()  # type: ignore[attr-defined]
    return True


def record_unsent(payer: Payer, method: object, url: object, started_s: float, error: BaseException) -> None:
    """Write the trace line of a call that failed with ``error`` before its request was made, unless it has one already.

    ``method`` and ``url`` are what the caller gave, which may be anything. An idle payer writes no trace. Raises nothing.
    """
    if payer.idle or payer.trace_sink is None or quoting.get() or not mark_recorded(error, started_s):
        return
    from .call_record import CallRecord

    CallRecord(payer=payer, method=_text_of(method).upper(), url=_text_of(url), started_s=started_s).finish(None, error)


def _text_of(given: object) -> str:
    """Return ``given`` as a text of at most `MAX_GIVEN_CHARS` characters."""
    try:
        text = given.decode("utf-8", "replace") if isinstance(given, bytes) else "" if given is None else str(given)
    except Exception:  # noqa: BLE001 - the caller's object may do anything in its __str__
        text = f"<{type(given).__name__}>"
    return text[:MAX_GIVEN_CHARS]


def _longest_s(timeout: object) -> float:
    """Return the longest wait that a ``timeout`` for `requests` allows, in seconds: a number, a pair, a Timeout of urllib3."""
    if timeout is None:
        return math.inf
    parts = timeout if isinstance(timeout, tuple) else (timeout, getattr(timeout, "total", None), getattr(timeout, "_read", None))
    return max((float(each) for each in parts if isinstance(each, (int, float)) and not isinstance(each, bool)), default=math.inf)


class CallContext:
    """A call that ``payer`` pays for, and the state of its present hop.

    It is a context manager: inside the ``with`` it is the `current` call, and at the end its record is finished.

    ``session`` sends the call. It is None for a `PaywallAdapter` on a foreign session, where each request is a call.
    ``around`` is the call inside which this one is made, by an adapter that has a payer of its own.
    """

    #: The response that the caller gets. Set before the call ends.
    response: requests.Response | None = None
    #: True while `requests` follows a redirect: the next send is the next hop of this call.
    redirecting = False
    #: Whether the present hop is handled already, by a `PaywallAdapter` or by the response hook of `transport.foreign_adapters`.
    #: Whichever handles the hop first sets this, so that nothing is paid twice.
    handled = False
    #: The token that was sent with the present hop through a foreign adapter, and whether it is a guess.
    carried: tuple[Token, bool] | None = None
    #: The payment of the token that the present hop used.
    payment: Payment | None = None
    #: How long the call may still wait for its ledger. None before it has to.
    patience: Patience | None = None
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
        #: The payers whose `limit` blocks count this call's payments.
        self.payers: tuple[Payer, ...] = (payer,) if around is None else (payer, *around.payers)
        self.session = session
        #: The request of the present hop, as the caller or a redirect made it.
        self.request = request
        self.method, self.url = request.method or "", request.url or ""
        self.started_s = time.time()

    def bound_patience(self, timeout: object) -> None:
        """Let the call wait for its ledger no longer than for its wallet, nor than its ``timeout`` for `requests` says."""
        if self.patience is None:
            self.patience = Patience(max(PATIENCE_S_MIN, min(self.payer.payment_timeout_s, _longest_s(timeout))))

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """What counts the spending of this call, each once."""
        return tuple(dict.fromkeys(tally for payer in self.payers for tally in payer.tallies))

    def begin_hop(self, request: requests.PreparedRequest) -> None:
        """Begin the next hop, which sends ``request``."""
        self.request, self.handled, self.carried, self.payment = request, False, None, None

    @property
    def record(self) -> CallRecord:
        """What the call has to account for. Made when it is first asked for."""
        if self._record is None:
            from .call_record import CallRecord

            self._record = CallRecord(payer=self.payer, method=self.method, url=self.url, started_s=self.started_s)
        return self._record

    def end_with(self, response: requests.Response) -> None:
        """Note that the caller gets ``response``, and complete its history."""
        self.response = response
        if self._record is not None:
            self._record.complete_history(response)

    def _trace_free_call(self) -> bool:
        """Write the event of this call, which used no token and met no challenge. Return False if `record` must write it."""
        sink, response = self.payer.trace_sink, self.response
        if sink is None:
            return True
        emit = getattr(type(sink), "emit_free_call", None)  # a program's own sink may not have it
        if response is None or emit is None:
            return False
        return emit(sink, self.payer, self.method, self.url, response.status_code, self.started_s) is True

    def __enter__(self) -> CallContext:
        self._token = current.set(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        current.reset(self._token)
        if error is not None:
            mark_recorded(error, self.started_s)
        if error is not None and isinstance(error, QuoteReady):
            self.response, error = error.response, None
        if error is not None or self._record is not None or not self._trace_free_call():
            with patience(self.patience):
                self.record.finish(self.response, error)
        if self._record is not None and self._record.uses:
            if error is None and self.response is not None and self.response.status_code < 400:
                note_page(use.token.payment_hash for use in self._record.uses if not use.is_guess)
            count_call(self.tallies, (use.token.origin for use in self._record.uses))
        if claimed and current.get() is None:
            release_all()
        if first_uses and current.get() is None:
            end_first_uses()
