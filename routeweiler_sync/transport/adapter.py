"""PaywallAdapter: sends a request, and has what a paywall answers seen to.

What that takes is in `exchange`, imported when a paywall is met: free traffic costs next to nothing. (For adapters that aren't ours
there is `net`.)
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter

from .._core.preload import prepare_to_pay
from ..paywall.call import CallContext, contexts, current, in_thread, quoting
from ..paywall.credentialed import CredentialedRequest
from ..settings import SETTINGS
from .fork_pools import connect_anew

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.payer import Payer
    from ..payments.token import Token
    from ..paywall.handler import PaywallHandler, Send
    from ..settings import AdapterSettings, Settings

#: Methods that may be sent twice without a second thought: only with these does a guessed token go along.
GUESSED_METHODS = ("GET", "HEAD", "OPTIONS")


class PaywallAdapter(HTTPAdapter):
    """An HTTPAdapter that pays: mount it where paid pages are, on any session. `Routeweiler` mounts it on both its prefixes.

        session = requests.Session()
        session.mount("https://example.com/", PaywallAdapter(funding=[...], max_retries=3))

    Takes HTTPAdapter's arguments, and Routeweiler's, all by name. Without any of the latter it pays for the Routeweiler that it is
    mounted on, and on another session as the environment says. Money moves where a response is a 402 with an L402 challenge and
    the budget allows it. On a session that isn't a Routeweiler each request is a call of its own, also one that follows a redirect.
    Raises ValueError for arguments that can't be.
    """

    payer: Payer | None = None
    _owns_payer = False
    #: Whether it was a `Routeweiler`'s, and its pickle or copy isn't mounted on one.
    _lost_payer = False
    #: The process that its connections are of.
    _pid: int | None = None

    def __init__(self, payer: Payer | None = None, **kwargs: Unpack[AdapterSettings]) -> None:
        others: dict[str, Any] = {**kwargs}  # HTTPAdapter's, and those of classes that come after ours
        settings: Any = {name: others.pop(name) for name in SETTINGS & others.keys()}
        super().__init__(**others)
        self._pid = os.getpid()
        if settings:
            self.payer, self._owns_payer = made_payer(**settings), True
        else:
            self.payer = payer

    def __setattr__(self, name: str, value: Any) -> None:
        # Whenever it is set: libraries write it into adapters that are there.
        super().__setattr__(name, _without_402(value) if name == "max_retries" else value)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,  # a dict to some versions of requests' types, a Mapping to others
    ) -> requests.Response:
        """Send, pay if need be, send again. Raises what `requests` raises, and the errors of `routeweiler_sync.errors`."""
        if self._pid != os.getpid():
            connect_anew(self)
            self._pid = os.getpid()
        call = current.get()
        if call is None and contexts and not in_thread.get():
            context = contexts.get(id(request))
            if context is not None:  # in a thread of an adapter in between
                how = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
                return context.copy().run(self._sent_in_thread, request, how)
        payer = self.payer
        if call is not None:
            call.handled = True
            payer = payer or call.payer
        if payer is None and not self._lost_payer:
            payer = _environment_payer()
        # A lost payer's place isn't the environment's, which may allow what the budget or policy of that one forbade.
        pays = payer is not None and (not payer.idle or quoting.get())
        if payer is not None and pays and (call is None or call.payer is not payer):  # a session not ours, or that pays otherwise
            with CallContext(payer, request, around=call) as own:
                own.response = self.send(request, stream, timeout, verify, cert, proxies)
                return own.response
        if isinstance(request, CredentialedRequest):
            request = request.copy()  # without the credential: a request of ours that is sent again is like any other
        along = token_along(payer, request) if payer is not None and pays else None
        if along is None:
            # By name, as `requests` gives them: a library that puts its own in place of HTTPAdapter's send may rely on it.
            response = super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies)
            if response.status_code != 402 or not pays:
                response.payment = None  # type: ignore[attr-defined]
                if response.status_code == 402:
                    warn_unpaid(response)
                return response
        assert call is not None  # here somebody pays
        how = {"stream": stream, "timeout": timeout, "verify": verify, "cert": cert, "proxies": proxies}
        handler = handler_for(call.payer, call, request, functools.partial(super().send, **how))
        return handler.handle_response(response) if along is None else handler.send_with_token(along[0], is_guess=along[1])

    def _sent_in_thread(self, request: requests.PreparedRequest, how: dict[str, Any]) -> requests.Response:
        current.set(None)  # a call of its own: the other may end first, with a timeout
        in_thread.set(True)
        return self.send(request, **how)

    def close(self) -> None:
        """As HTTPAdapter.close; and the ledger and the trace, where it was given its own. All open anew if used again."""
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
    """Whether ``adapter`` is what each session of `requests` begins with: one that nobody has chosen."""
    return type(adapter) is HTTPAdapter and _look(adapter) == _default_look()


def _look(adapter: HTTPAdapter) -> dict[str, Any]:
    look = {name: value for name, value in vars(adapter).items() if name not in ("poolmanager", "proxy_manager")}
    retries = look.get("max_retries")
    return {**look, "max_retries": (type(retries), getattr(retries, "__dict__", retries))}


@functools.cache
def _default_look() -> dict[str, Any]:
    return _look(HTTPAdapter())


def _without_402(retries: Any) -> Any:
    """``retries`` with 402 taken off its list: urllib3 would ask for it again until it gives up without a response."""
    listed = getattr(retries, "status_forcelist", None)  # a number does for urllib3, too
    return retries.new(status_forcelist=set(listed) - {402}) if listed and 402 in listed else retries


def token_along(payer: Payer, request: requests.PreparedRequest) -> tuple[Token, bool] | None:
    """The token that goes along with ``request`` unasked, and whether it is a guess; None: it goes out as it is."""
    along = payer.token_cache.token_for_url(request.url or "")
    if along is None:
        return None
    if "Authorization" in (request.headers or {}) or quoting.get():
        return None  # a caller's own Authorization goes out as it is
    if along[1]:  # may it be sent a second time just because a guessed token wasn't welcome?
        from ..paywall.replay import is_in_memory

        if (request.method or "").upper() not in GUESSED_METHODS or not is_in_memory(request):
            return None
    return along


def handler_for(payer: Payer, call: CallContext, request: requests.PreparedRequest, send: Send) -> PaywallHandler:
    """The exchange about ``request``, whose further requests go out by ``send``."""
    prepare_to_pay()
    from ..paywall.handler import PaywallHandler

    return PaywallHandler(payer, call, request, send)


# Who pays


def made_payer(**settings: Unpack[Settings]) -> Payer:
    """Who pays by ``settings``, Routeweiler's arguments. ValueError."""
    from .._core.preload import prepare_session

    prepare_session()
    from ..config.payer import Payer

    return Payer(**settings)


def _environment_payer() -> Payer:
    from ..config.environment import payer

    return payer()


def warn_unpaid(response: requests.Response) -> None:
    """Tell once that there is something to be paid for, and nothing to pay with."""
    from ..config.environment import NO_NODE
    from ..protocol.schemes import mentions_scheme

    if not _warned and mentions_scheme(response.headers.get("WWW-Authenticate", "")):
        _warned.append(True)
        warnings.warn(NO_NODE.format(url=response.url), RuntimeWarning, stacklevel=_callers_level())


_warned: list[bool] = []
_PACKAGE = __name__.partition(".")[0]


def _callers_level() -> int:
    """The ``stacklevel``, seen from who asks, of the program's own line: the first that is neither ours nor `requests`'."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("requests", _PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
