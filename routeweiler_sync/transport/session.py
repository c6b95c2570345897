"""`Routeweiler`, the `requests.Session` that pays, `wrap`, and classes that combine it with other kinds of session.

This module only connects: what a session pays with is left to `config.payer`, sending to `adapter` and `foreign_adapters`, a call's
402s to `paywall`, buying to `payments`.
"""

from __future__ import annotations

import contextvars
import functools
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import requests

from .._core.credential_headers import PAYMENT_AUTHORIZATION
from .._core.deadline import PATIENCE_S_MIN, patience
from ..paywall.call import (
    CallContext,
    QuoteReady,
    current,
    for_quote,
    is_for_quote,
    quoting,
    record_unsent,
    remove_hooks,
    url_check,
)
from ..settings import SETTINGS, Default, Unpayable
from .adapter import PaywallAdapter, environment_payer, is_default, made_payer, warn_unpaid
from .environ_settings import settings_of
from .foreign_adapters import send_with_hook, stock
from .response import method_as

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import FrameType

    from typing_extensions import Self, Unpack

    from ..budgets.fmv import FmvProvider
    from ..budgets.schema import BudgetEnvelope
    from ..config.payer import Payer
    from ..funding.lightning import LightningFundingSource
    from ..ledger.ledger import Ledger
    from ..ledger.spending import Spending
    from ..ledger.types import EnvelopeRow, PaymentRow
    from ..payments.block_limit import SpendingLimit
    from ..payments.types import Quote
    from ..policy.dsl import Policy
    from ..settings import Settings
    from ..trace.sink import TraceSink


class Routeweiler(requests.Session):
    """A `requests.Session` that pays for what it fetches: 402 answers with an L402 challenge are paid over Lightning.

    - ``funding``: the wallets that pay, a list of `LightningFundingSource`.
    - ``budget_envelope``: what may be spent. A `BudgetEnvelope`, the id of one that the ledger holds, or None for no limit. The
      default allows 1 000 sat a call, 10 000 sat an hour and 50 000 sat a day.
    - ``policy``: which URLs may be paid, and how much, a `Policy`.
    - ``trace_sink``: where each call writes its trace line, a `TraceSink` or a path.
    - ``ledger``: a path, ``sqlite:///…``, ``postgresql://…`` or a `Ledger`. The default is ``$ROUTEWEILER_LEDGER``, else
      ``ledger.db`` in the user's state folder.
    - ``fmv_provider``: the price of bitcoin, for a budget in another currency than sat. The default asks CoinGecko.
    - ``payment_timeout``: for how many seconds one call waits for the wallet.
    - ``confirm(quote) -> bool``: a function that is asked before each payment.
    - ``unpayable``: with ``"return"``, a 402 that was refused before paying is returned. The default ``"raise"`` raises the reason.
    - ``agent_id``, ``session_id``: names for the trace. The ledger keeps whose payment each is: `Ledger.spending_by_agent`.

    Making a session opens and connects nothing.

    An ``Authorization`` of the caller's own (a header, ``auth=``, netrc) goes out as it is, like a ``Payment-Authorization``. A
    request has only one of each: on a 402 the token takes its place, for that origin only, and the trace line says so
    (``authorizationReplaced``). A server that wants both can't be served. On redirects the caller's own header is stripped as
    `requests` strips Authorization; a token goes only to its issuer. A proxy for plain ``http`` reads what passes through it,
    tokens too, and a 402 of the proxy looks like the server's.

    A paid response has the 402 in ``history`` and its `Payment` in ``response.payment`` (see `payment_of`). Every error of this
    package is a `RouteweilerError`, and so a `requests.RequestException`; its ``spent`` says what became of the money.

    Raises: ValueError for an argument that can't be used.
    Money: none moves here. `send`, and every method that sends, may pay.
    """

    if TYPE_CHECKING:  # checkers find misspelt names by this signature, which can't name what mixins later in the MRO take

        def __init__(self, **settings: Unpack[Settings]) -> None: ...

        # The verbs, whose responses have a ``payment``. `request` and `send` return a `requests.Response` to checkers, because
        # programs override them with that type.

        @method_as(requests.Session.get)
        def get(self) -> Any: ...

        @method_as(requests.Session.options)
        def options(self) -> Any: ...

        @method_as(requests.Session.head)
        def head(self) -> Any: ...

        @method_as(requests.Session.post)
        def post(self) -> Any: ...

        @method_as(requests.Session.put)
        def put(self) -> Any: ...

        @method_as(requests.Session.patch)
        def patch(self) -> Any: ...

        @method_as(requests.Session.delete)
        def delete(self) -> Any: ...

    else:

        def __init__(
            self,
            *,
            funding: Sequence[LightningFundingSource] = (),
            policy: Policy | None = None,
            budget_envelope: BudgetEnvelope | str | Default | None = Default.ENVELOPE,
            trace_sink: TraceSink | str | os.PathLike[str] | None = None,
            fmv_provider: FmvProvider | None = None,
            agent_id: str | None = None,
            session_id: str | None = None,
            ledger: Ledger | str | os.PathLike[str] | None = None,
            payment_timeout: float = 60.0,
            confirm: Callable[[Quote], bool] | None = None,
            unpayable: Unpayable = "raise",
            **kwargs: Any,
        ) -> None:
            given: Any = {name: value for name, value in locals().items() if name in SETTINGS}
            super().__init__(**kwargs)
            self._pays_by(self._payer_for(**given))

    @classmethod
    def _payer_for(cls, **settings: Unpack[Settings]) -> Payer:
        return made_payer(**settings)

    @classmethod
    def _environment_payer_for(cls, **settings: Unpack[Settings]) -> Payer:
        return environment_payer(**settings)

    def _pays_by(self, payer: Payer) -> None:
        self._payer = payer
        for prefix in ("https://", "http://"):
            if is_default(self.adapters.get(prefix)):  # what a class later in the MRO has chosen stays: see `foreign_adapters`
                self.mount(prefix, PaywallAdapter(payer))

    @classmethod
    def wrap(cls, session: requests.Session, **settings: Unpack[Settings]) -> Self:
        """Return a session that pays, with the adapters, headers, cookies, hooks, auth and all other attributes of ``session``.

        The two sessions share these: a header that is set on one is sent by the other too. ``session`` itself goes on without
        paying. The new session is also an instance of the class of ``session``. ``settings`` are Routeweiler's arguments. Without
        ``funding`` the session pays as the environment says, like a `Session`; the other settings that aren't given are the
        environment's too. ``funding=()`` means no wallet.

        Raises: ValueError for an argument that can't be used, or if ``session`` pays already.
        """
        if isinstance(session, Routeweiler):
            from .._core.secret_text import shown  # here, because only an error needs it

            raise ValueError(
                f"{shown(session)} pays already: pass a plain session, or make a new one with the arguments that you want"
            )
        kind = combined_class(cls, type(session))
        wrapped: Any = kind.__new__(kind)
        wrapped.__dict__.update(session.__dict__)
        wrapped._payer = cls._payer_for(**settings) if "funding" in settings else cls._environment_payer_for(**settings)
        return wrapped  # type: ignore[no-any-return]

    if not TYPE_CHECKING:  # checkers see the signature of the installed `requests`

        @functools.wraps(requests.Session.request)
        def request(self, method, url, *args, **kwargs):
            # Like `requests.Session.request`; a call that fails before there is a request to send leaves its trace line too.
            attempt = _Attempt()
            token = _attempt.set(attempt)
            try:
                return super().request(method, url, *args, **kwargs)
            except BaseException as error:
                if not attempt.is_sent:
                    record_unsent(self._payer, method, url, attempt.started_s, error)
                raise
            finally:
                _attempt.reset(token)

        @functools.wraps(requests.Session.prepare_request)
        def prepare_request(self, request):
            try:
                return super().prepare_request(request)
            except BaseException as error:
                # A subclass may call `requests.Session.request` directly, past the method above, as requests-futures does.
                if _in_stock_request(self) and not is_for_quote(request):
                    record_unsent(self._payer, request.method, request.url, time.time(), error)
                raise

        @functools.wraps(requests.Session.merge_environment_settings)
        def merge_environment_settings(self, *args, **kwargs):
            inherited = super().merge_environment_settings
            settings = settings_of(self, inherited, args) if len(args) == 5 and not kwargs else None
            return inherited(*args, **kwargs) if settings is None else settings

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request, and pay for it if the server asks for that. The way of a request:

        1. `requests.Session.send` does its usual work: adapters, hooks, cookies, redirects.
        2. Each hop goes through `PaywallAdapter.send`. A token that fits goes along.
        3. On a 402 the challenge is read. If anything makes a payment useless or forbidden, it is refused now.
        4. A live token of the challenge's scope is offered; without one the checkout buys one: policy, budget, ledger row, payment.
        5. The same request goes out again with ``Authorization: L402 token:preimage``; the 402 goes to ``history``.
        6. The call writes its trace line, however it ended.

        Raises: what `requests` raises, and the errors of `routeweiler_sync.errors`.
        Money: moves in step 4, if a token is bought.
        """
        if (check := url_check.get()) is not None:
            check(request.url or "")
        if request.hooks and request.hooks.get("response") and is_for_quote(request) and not quoting.get():
            reset_token = quoting.set(True)  # a subclass has passed the request of `quote` to another thread
            try:
                return self.send(request, **kwargs)
            finally:
                quoting.reset(reset_token)
        payer, attempt = self._payer, _attempt.get()
        if attempt is not None:
            attempt.is_sent = True
        if isinstance(request, requests.Request):  # `requests` refuses it, in its own words
            try:
                return super().send(request, **kwargs)
            except ValueError as error:
                record_unsent(payer, request.method, request.url, time.time(), error)
                raise
        if payer.idle and not quoting.get():
            response = super().send(request, **kwargs)
            if response.status_code == 402:
                warn_unpaid(response)
            if isinstance(response, requests.Response) and not hasattr(response, "payment"):
                response.payment = None  # type: ignore[attr-defined]
            return response
        call = current.get()
        if call is not None and call.redirecting and call.session is self:
            call.redirecting = False  # from here on, what a user's hook sends is a call of its own
            call.begin_hop(request)
            return send_with_hook(call, self, super().send, request, kwargs)
        with CallContext(payer, request, self) as call:
            try:
                response = send_with_hook(call, self, super().send, request, kwargs)
            except requests.RequestException as error:
                _remove_call_hooks(error.request, error.response)
                raise
            if not hasattr(response, "payment"):
                response.payment = None  # type: ignore[attr-defined]
            call.end_with(response)
            if response.history or response.request is not request or response.next is not None:
                _remove_call_hooks(None, response)
            return response

    def resolve_redirects(
        self, resp: requests.Response, req: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> Generator[requests.Response, None, None]:
        """Do as `requests.Session.resolve_redirects` does, and mark its sends as hops of the call in progress."""
        if (
            resp.status_code not in requests.models.REDIRECT_STATI
            and getattr(type(resp), "is_redirect", ...) is _IS_REDIRECT
            and type(self).get_redirect_target is _GET_REDIRECT_TARGET
            and "get_redirect_target" not in self.__dict__
        ):
            return _no_hops()  # the result of super(), without its cost
        hops = super().resolve_redirects(resp, req, *args, **kwargs)
        call = current.get()
        return _marked(hops, call) if call is not None and call.session is self else hops

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Do as `requests.Session.rebuild_auth` does, and strip a Payment-Authorization where that strips Authorization."""
        super().rebuild_auth(prepared_request, response)
        headers, before, after = prepared_request.headers, response.request.url, prepared_request.url
        if PAYMENT_AUTHORIZATION in (headers or {}) and self.should_strip_auth(before or "", after or ""):
            del headers[PAYMENT_AUTHORIZATION]

    def quote(self, method: str, url: str | bytes, **kwargs: Any) -> Quote | None:
        """Return what ``request(method, url, **kwargs)`` would pay. No policy, limit or ``confirm`` is asked.

        None if the answer is free, if the ledger has a token for it, or if the server asks for nothing that can be paid here (a 402
        without an L402 challenge). The request is sent without any token, up to the first 402 with an L402 challenge; a server that
        doesn't answer 402 carries it out. The call writes its trace line.

        Raises: what `requests` raises; for a challenge that can't be paid, the error that the call would raise.
        Money: none moves.
        """
        answer = self._priced(method, url, **kwargs)
        return answer.quote if isinstance(answer, QuoteReady) else None

    def _priced(self, method: str, url: str | bytes, **kwargs: Any) -> QuoteReady | requests.Response:
        """Return the price of a call as `quote` does, with the 402 and what it asks for; else the answer, which is closed.

        Raises: as `quote`. Money: none moves.
        """
        own_hooks = kwargs.get("hooks") or {}
        listed = own_hooks.get("response") or self.hooks.get("response") or ()
        marked = {**own_hooks, "response": [for_quote, *([listed] if callable(listed) else listed)]}
        reset_token = quoting.set(True)
        try:
            response: Any = self.request(method, url, **{**kwargs, "stream": True, "hooks": marked})
            if not hasattr(response, "close"):  # a Future of requests-futures
                response = response.result()
            response.close()
            return response  # type: ignore[no-any-return]
        except QuoteReady as answer:
            return answer
        finally:
            quoting.reset(reset_token)

    def limit(self, *, sats: int) -> AbstractContextManager[SpendingLimit]:
        """Return a context manager whose block spends at most ``sats``, routing fees included. ``.spent_msat`` is what it spent.

            with session.limit(sats=50) as limit:
                for url in urls:
                    session.get(url)
            print(limit.spent_msat)

        Blocks nest: what is spent inside counts for all of them, so the tightest limit holds. Envelope and policy hold as well. A
        call that would pass the limit is refused before it pays, with BudgetExceededError. A token that was paid for earlier costs
        nothing. A payment whose outcome isn't known yet counts in full. A payment that was ordered before the block counts only if
        the block sends its order again, and that is done only if it fits.

        The limit holds for this session, in the context (`contextvars`) of the block.

        - A thread begins with a context of its own. For it to share the limit, start it with ``contextvars.copy_context().run``.
        - A generator with the block inside is limited only if each of its steps runs in the context of the first. A web framework
          may run each step in another context: then the generator spends without limit. An envelope's limits hold everywhere.
        - A forked child has a copy: child and parent may each spend what is left.

        Raises: ValueError for ``sats`` that can't be a limit; RuntimeError when the same limit is entered a second time.
        """
        from ..payments.block_limit import Block

        return Block(self._payer, sats)

    def recover(self) -> list[PaymentRow]:
        """Ask the node about all unfinished payments in the ledger, book its answers, and return their rows as they are now.

        Each row that this ends gets a trace line, and so does each payment that a crash kept from being reported.

        Raises: LedgerError or PaymentPendingError if the ledger can't be used.
        Money: no payment is started or sent again. Payments that the node has made are booked.
        """
        from ..paywall.recovery_report import report_recovered

        rows: list[PaymentRow] = []
        with patience(max(PATIENCE_S_MIN, self._payer.payment_timeout_s)):
            try:
                for row in self._payer.checkout.recover(self._payer.tallies):
                    rows.append(row)
            finally:
                report_recovered(self._payer, rows)
        return rows

    def __repr__(self) -> str:
        from ..config.described import one_line

        payer = self.__dict__.get("_payer")
        return object.__repr__(self) if payer is None else one_line(type(self).__name__, payer)

    def _repr_html_(self) -> str | None:
        from ..config.described import html

        payer = self.__dict__.get("_payer")
        return None if payer is None else html(type(self).__name__, payer)

    @property
    def spent_msat(self) -> int:
        """What this session's calls and its `recover` have paid so far, routing fees included, in msat. See `spending`."""
        return self._payer.tally.spent_msat

    def spending(self) -> Spending:
        """Return what this session's calls and its `recover` have paid so far, by origin, routing fees included.

        A payment counts for the session whose call, or `recover`, booked the wallet's word that it was paid. That is the call whose
        ``response.payment`` has ``reused=False``, and it also counts if that call then failed. A payment whose outcome isn't known
        yet counts when a later call or `recover` books it, and for that one's session. So each payment counts in one session, and
        all sessions together have spent what the ledger says.

        Calls in other threads count, and those of a `PaywallAdapter` with a wallet of its own that is mounted here. A session that
        `wrap` made, an unpickled one, a deep copy and the session in a forked child begin at 0. A shallow copy (`copy.copy`) shares
        the count, as it shares the adapters. For what all programs have spent, ask ``session.ledger.spending()``.

        Money: none moves.
        """
        return self._payer.tally.spending()

    @property
    def budget(self) -> EnvelopeRow | None:
        """The budget in force: its limits, what is reserved and spent, and what is left. None if the session has no limit.

        It is read from the ledger each time, and has what all programs have spent from it. Nothing is created.

        Raises: EnvelopeNotFoundError for an id that the ledger doesn't have; BudgetError if the ledger's envelope of that id counts
        in another currency; LedgerError.
        """
        return self._payer.budget

    @property
    def ledger(self) -> Ledger:
        """The `Ledger` that this session uses. Nothing is opened or created before it is asked something.

        Raises: LedgerError if there is no place for it.
        """
        return self._payer.ledger

    def close(self) -> None:
        """Close the adapters, the ledger and the trace. All open anew if used again. Connections to nodes stay open."""
        super().close()
        self._payer.close()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_payer": self._payer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for adapter in self.adapters.values():
            if isinstance(adapter, PaywallAdapter) and adapter.payer is None and adapter._lost_payer:  # unpickled
                adapter.payer = self._payer


class _Attempt:
    """A call of `Routeweiler.request`: when it began, and whether a request has come out of it yet."""

    __slots__ = ("is_sent", "started_s")

    def __init__(self) -> None:
        self.started_s = time.time()
        self.is_sent = False


#: The innermost call of `Routeweiler.request` in this context.
_attempt: contextvars.ContextVar[_Attempt | None] = contextvars.ContextVar("routeweiler_sync_attempt", default=None)

_REQUEST_CODE = requests.Session.request.__code__
#: How many callers up `requests.Session.request` is looked for: subclasses may have a prepare_request of their own.
_MAX_PREPARE_FRAMES = 8


def _in_stock_request(session: requests.Session) -> bool:
    """Return whether `requests.Session.request` of ``session`` is preparing a request. Else the program itself prepares one."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_MAX_PREPARE_FRAMES):
        if frame is None:
            return False
        if frame.f_code is _REQUEST_CODE:
            return frame.f_locals.get("self") is session
        frame = frame.f_back
    return False


#: What `requests` tells redirects by; None if another library has replaced it already.
_GET_REDIRECT_TARGET = stock(requests.Session, "get_redirect_target")
_IS_REDIRECT = stock(requests.Response, "is_redirect")


def _no_hops() -> Generator[requests.Response, None, None]:
    yield from ()


def _marked(hops: Iterator[requests.Response], call: CallContext) -> Generator[requests.Response, None, None]:
    while True:
        call.redirecting = True
        try:
            hop = next(hops)
        except StopIteration:
            return
        finally:
            call.redirecting = False
        yield hop


def _remove_call_hooks(request: object, response: requests.Response | None) -> None:
    """Take this package's response hooks off every request that the caller can reach from ``request`` and ``response``."""
    remove_hooks(request)
    if response is not None:
        for each in (response, *response.history):
            remove_hooks(each.request)
            remove_hooks(each.next)


# -- classes combined from a paying session and another kind of session ------------------------------------------------------

_made: dict[tuple[type, type], type[Routeweiler]] = {}


def combined_class(paying: type[Routeweiler], kind: type[requests.Session]) -> type[Routeweiler]:
    """Return a class that inherits from ``paying``, then from ``kind``; ``paying`` itself if it inherits from ``kind`` already.

    The methods of ``kind`` run after those of ``paying`` in the MRO. The class is made once, and its instances can be pickled.
    """
    if issubclass(paying, kind):
        return paying
    made = _made.get((paying, kind))
    if made is None:
        name, parts = f"{paying.__name__}{kind.__name__}", (paying, kind)
        made = type(name, parts, {"__reduce_ex__": _reduce, "__doc__": kind.__doc__, "_parts": parts})
        made = _made.setdefault(parts, made)
    return made


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _blank, self._parts, self.__getstate__()


def _blank(paying: type[Routeweiler], kind: type[requests.Session]) -> Routeweiler:
    cls = combined_class(paying, kind)
    return cls.__new__(cls)


def wrap(session: requests.Session, **settings: Unpack[Settings]) -> Routeweiler:
    """Return a session that pays, with all attributes of ``session``: see `Routeweiler.wrap`."""
    return Routeweiler.wrap(session, **settings)
