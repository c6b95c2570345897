"""What holds a token in memory, the request that carries one and the 402 that offered one. Pickled, both drop it.

And what becomes of answers that a cache writes down as they are: a session's cache does so with a response's history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from ..payments.token import Token


class CredentialedRequest(requests.PreparedRequest):
    """A request that carries a token of ours. Pickled or copied, it drops it."""

    @classmethod
    def made_of(cls, request: requests.PreparedRequest, credential: str) -> CredentialedRequest:
        """``request``, which is used up, with ``credential`` as its Authorization."""
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
        """A copy without the credential: whoever sends it again gets the token attached anew."""
        plain = super().copy()
        if plain.headers is not None:
            plain.headers.pop("Authorization", None)
        return plain


def with_credential(request: requests.PreparedRequest, token: Token, answers: list[requests.Response]) -> CredentialedRequest:
    """A copy of ``request`` with the token ``held``, to send after ``answers``. ChallengeMismatchError if of another origin."""
    from .._core.urls import origin_at
    from ..errors import ChallengeMismatchError
    from ..protocol.schemes import authorization
    from .replay import again

    origin = origin_at(request.url or "")
    if token.origin != origin:  # nothing leads here; but were a token to go astray, then not past this line
        raise ChallengeMismatchError(
            f"A token of {token.origin} was about to go to {origin}, and wasn't sent.", advice="Report this."
        )
    return CredentialedRequest.made_of(again(request, answers), authorization(token.scheme, token.token, token.preimage))


class PaywallResponse(requests.Response):
    """A 402 that was answered. Pickled, it drops the tokens of its challenge: one of them may have been paid since."""

    def __getstate__(self) -> dict[str, Any]:
        from ..protocol.schemes import redact

        state: dict[str, Any] = dict(super().__getstate__())
        headers = state["headers"].copy()
        if "WWW-Authenticate" in headers:
            headers["WWW-Authenticate"] = redact(headers["WWW-Authenticate"])
        return {**state, "headers": headers}


def droppable(response: requests.Response) -> requests.Response:
    """``response`` as one that may be kept: its pickle holds no token."""
    if type(response) is requests.Response:
        response.__class__ = PaywallResponse
    return response


def mark_refused(response: requests.Response) -> requests.Response:
    """``response``, a 402 that the caller gets since it was refused to pay for it: by nobody else either."""
    response._refused = True  # type: ignore[attr-defined]
    return response


def is_refused(response: requests.Response) -> bool:
    """Whether another layer has `refused` to pay for ``response``."""
    return getattr(response, "_refused", False) is True


def scrub_redirect(response: requests.Response) -> requests.Response:
    """``response`` without what a cache of its session writes down of it: a redirect's token, for it goes into a history."""
    return restore_authorization(response, None) if response.is_redirect else response


def drop_credential_if_varied(response: requests.Response) -> requests.Response:
    """``response``, whose request has lost its token where the page varies by it: an adapter that caches writes that down."""
    if "authorization" in response.headers.get("Vary", "").lower() and _bears_token(response.request):
        response.request.headers.pop("Authorization")
    return response


def restore_authorization(response: requests.Response, own: str | bytes | None) -> requests.Response:
    """``response``, whose ``request`` has, in place of a token of ours, the Authorization ``own``, the caller's."""
    shown = response.request
    if _bears_token(shown):
        response.request = shown = shown.copy()
        shown.headers.pop("Authorization", None)
        if own is not None:
            shown.headers["Authorization"] = own
    return response


def _bears_token(request: requests.PreparedRequest) -> bool:
    from ..protocol.schemes import is_credential

    headers = getattr(request, "headers", None)  # a library for tests may leave the request out
    sent = headers.get("Authorization") if headers else None
    return sent is not None and is_credential(sent.decode("latin-1") if isinstance(sent, bytes) else sent)


@contextlib.contextmanager
def errors_with_original_request(request: requests.PreparedRequest) -> Iterator[None]:
    """What `requests` raises in the block has ``request``, the caller's, and not one with our token: loggers write down errors."""
    try:
        yield
    except requests.RequestException as error:
        if isinstance(error.request, CredentialedRequest):
            error.request = request
        raise


def scrub_for_history(response: requests.Response, request: requests.PreparedRequest) -> requests.Response:
    """``response``, the answer to what was made of ``request``, as it stands in a ``history`` that is written down.

    Without any token, also the one that it offers, which is being paid for.
    """
    if "WWW-Authenticate" in response.headers:
        from ..protocol.schemes import redact

        response.headers = response.headers.copy()
        response.headers["WWW-Authenticate"] = redact(response.headers["WWW-Authenticate"])
    return restore_authorization(response, request.headers.get("Authorization") if request.headers else None)
