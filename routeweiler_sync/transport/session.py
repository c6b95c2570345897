"""Routeweiler: a `requests.Session` that pays. Wiring, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import requests

from ..paywall.call import CallContext, QuoteReady, current, for_quote, is_for_quote, quoting, remove_hooks
from ..settings import SETTINGS, Default, Unpayable
from .adapter import PaywallAdapter, is_default, made_payer, warn_unpaid
from .foreign_adapters import send_with_hook

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Self, Unpack

    from ..budgets.fmv import FmvProvider
    from ..budgets.schema import BudgetEnvelope
    from ..config.payer import Payer
    from ..funding.lightning import LightningFundingSource
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow
    from ..payments.block_limit import SpendingLimit
    from ..payments.types import Quote
    from ..policy.dsl import Policy
    from ..settings import Settings
    from ..trace.sink import TraceSink


class Routeweiler(requests.Session):
    """A `requests.Session` that pays for what it fetches: 402 answers with an L402 challenge are paid over Lightning.

    ``funding``: who pays, `LightningFundingSource` objects. ``budget_envelope``: what may be spent, a `BudgetEnvelope`, the id of
    one that the ledger holds, or None for no limit; by default 1 000 sat a call, 10 000 an hour, 50 000 a day. ``policy``: who may
    be paid. ``trace_sink``: where each call leaves its line. ``ledger``: a path, ``sqlite:///…`` or a `Ledger`; by default
    ``$ROUTEWEILER_LEDGER``, else ``ledger.db`` in the user's state folder. ``payment_timeout``: seconds that one call waits for
    the wallet. ``confirm(quote) -> bool`` is asked before each payment. ``unpayable="return"``: a 402 that was refused before
    paying comes back as the response it is. Nothing is opened or connected here. Raises ValueError for arguments that can't be.

    An ``Authorization`` of the caller's own (a header, ``auth=``, netrc) goes out as it is. There is one such header: on a 402 the
    token goes in its place, to that origin only, and the trace line says so (``authorizationReplaced``). A server that wants both
    can't be served. Redirects strip the caller's own as `requests` does it; tokens go to nobody but their issuer. A proxy of plain
    ``http`` reads what goes through it, tokens too, and a 402 of its own can't be told from the server's.

    A paid response has the 402 in ``history`` and its `Payment` in ``response.payment`` (see `payment_of`). Every error of ours
    is a `routeweiler_sync.RouteweilerError`, and so a `requests.RequestException`; its ``spent`` tells what became of the money.
    """

    if TYPE_CHECKING:  # who misspells a name is told; what mixins that come after ours take is told by no signature

        def __init__(self, **settings: Unpack[Settings]) -> None: ...

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

    def _pays_by(self, payer: Payer) -> None:
        self._payer = payer
        for prefix in ("https://", "http://"):
            if is_default(self.adapters.get(prefix)):  # what a class behind ours has chosen stays: see `net`
                self.mount(prefix, PaywallAdapter(payer))

    @classmethod
    def wrap(cls, session: requests.Session, **settings: Unpack[Settings]) -> Self:
        """A session that pays, with ``session``'s adapters, headers, cookies, hooks, auth and all else that it has.

        They share these: a header that one of the two sets the other sends too. ``session`` itself goes on without paying. What it
        is besides, by its class, the new one is as well. ``settings`` are Routeweiler's arguments. Raises ValueError for arguments
        that can't be, and for a session that pays already.
        """
        if isinstance(session, Routeweiler):
            raise ValueError(f"{session!r} pays already: give a plain one, or make one with the arguments that you want")
        kind = combined_class(cls, type(session))
        wrapped: Any = kind.__new__(kind)
        wrapped.__dict__.update(session.__dict__)
        wrapped._payer = cls._payer_for(**settings)
        return wrapped  # type: ignore[no-any-return]

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request; may move money. The way of a request:

        1. `requests.Session.send` does what it does: adapters, hooks, cookies, redirects.
        2. Each hop goes through `PaywallAdapter.send`. A token that fits goes along.
        3. On a 402 the challenge is read, and what can be known to make a payment useless is refused.
        4. A live token of the challenge's scope is offered; else the checkout buys one: policy, budget, ledger row, payment.
        5. The same request goes out again with ``Authorization: L402 token:preimage``; the 402 goes to ``history``.
        6. A trace line tells of the call, whatever became of it.
        """
        if request.hooks and request.hooks.get("response") and is_for_quote(request) and not quoting.get():
            asked = quoting.set(True)
            try:
                return self.send(request, **kwargs)
            finally:
                quoting.reset(asked)
        payer = self._payer
        if (payer.idle and not quoting.get()) or isinstance(request, requests.Request):
            response = super().send(request, **kwargs)
            if response.status_code == 402:
                warn_unpaid(response)
            return response
        call = current.get()
        if call is not None and call.redirecting and call.session is self:
            call.redirecting = False  # a hook that sends something from in there makes a call of its own
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
        """As `requests.Session.resolve_redirects`; marks the sends that belong to the call under way."""
        if not 300 <= resp.status_code < 400 and type(self).get_redirect_target is _GET_REDIRECT_TARGET:
            return _no_hops()  # as that would find: this way costs less than it does without us
        hops = super().resolve_redirects(resp, req, *args, **kwargs)
        call = current.get()
        return _marked(hops, call) if call is not None and call.session is self else hops

    def quote(self, method: str, url: str | bytes, **kwargs: Any) -> Quote | None:
        """What ``request(method, url, **kwargs)`` would pay; None where the answer is free, the ledger has a token for it, or
        the server wants nothing that could be paid here (a 402 without an L402 challenge).

        Sends the request without any token, as far as the first 402 that an L402 challenge comes with, and pays nothing. (A
        server that lets the request through does what it asks for.) Policy, limits and ``confirm`` aren't asked. Raises what
        `requests` raises, and for a challenge that can't be paid what the call would; nothing is spent. Leaves a trace line.
        """
        given = kwargs.get("hooks") or {}
        hooks = given.get("response") or self.hooks.get("response") or ()
        marked = {**given, "response": [for_quote, *([hooks] if callable(hooks) else hooks)]}
        asked = quoting.set(True)
        try:
            response: Any = self.request(method, url, **{**kwargs, "stream": True, "hooks": marked})
            if not hasattr(response, "close"):  # requests-futures'
                response = response.result()
            response.close()
        except QuoteReady as answer:
            return answer.quote
        finally:
            quoting.reset(asked)
        return None

    def limit(self, *, sats: int) -> AbstractContextManager[SpendingLimit]:
        """A block whose calls spend at most ``sats``, routing fees included; ``.spent_msat`` of what it gives tells how much.

            with session.limit(sats=50) as limit:
                for url in urls:
                    session.get(url)
            print(limit.spent_msat)

        Blocks nest: what is spent inside counts for all of them, and the tightest holds. A call that would pass the limit is
        refused before it pays: BudgetExceededError. A token that was paid for before costs nothing. A payment whose outcome the
        block hasn't heard of stays counted in full; one that was ordered before the block is none of its spends, but isn't sent
        again where it doesn't fit. Envelope and policy hold besides.

        It holds for this session, in the context (`contextvars`) of the block. A thread begins with a context of its own: to
        have it share the limit, start it with ``contextvars.copy_context().run``. A generator with the block inside is limited only
        where each of its steps runs in the context of the first (a web framework may give each step another: it then spends
        unlimited): an envelope's limits hold everywhere. A forked child has a copy: child and parent may each spend what is left.
        One block a limit: entering it again raises RuntimeError.
        ValueError for what can't be a limit.
        """
        from ..payments.block_limit import Block

        return Block(self._payer, sats)

    def recover(self) -> list[PaymentRow]:
        """Ask the node about all unfinished payments of the ledger, book what it says, and return them as they are now.

        Starts no payment. Each row that it ends, and each payment that a crash kept from being told, gets a trace line. Raises
        LedgerError or PaymentPendingError where the ledger can't be used.
        """
        from ..paywall.recovery_report import report_recovered

        rows: list[PaymentRow] = []
        try:
            for row in self._payer.checkout.recover():
                rows.append(row)
        finally:
            report_recovered(self._payer, rows)
        return rows

    def close(self) -> None:
        """Close the adapters, the ledger and the trace; the connection to a node is its client's. All open anew if used again."""
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


_GET_REDIRECT_TARGET = requests.Session.get_redirect_target


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
    """Off the requests that a call leaves behind."""
    remove_hooks(request)
    if response is not None:
        for each in (response, *response.history):
            remove_hooks(each.request)
            remove_hooks(each.next)


# -- classes that are a paying session and another kind of session -----------------------------------------------------------

_made: dict[tuple[type, type], type[Routeweiler]] = {}


def combined_class(paying: type[Routeweiler], kind: type[requests.Session]) -> type[Routeweiler]:
    """A class that is a ``paying`` one and a ``kind`` too; ``paying`` itself where that is one already. Its objects pickle."""
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
    """A session that pays, with all that ``session`` has: see `Routeweiler.wrap`."""
    return Routeweiler.wrap(session, **settings)
