"""The net: pays what comes through adapters that aren't ours.

A program that mounts an adapter of its own, or a library that does, would switch paying off without a word. So for the length of
each hop `Routeweiler` puts one response hook before all others, before a user's ``raise_for_status`` above all. It is a function of
this module, so that requests and responses pickle at any moment, and is taken off again. Net and adapter share the call under way:
who of them has seen to a hop has done so for both, and nothing is paid twice.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import requests

from .adapter import PaywallAdapter, exchange_of, token_along
from .call import Call, current
from .carriers import CredentialedRequest, errors_as_asked
from .pools import connect_anew_if_forked

if TYPE_CHECKING:
    from .tokens import HeldToken


def send_with_net(
    call: Call, session: requests.Session, send: Callable[..., requests.Response], request: requests.PreparedRequest, how: Any
) -> requests.Response:
    """Send one hop of ``call`` by ``send``, which is a session's, with the net in place.

    Whose adapter will be asked isn't known before: libraries for tests put theirs in place inside `requests.Session.send`. So the
    net is always there, and lets pass what one of ours has seen to.
    """
    if isinstance(request, CredentialedRequest):
        request = request.copy()  # without the credential: a request of ours that is sent again is like any other
        call.begin_hop(request)
    outgoing = request
    for each in session.adapters.values():
        if type(each) is not PaywallAdapter:
            outgoing = _with_token(call, session, request)
            break
    hooks: Any = outgoing.hooks
    listed = (hooks or {}).get("response") or ()
    if callable(listed) or net in listed:  # set by hand; a redirect's, copied from the request before
        listed = _rest(hooks)
        hooks = {**hooks, "response": listed}
    outgoing.hooks = {**(hooks or {}), "response": [net, *listed]}
    try:
        if call.carried is None:
            response = send(outgoing, **how)
        else:
            with errors_as_asked(request):
                response = send(outgoing, **how)
    finally:
        outgoing.hooks = hooks
    if response.status_code == 402 and not call.handled:
        # Another thread has sent the same request, and taken the net off too early, or a hook has brought a 402.
        names = ("stream", "timeout", "verify", "cert", "proxies")
        return _seen_to(call, session, response, {name: how[name] for name in names if name in how})
    if call.payment is not None and not hasattr(response, "payment"):  # a recorder above our adapter makes responses of its own
        response.payment = call.payment  # type: ignore[attr-defined]
    return response


def net(response: requests.Response, **how: Any) -> requests.Response | None:
    """The response hook that `Routeweiler.send` puts before all others: sees to what came from an adapter that isn't ours."""
    call = current.get()
    if call is None or call.session is None or call.handled or (response.status_code != 402 and call.carried is None):
        return None
    return _seen_to(call, call.session, response, how)


def _seen_to(call: Call, session: requests.Session, response: requests.Response, how: Mapping[str, Any]) -> requests.Response:
    """What a `PaywallAdapter` would have made of ``response``. ``how`` is what the adapter's send was given."""
    call.handled = True
    adapter = session.get_adapter(url=call.request.url or "")
    exchange = exchange_of(call.payer, call, call.request, functools.partial(adapter.send, **how))
    held, is_guess = call.carried or (None, False)
    begun_s = time.monotonic()
    seen = exchange.go_on(response, held, is_guess=is_guess)
    if seen is not response:  # which the session has told how long it took
        seen.elapsed = response.elapsed + timedelta(seconds=time.monotonic() - begun_s)
    return seen


def _with_token(call: Call, session: requests.Session, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """``request`` with the token that goes along unasked, if there is one, and the adapter doesn't lead to one of ours."""
    adapter = _adapter(session, request)
    if adapter is None or _leads_to_ours(adapter):
        return request
    connect_anew_if_forked(adapter)
    along = token_along(call.payer, request)
    if along is None:
        return request
    call.carried = along
    return _carrying(request, along[0])


def _adapter(session: requests.Session, request: requests.PreparedRequest) -> requests.adapters.BaseAdapter | None:
    try:
        return session.get_adapter(url=request.url or "")
    except requests.exceptions.InvalidSchema:
        return None  # which sending it will say


def _leads_to_ours(adapter: requests.adapters.BaseAdapter) -> bool:
    """Whether ``adapter`` is one of ours, or has one behind it, as a recorder's has: that one attaches what there is to attach.

    A recorder must not see a token: it would write it down.
    """
    if isinstance(adapter, PaywallAdapter):
        return True
    for value in getattr(adapter, "__dict__", {}).values():
        if isinstance(value, PaywallAdapter):
            return True
        if isinstance(value, Mapping) and any(isinstance(each, PaywallAdapter) for each in value.values()):
            return True
    return False


def _carrying(request: requests.PreparedRequest, held: HeldToken) -> CredentialedRequest:
    from .l402.credential import authorization
    from .replay import again

    return CredentialedRequest.made_of(again(request, []), authorization(held.scheme, held.token, held.preimage))


def _rest(hooks: Any) -> list[Any]:
    """The response hooks but the net."""
    listed = (hooks or {}).get("response") or ()
    return [listed] if callable(listed) else [each for each in listed if each is not net]


def unhook(request: Any) -> None:
    """Take the net off a request that was made of one that had it."""
    hooks = getattr(request, "hooks", None)
    listed = hooks.get("response") if isinstance(hooks, dict) else None
    if isinstance(listed, list) and net in listed:
        request.hooks = {**hooks, "response": _rest(hooks)}  # type: ignore[dict-item]
