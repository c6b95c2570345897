"""What holds a token in memory, the request that carries one and the 402 that offered one. Pickled, both drop it.

And what hangs on a response that the caller gets: it holds none at all, for caches, dumps and logs write that down.
"""

from __future__ import annotations

from typing import Any

import requests


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


class PaywallResponse(requests.Response):
    """A 402 that was answered. Pickled, it drops the tokens of its challenge: one of them may have been paid since."""

    def __getstate__(self) -> dict[str, Any]:
        from .l402.credential import redact

        state: dict[str, Any] = dict(super().__getstate__())
        headers = state["headers"].copy()
        if "WWW-Authenticate" in headers:
            headers["WWW-Authenticate"] = redact(headers["WWW-Authenticate"])
        return {**state, "headers": headers}


def answered(response: requests.Response) -> requests.Response:
    """``response`` as one that may be kept: its pickle holds no token."""
    if type(response) is requests.Response:
        response.__class__ = PaywallResponse
    return response


def as_asked(response: requests.Response, request: requests.PreparedRequest) -> requests.Response:
    """``response``, whose ``request`` has the Authorization of ``request``, the caller's: what it has, and not our token."""
    from .l402.credential import is_credential

    own = request.headers.get("Authorization") if request.headers else None
    shown = response.request
    if shown is None or not shown.headers:  # a library for tests may leave it out
        return response
    sent = shown.headers.get("Authorization")
    sent = sent.decode("latin-1") if isinstance(sent, bytes) else sent
    if sent is not None and sent != own and is_credential(sent):
        if "authorization" in response.headers.get("Vary", "").lower():
            shown.headers.pop("Authorization")  # a cache that waits for the body writes down what the page varies by
        response.request = shown = shown.copy()
        shown.headers.pop("Authorization", None)
        if own is not None:
            shown.headers["Authorization"] = own
    return response


def superseded(response: requests.Response, request: requests.PreparedRequest) -> requests.Response:
    """``response`` as it stands in ``history``: without the token that it offers, which is being paid for."""
    if "WWW-Authenticate" in response.headers:
        from .l402.credential import redact

        response.headers = response.headers.copy()
        response.headers["WWW-Authenticate"] = redact(response.headers["WWW-Authenticate"])
    return as_asked(answered(response), request)
