"""`PaywallAdapter`, the HTTP adapter that pays: it sends a request, with a token if one fits.

What a 402 means, and sending again, is left to `paywall.handler`. That module is imported on the first 402 or with the first token,
so that traffic without a 402 costs next to nothing more than with `requests`. 402s of other adapters are left to
`foreign_adapters`, connections in a forked child to `fork_pools`.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from .._core.credential_headers import authorizes
from .._core.log import log
from .._core.preload import HalfImportedError, prepare_to_pay
from .._core.urls import leads_to_one_server, without_userinfo
from .._core.user_line import callers_level
from ..errors import RouteweilerError
from ..paywall.call import CallContext, contexts, current, in_thread, quoting
from ..paywall.credentialed import CredentialedRequest
from ..settings import SETTINGS
from .fork_pools import connect_anew
from .pools import keep_unlocked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.payer import Payer
    from ..payments.token import Token
    from ..paywall.handler import PaywallHandler, Send
    from ..settings import AdapterSettings, Settings

Adapter = TypeVar("Adapter", bound=requests.adapters.BaseAdapter)

#: Methods that may be sent twice without harm. A guessed token goes along with these only.
GUESSED_METHODS = ("GET", "HEAD", "OPTIONS")


class PaywallAdapter(HTTPAdapter):
    """An HTTPAdapter that pays. Mount it where paid pages are, on any session. `Routeweiler` mounts it for both its prefixes.

        session = requests.Session()
        session.mount("https://example.com/", PaywallAdapter(funding=[...], max_retries=3))

    It takes the arguments of HTTPAdapter and those of Routeweiler, all by name. Without any of Routeweiler's arguments it pays with
    the settings of the Routeweiler that it is mounted on, and on any other session as the environment says. On a session that isn't
    a Routeweiler each request counts as a call of its own, also one that follows a redirect.

    Raises: ValueError for an argument that can't be used.
    Money: moves if a response is a 402 with an L402 challenge and the budget allows the payment.
    """

    payer: Payer | None = None
    #: Whether `payer` was made from this adapter's own arguments. Then the adapter closes and pickles it.
    _owns_payer = False
    #: Whether this is a copy or pickle of an adapter that had the payer of its `Routeweiler`. Unpickling the whole session sets
    #: that payer here again.
    _lost_payer = False
    #: The id of the process in which the connections were opened.
    _pid: int | None = None

    def __init__(self, payer: Payer | None = None, **kwargs: Unpack[AdapterSettings]) -> None:
        remaining: dict[str, Any] = {**kwargs}  # of HTTPAdapter, and of classes after this one in the MRO
        settings: Any = {name: remaining.pop(name) for name in SETTINGS & remaining.keys()}
        super().__init__(**remaining)
        self._pid = os.getpid()
        if settings:
            self.payer, self._owns_payer = made_payer(**settings), True
        else:
            self.payer = payer

    def __setattr__(self, name: str, value: Any) -> None:
        # On each assignment, not only in __init__: libraries set max_retries on adapters that exist already, subclasses and
        # unpickling make their own poolmanager.
        if name == "poolmanager":
            keep_unlocked(value)
        super().__setattr__(name, _without_402(value) if name == "max_retries" else value)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """Return the pools for what goes through ``proxy``, as `HTTPAdapter` does."""
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        keep_unlocked(manager)
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,  # a dict in some versions of requests' types, a Mapping in others
    ) -> requests.Response:
        """Send ``request``. If the answer is a 402 that can be paid, pay and send again. Return the last answer.

        Raises: what `requests` raises, and the errors of `routeweiler_sync.errors`.
        Money: moves if the answer is a 402 with an L402 challenge and the budget allows the payment.
        """
        if self._pid != os.getpid():
            connect_anew(self)
            self._pid = os.getpid()
        call = current.get()
        if call is None and contexts and not in_thread.get():
            context = contexts.get(id(request))
            if context is not None:  # a foreign adapter in front sends in a thread of its own, which lacks the caller's context
                send_kwargs = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
                return context.copy().run(self._send_in_thread, request, send_kwargs)
        payer = self.payer
        if call is not None:
            call.handled = True  # the response hook leaves this hop alone
            payer = payer or call.payer
        # The environment's payer doesn't stand in for a lost one: it may allow what the lost payer's budget or policy forbade.
        if payer is None and not self._lost_payer:
            payer = environment_payer()
        pays = payer is not None and (not payer.idle or quoting.get())
        if payer is not None and pays and (call is None or call.payer is not payer):  # a plain session, or another payer
            with CallContext(payer, request, around=call) as own:
                own.response = self.send(request, stream, timeout, verify, cert, proxies)
                return own.response
        if isinstance(request, CredentialedRequest):
            request = request.copy()  # drops the old credential: a request that the caller sends again is treated like a new one
        along = token_along(payer, request) if payer is not None and pays else None
        if along is None:
            # Arguments go by name, as `requests` passes them: a library that replaces HTTPAdapter.send may rely on that.
            response = super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies)
            if not (pays and payer is not None and concerns_payer(payer, request, response.status_code)):
                response.payment = None  # type: ignore[attr-defined]
                if response.status_code == 402:
                    warn_unpaid(response)
                return response
        assert call is not None  # since `pays`, a call was found or begun above
        send_kwargs = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
        handler = handler_for(call, request, functools.partial(self._send_hop, **send_kwargs), send_kwargs)
        return handler.handle_response(response) if along is None else handler.send_with_token(along[0], is_guess=along[1])

    def _send_hop(self, request: requests.PreparedRequest, **send_kwargs: Any) -> requests.Response:
        return super(PaywallAdapter, without_repeats(self, request)).send(request, **send_kwargs)

    def _send_in_thread(self, request: requests.PreparedRequest, send_kwargs: dict[str, Any]) -> requests.Response:
        current.set(None)  # makes it a call of its own: the caller's call may end first, with a timeout
        in_thread.set(True)
        return self.send(request, **send_kwargs)

    def close(self) -> None:
        """Close the connections; also ledger and trace, if the adapter has settings of its own. All open anew if used again."""
        super().close()
        if self._owns_payer and self.payer is not None:
            self.payer.close()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if self._owns_payer:
            state["payer"], state["_owns_payer"] = self.payer, True
        elif self.payer is not None or self._lost_payer:
            state["_lost_payer"] = True
        return state


def is_default(adapter: object) -> bool:
    """Return whether ``adapter`` is like those with which each session of `requests` begins, so that nobody has chosen it."""
    return type(adapter) is HTTPAdapter and _configuration(adapter) == _default_configuration()


def _configuration(adapter: HTTPAdapter) -> dict[str, Any]:
    found = {name: value for name, value in vars(adapter).items() if name not in ("poolmanager", "proxy_manager")}
    retries = found.get("max_retries")
    return {**found, "max_retries": (type(retries), getattr(retries, "__dict__", retries))}


@functools.cache
def _default_configuration() -> dict[str, Any]:
    return _configuration(HTTPAdapter())


def _without_402(retries: Any) -> Any:
    """Return ``retries`` with 402 taken off its list: urllib3 would repeat the request until it gives up without a response."""
    listed = getattr(retries, "status_forcelist", None)  # ``retries`` may also be a number
    return retries.new(status_forcelist=set(listed) - {402}) if listed and 402 in listed else retries


def without_repeats(adapter: Adapter, request: requests.PreparedRequest) -> Adapter:
    """Return ``adapter``, or one like it that doesn't repeat ``request`` by itself, if that carries a charge.

    urllib3 repeats a request after a lost connection, or after an answer of certain statuses, if an adapter's ``max_retries`` says
    so. A charge opens one request: the server would refuse the second, although it may have used the charge for the first.
    """
    if not (isinstance(adapter, HTTPAdapter) and isinstance(request, CredentialedRequest) and request.single_use):
        return adapter
    once: Adapter = object.__new__(type(adapter))  # not a copy: it has the same connections
    once.__dict__.update(adapter.__dict__)
    once.__dict__["max_retries"] = Retry(0, read=False)
    return once


def token_along(payer: Payer, request: requests.PreparedRequest) -> tuple[Token, bool] | None:
    """Return the token to send with ``request`` before the server asks for one, and whether it is a guess.

    None if ``request`` goes out as it is: no token fits, it has a credential of the caller's, only a quote is wanted, or it
    may be for another server than its URL's.
    """
    along = payer.token_cache.token_for_url(request.url or "")
    if along is None:
        return None
    if authorizes(request.headers) or quoting.get():
        return None
    if not leads_to_one_server(request.url or "", request.headers):
        return None
    if along[1]:  # a guess may be refused, and then the request is sent twice: that must do no harm
        from ..paywall.replay import is_in_memory

        if (request.method or "").upper() not in GUESSED_METHODS or not is_in_memory(request):
            return None
    return along


def concerns_payer(payer: Payer, request: requests.PreparedRequest, status: int) -> bool:
    """Return whether an answer of HTTP status ``status`` to ``request``, which went out without a token, may be answered with one.

    That is a 402, and a 401 where there are tokens of the origin that the path may want.
    """
    if status != 401:
        return status == 402
    if authorizes(request.headers) or quoting.get():
        return False
    return payer.token_cache.has_others(request.url or "")


def handler_for(call: CallContext, request: requests.PreparedRequest, send: Send, sends_with: Mapping[str, Any]) -> PaywallHandler:
    """Return a handler for ``request`` that sends its further requests by ``send``. Imports what only paying needs.

    ``sends_with`` are the arguments that ``send`` gives the adapter. Its timeout bounds the waits for the ledger too.
    """
    try:
        prepare_to_pay()

        from ..paywall.handler import PaywallHandler
    except HalfImportedError as error:
        raise RouteweilerError(
            f"{request.method} {without_userinfo(request.url or '')} can't be paid for in a signal handler, finalizer or callback "
            f"that has interrupted the first payment of the process: {error}.",
            advice="The interrupted call goes on undisturbed. Call again when it has ended.",
        ) from None
    except (OSError, ImportError) as error:  # the process may open no more files, or an installation is being replaced
        what = f"What paying needs can't be imported ({type(error).__name__}: {error})."
        raise RouteweilerError(what, advice="Free some of the process's open files, or repair the installation.") from error

    call.bound_patience(sends_with.get("timeout"))
    return PaywallHandler(call.payer, call, request, send, sends_with.get("proxies"))


# -- who pays -------------------------------------------------------------------------------------------------------------


def made_payer(**settings: Unpack[Settings]) -> Payer:
    """Return a new payer for ``settings``, the arguments of Routeweiler.

    Raises: ValueError for an argument that can't be used.
    """
    from .._core.preload import prepare_session

    prepare_session()
    from ..config.payer import Payer

    return Payer(**settings)


def environment_payer(**settings: Unpack[Settings]) -> Payer:
    """Return a payer as the environment says, but for ``settings``, the arguments of Routeweiler.

    Raises: ValueError for an argument that can't be used.
    """
    from ..config.environment import payer

    return payer(**settings)


def warn_unpaid(response: requests.Response) -> None:
    """Warn, once in a process, that ``response`` asks for a payment and no node is configured. Other 402s pass silently."""
    from ..config.environment import no_node
    from ..protocol.schemes import mentions_scheme

    if not _warned and mentions_scheme(response.headers.get("WWW-Authenticate", "")):
        _warned.append(True)
        text = no_node(without_userinfo(response.url or ""))
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=callers_level())
        except Warning:  # where warnings are errors, it is in the log: the answer is the caller's
            log.warning("%s", text)


_warned: list[bool] = []
