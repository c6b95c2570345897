"""The net: pays what comes through adapters that aren't ours.

A program that mounts an adapter of its own, or a library that does, would switch paying off without a word. So for the length of
each hop `Routeweiler` puts one response hook before all others, before a user's ``raise_for_status`` above all. It is a function of
this module, so that requests and responses pickle at any moment, and is taken off again. Net and adapter share the call under way:
who of them has seen to a hop has done so for both, and nothing is paid twice.
"""

from __future__ import annotations

import contextvars
import functools
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import requests

from ..paywall.call import CallContext, call_hooks, contexts, current
from ..paywall.credentialed import CredentialedRequest, errors_with_original_request, is_refused, with_credential
from .adapter import PaywallAdapter, handler_for, token_along
from .fork_pools import connect_anew_if_forked


def _stock(name: str) -> object:
    """That method of `requests.Session`; None where another library has replaced it already."""
    found = vars(requests.Session).get(name)
    return found if getattr(found, "__module__", None) == "requests.sessions" else None


_SEND, _GET_ADAPTER = _stock("send"), _stock("get_adapter")


def send_with_hook(
    call: CallContext,
    session: requests.Session,
    send: Callable[..., requests.Response],
    request: requests.PreparedRequest,
    how: Any,
) -> requests.Response:
    """Send one hop of ``call`` by ``send``, which is a session's, with the net in place where it may be needed.

    Whose adapter will be asked isn't always known before: libraries for tests put theirs in place inside `requests.Session.send`.
    The net lets pass what one of ours has seen to.
    """
    if _is_ours_throughout(session, send):
        return send(request, **how)
    if isinstance(request, CredentialedRequest):
        request = request.copy()  # without the credential: a request of ours that is sent again is like any other
        call.begin_hop(request)
    outgoing = request
    sent_from: contextvars.Context | None = None
    if not all(type(each) is PaywallAdapter for each in session.adapters.values()):
        sent_from = contextvars.copy_context()
        outgoing = _with_token(call, session, request)
    hooks: Any = outgoing.hooks
    listed = (hooks or {}).get("response") or ()
    if callable(listed) or handle_foreign_response in listed:  # set by hand; a redirect's, copied from the request before
        listed = _rest(hooks)
        hooks = {**hooks, "response": listed}
    outgoing.hooks = {**(hooks or {}), "response": [handle_foreign_response, *listed]}
    if sent_from is not None and contexts.setdefault(id(outgoing), sent_from) is not sent_from:
        contexts[id(outgoing)] = None
    try:
        if call.carried is None:
            response = send(outgoing, **how)
        else:
            with errors_with_original_request(request):
                response = send(outgoing, **how)
    finally:
        outgoing.hooks = hooks
        if sent_from is not None:
            contexts.pop(id(outgoing), None)
    if response.status_code == 402 and not call.handled and not is_refused(response):
        # Another thread has sent the same request, and taken the net off too early, or a hook has brought a 402.
        call.request = _answered_by(response, call.request)
        return _handle_402(call, session, response, _how(session, call.request, how))
    if call.payment is not None and not hasattr(response, "payment"):  # a recorder above our adapter makes responses of its own
        response.payment = call.payment  # type: ignore[attr-defined]
    return response


def _is_ours_throughout(session: requests.Session, send: Callable[..., requests.Response]) -> bool:
    """Whether what ``send`` sends goes through an adapter of ours, whatever the request: nobody has put anything in between."""
    if getattr(send, "__func__", None) is not _SEND or type(session).get_adapter is not _GET_ADAPTER:
        return False
    for each in session.adapters.values():
        if type(each) is not PaywallAdapter:
            return False
    return "get_adapter" not in session.__dict__


def handle_foreign_response(response: requests.Response, **how: Any) -> requests.Response | None:
    """The response hook that `Routeweiler.send` puts before all others: sees to what came from an adapter that isn't ours."""
    call = current.get()
    if call is None or call.session is None or call.handled or (response.status_code != 402 and call.carried is None):
        return None
    if is_refused(response):
        return None
    return _handle_402(call, call.session, response, how)


def _handle_402(
    call: CallContext, session: requests.Session, response: requests.Response, how: Mapping[str, Any]
) -> requests.Response:
    """What a `PaywallAdapter` would have made of ``response``. ``how`` is what the adapter's send was given."""
    call.handled = True
    adapter = session.get_adapter(url=call.request.url or "")
    handler = handler_for(call.payer, call, call.request, functools.partial(adapter.send, **how))
    token, is_guess = call.carried or (None, False)
    begun_s = time.monotonic()
    seen = handler.handle_response(response, token, is_guess=is_guess)
    if seen is not response:  # which the session has told how long it took
        seen.elapsed = response.elapsed + timedelta(seconds=time.monotonic() - begun_s)
    return seen


def _with_token(call: CallContext, session: requests.Session, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """``request`` with the token that goes along unasked, if there is one, and the adapter doesn't lead to one of ours."""
    adapter = _adapter(session, request)
    if adapter is None or _leads_to_ours(adapter):
        return request
    connect_anew_if_forked(adapter)
    along = token_along(call.payer, request)
    if along is None:
        return request
    call.carried = along
    return with_credential(request, along[0], [])


def _answered_by(response: requests.Response, sent: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request that ``response`` is the answer to: a hook may have asked something else, or somebody else, than ``sent`` does.

    A token of the one must not be looked for, or used, at the other.
    """
    asked: object = response.request
    if isinstance(asked, CredentialedRequest):
        return asked.copy()
    return asked if isinstance(asked, requests.PreparedRequest) else sent


def _how(session: requests.Session, request: requests.PreparedRequest, how: Mapping[str, Any]) -> dict[str, Any]:
    """What `requests.Session.send` makes of its arguments for the adapter's send."""
    own: dict[str, Any] = {"stream": session.stream, "timeout": None, "verify": session.verify, "cert": session.cert}
    if "proxies" not in how:
        own["proxies"] = requests.utils.resolve_proxies(request, session.proxies, session.trust_env)
    return own | {name: how[name] for name in (*own, "proxies") if name in how}


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
        if isinstance(value, dict) and any(isinstance(each, PaywallAdapter) for each in value.values()):
            return True
    return False


def _rest(hooks: Any) -> list[Any]:
    """The response hooks but the net."""
    listed = (hooks or {}).get("response") or ()
    return [listed] if callable(listed) else [each for each in listed if each is not handle_foreign_response]


call_hooks.append(handle_foreign_response)
