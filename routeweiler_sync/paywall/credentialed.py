"""Requests and responses that hold a token, and what pickles and caches may see of them.

`CredentialedRequest` carries a paid token, `PaywallResponse` is a 402 whose challenge offers one. Both drop the token when pickled.
A cache writes responses and their ``history`` to disk as they are: the functions below remove tokens from what it writes.
`with_credential` is the only place where a token gets onto a request, and it checks the origin. When a token is sent is left to
`handler` and `transport`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from ..payments.token import Token


class CredentialedRequest(requests.PreparedRequest):
    """A request that carries a token. Its pickles and copies don't."""

    @classmethod
    def made_of(cls, request: requests.PreparedRequest, credential: str) -> CredentialedRequest:
        """Return ``request`` with ``credential`` as its Authorization header.

        The result shares headers and body with ``request``, so ``request`` mustn't be used any more.
        """
        made = cls()
        made.__dict__.update(request.__dict__)
        made.headers["Authorization"] = credential
        return made

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["headers"] = self.headers.copy() if self.headers is not None else None
        if state["headers"] is not None:
            state["headers"].pop("Authorization", None)
        return state

    def copy(self) -> requests.PreparedRequest:
        """Return a plain copy without the credential. When the copy is sent, a token is attached anew."""
        plain = super().copy()
        if plain.headers is not None:
            plain.headers.pop("Authorization", None)
        return plain


def with_credential(request: requests.PreparedRequest, token: Token, answers: list[requests.Response]) -> CredentialedRequest:
    """Return a copy of ``request`` that carries ``token``.

    ``answers`` are the answers to the request so far: the copy gets their cookies.

    Raises: ChallengeMismatchError if the token was issued by another origin than the request's.
    """
    from .._core.urls import origin_at
    from ..errors import ChallengeMismatchError
    from ..protocol.schemes import authorization
    from .replay import again

    origin = origin_at(request.url or "")
    if token.origin != origin:  # can't happen by any known path: this is the last check before a token could reach another server
        raise ChallengeMismatchError(
            f"A token of {token.origin} was about to be sent to {origin}, and wasn't sent.",
            advice="This is a bug in routeweiler_sync: report it.",
        )
    return CredentialedRequest.made_of(again(request, answers), authorization(token.scheme, token.token, token.preimage))


class PaywallResponse(requests.Response):
    """A 402 whose challenge may have been paid. Its pickle drops the tokens of the challenge: with a preimage, they open pages."""

    def __getstate__(self) -> dict[str, Any]:
        from ..protocol.schemes import redact

        state: dict[str, Any] = dict(super().__getstate__())
        headers = state["headers"].copy()
        if "WWW-Authenticate" in headers:
            headers["WWW-Authenticate"] = redact(headers["WWW-Authenticate"])
        return {**state, "headers": headers}


def droppable(response: requests.Response) -> requests.Response:
    """Return ``response``, changed to a `PaywallResponse` so that its pickle holds no token.

    A response of another class than `requests.Response` stays as it is.
    """
    if type(response) is requests.Response:
        response.__class__ = PaywallResponse
    return response


def mark_refused(response: requests.Response) -> requests.Response:
    """Return ``response``, a 402 that the caller gets unpaid, with the mark that no other layer may pay for it either."""
    response._refused = True  # type: ignore[attr-defined]
    return response


def is_refused(response: requests.Response) -> bool:
    """Return whether another layer has refused to pay for ``response``, by `mark_refused`."""
    return getattr(response, "_refused", False) is True


def scrub_redirect(response: requests.Response) -> requests.Response:
    """Remove the token from the request of ``response`` if that is a redirect. Return ``response``.

    A redirect goes into ``response.history``, which a caching session writes to disk.
    """
    return restore_authorization(response, None) if response.is_redirect else response


def drop_credential_if_varied(response: requests.Response) -> requests.Response:
    """Remove the token from the request of ``response`` if the page varies by Authorization. Return ``response``.

    A caching adapter writes the request headers that a page varies by to its cache.
    """
    if "authorization" in response.headers.get("Vary", "").lower() and _has_token(response.request):
        response.request.headers.pop("Authorization")
    return response


def restore_authorization(response: requests.Response, own: str | bytes | None) -> requests.Response:
    """Replace a token in the request of ``response`` by ``own``, the caller's Authorization header. Return ``response``.

    With ``own`` None the header is removed. A request without a token stays as it is.
    """
    request = response.request
    if _has_token(request):
        response.request = request = request.copy()
        request.headers.pop("Authorization", None)
        if own is not None:
            request.headers["Authorization"] = own
    return response


def _has_token(request: requests.PreparedRequest) -> bool:
    """Return whether the Authorization header of ``request`` holds a token of a scheme that this package pays for."""
    from ..protocol.schemes import is_credential

    headers = getattr(request, "headers", None)  # a testing library may set no request on the response
    sent = headers.get("Authorization") if headers else None
    return sent is not None and is_credential(sent.decode("latin-1") if isinstance(sent, bytes) else sent)


@contextlib.contextmanager
def errors_with_original_request(request: requests.PreparedRequest) -> Iterator[None]:
    """Put ``request``, the caller's, on the errors that `requests` raises in the block, in place of a request with a token.

    Loggers write errors to disk, and their requests with them.
    """
    try:
        yield
    except requests.RequestException as error:
        if isinstance(error.request, CredentialedRequest):
            error.request = request
        raise


def scrub_for_history(response: requests.Response, request: requests.PreparedRequest) -> requests.Response:
    """Remove all tokens from a superseded ``response`` before it enters a ``history`` that is written to disk. Return ``response``.

    That includes the token that its challenge offers, which is being paid for. ``request`` is the caller's own: its Authorization
    header takes the place of a token on the request of ``response``.
    """
    if "WWW-Authenticate" in response.headers:
        from ..protocol.schemes import redact

        response.headers = response.headers.copy()
        response.headers["WWW-Authenticate"] = redact(response.headers["WWW-Authenticate"])
    return restore_authorization(response, request.headers.get("Authorization") if request.headers else None)
