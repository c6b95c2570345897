"""What holds a token in memory, the request that carries one and the 402 that offered one. Pickled, both drop it."""

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
