"""The response hook that sees 402s of foreign adapters, those that aren't `PaywallAdapter`s.

A program or library that mounts an adapter of its own would silently switch paying off. So for the length of each hop
`Routeweiler.send` puts one response hook before all others, above all before a user's ``raise_for_status``, and takes it off again.
The hook is a function of this module, so that requests and responses can be pickled at any moment. Hook and `PaywallAdapter` share
the `CallContext`: whichever handles the hop first sets ``handled``, so nothing is paid twice.

What a 402 means is left to `paywall.handler`, how a `PaywallAdapter` sends to `adapter`.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import requests

from ..paywall.call import CallContext, call_hooks, contexts, current
from ..paywall.credentialed import CredentialedRequest, errors_with_original_request, is_refused, with_credential
from .adapter import PaywallAdapter, concerns_payer, handler_for, token_along, without_repeats
from .fork_pools import connect_anew_if_forked


def stock(kind: type, name: str) -> object:
    """Return the method or property ``name`` of ``kind``, a class of `requests`; None if another library has replaced it."""
    member = vars(kind).get(name)
    return member if getattr(getattr(member, "fget", member), "__module__", None) == kind.__module__ else None


_SEND, _GET_ADAPTER = stock(requests.Session, "send"), stock(requests.Session, "get_adapter")


def send_with_hook(
    call: CallContext,
    session: requests.Session,
    send: Callable[..., requests.Response],
    request: requests.PreparedRequest,
    send_kwargs: Any,
) -> requests.Response:
    """Send one hop of ``call`` by ``send``, the ``send`` of a session, with the response hook in place if it may be needed.

    ``send_kwargs`` are what the session's ``send`` was given. Which adapter will send isn't always known beforehand: libraries for
    tests put their own in place inside `requests.Session.send`. The hook does nothing if a `PaywallAdapter` has handled the hop.

    Money: moves if the answer is a 402 that can be paid.
    """
    if _only_paywall_adapters(session, send):
        return send(request, **send_kwargs)
    if isinstance(request, CredentialedRequest):
        request = request.copy()  # drops the old credential: a request that the caller sends again is treated like a new one
        call.begin_hop(request)
    outgoing = request
    sent_from: contextvars.Context | None = None
    if not all(type(each) is PaywallAdapter for each in session.adapters.values()):
        sent_from = contextvars.copy_context()  # for a foreign adapter that sends in a thread of its own
        outgoing = _with_token(call, session, request)
    hooks: Any = outgoing.hooks
    listed = (hooks or {}).get("response") or ()
    if callable(listed) or handle_foreign_response in listed:  # a single function; or the hook, copied by a redirect
        listed = _other_hooks(hooks)
        hooks = {**hooks, "response": listed}
    outgoing.hooks = {**(hooks or {}), "response": [handle_foreign_response, *listed]}
    if sent_from is not None and contexts.setdefault(id(outgoing), sent_from) is not sent_from:
        contexts[id(outgoing)] = None  # several threads send this request at once: none may get another's context
    try:
        if call.carried is None:
            response = send(outgoing, **send_kwargs)
        else:
            with errors_with_original_request(request):
                response = send(outgoing, **send_kwargs)
    finally:
        outgoing.hooks = hooks
        if sent_from is not None:
            contexts.pop(id(outgoing), None)
    if response.status_code == 402 and not call.handled and not is_refused(response):
        # The hook hasn't seen this 402: another thread sent the same request and took the hook off too early, or a user's hook
        # has put the 402 in place of another response.
        call.request = _answered_by(response, call.request)
        return _handle_402(call, session, response, _adapter_kwargs(session, call.request, send_kwargs))
    if call.payment is not None and not hasattr(response, "payment"):  # a recorder in front of the adapter made a new response
        response.payment = call.payment  # type: ignore[attr-defined]
    return response


def _only_paywall_adapters(session: requests.Session, send: Callable[..., requests.Response]) -> bool:
    """Return whether ``send`` passes every request directly to a `PaywallAdapter`: nobody has put anything in between."""
    if getattr(send, "__func__", None) is not _SEND or type(session).get_adapter is not _GET_ADAPTER:
        return False
    for each in session.adapters.values():
        if type(each) is not PaywallAdapter:
            return False
    return "get_adapter" not in session.__dict__


def handle_foreign_response(response: requests.Response, **adapter_kwargs: Any) -> requests.Response | None:
    """Handle a response of a foreign adapter: the hook that `Routeweiler.send` puts before all others.

    Return the response to put in its place, or None to leave it. ``adapter_kwargs`` are what the adapter's ``send`` was given.

    Money: moves if ``response`` is a 402 that can be paid.
    """
    call = current.get()
    if call is None or call.session is None or call.handled:
        return None
    if call.carried is None and not concerns_payer(call.payer, call.request, response.status_code):
        return None
    if is_refused(response):
        return None
    return _handle_402(call, call.session, response, adapter_kwargs)


def _handle_402(
    call: CallContext, session: requests.Session, response: requests.Response, adapter_kwargs: Mapping[str, Any]
) -> requests.Response:
    """Return what a `PaywallAdapter` would have returned for ``response``: a 402, or an answer to a token.

    ``adapter_kwargs`` are what the adapter's ``send`` was given.
    """
    call.handled = True
    adapter = session.get_adapter(url=call.request.url or "")

    def send(request: requests.PreparedRequest) -> requests.Response:
        return without_repeats(adapter, request).send(request, **adapter_kwargs)

    handler = handler_for(call, call.request, send, adapter_kwargs)
    token, is_guess = call.carried or (None, False)
    begun_s = time.monotonic()
    handled = handler.handle_response(response, token, is_guess=is_guess)
    if handled is not response:  # `requests` has set `elapsed` on the first response only
        handled.elapsed = response.elapsed + timedelta(seconds=time.monotonic() - begun_s)
    return handled


def _with_token(call: CallContext, session: requests.Session, request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return a copy of ``request`` with the token that fits it.

    Return ``request`` itself if no token fits, or if the adapter leads to a `PaywallAdapter`, which adds the token.
    """
    adapter = _adapter(session, request)
    if adapter is None or _has_paywall_adapter(adapter):
        return request
    connect_anew_if_forked(adapter)
    along = token_along(call.payer, request)
    if along is None:
        return request
    call.carried = along
    return with_credential(request, along[0], [])


def _answered_by(response: requests.Response, sent: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return the request that ``response`` answers. It may differ from ``sent``: a user's hook may have sent one of its own.

    The user's request may have gone to another server, and no token of one server may be looked up for, or sent to, another.
    """
    answered: object = response.request
    if isinstance(answered, CredentialedRequest):
        return answered.copy()
    return answered if isinstance(answered, requests.PreparedRequest) else sent


def _adapter_kwargs(session: requests.Session, request: requests.PreparedRequest, send_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that `requests.Session.send` would pass to the adapter's ``send``, were it given ``send_kwargs``."""
    defaults: dict[str, Any] = {"stream": session.stream, "timeout": None, "verify": session.verify, "cert": session.cert}
    if "proxies" not in send_kwargs:
        defaults["proxies"] = requests.utils.resolve_proxies(request, session.proxies, session.trust_env)
    return defaults | {name: send_kwargs[name] for name in (*defaults, "proxies") if name in send_kwargs}


def _adapter(session: requests.Session, request: requests.PreparedRequest) -> requests.adapters.BaseAdapter | None:
    try:
        return session.get_adapter(url=request.url or "")
    except requests.exceptions.InvalidSchema:
        return None  # the caller gets this error when the request is sent


def _has_paywall_adapter(adapter: requests.adapters.BaseAdapter) -> bool:
    """Return whether ``adapter`` is a `PaywallAdapter` or sends through one, as a recorder may.

    Then the token is left to that `PaywallAdapter`: a recorder in front of it must not see a token, since it writes requests down.
    """
    if isinstance(adapter, PaywallAdapter):
        return True
    for value in getattr(adapter, "__dict__", {}).values():
        if isinstance(value, PaywallAdapter):
            return True
        if isinstance(value, dict) and any(isinstance(each, PaywallAdapter) for each in value.values()):
            return True
    return False


def _other_hooks(hooks: Any) -> list[Any]:
    """Return the response hooks in ``hooks`` without `handle_foreign_response`."""
    listed = (hooks or {}).get("response") or ()
    return [listed] if callable(listed) else [each for each in listed if each is not handle_foreign_response]


call_hooks.append(handle_foreign_response)
