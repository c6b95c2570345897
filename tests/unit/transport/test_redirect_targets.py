"""A paying session follows the same redirects as `requests`, also where it spares itself the search for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from routeweiler_sync import Routeweiler


class Created(requests.Response):
    """An answer whose ``Location`` counts also where its status is no redirect's."""

    @property
    def is_redirect(self) -> bool:  # type: ignore[override]
        return "Location" in self.headers


class Canned(BaseAdapter):
    """Answers the first page with ``status`` and a ``Location``, and the second with 200."""

    def __init__(self, status: Any, kind: type[requests.Response]) -> None:
        super().__init__()
        self.status, self.kind = status, kind

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        is_first = str(request.url).endswith("/first")
        response = self.kind() if is_first else requests.Response()
        response.status_code = self.status if is_first else 200
        response.headers = CaseInsensitiveDict({"Location": "/second"} if is_first else {})
        response.url, response.request, response.raw = str(request.url), request, io.BytesIO()
        return response

    def close(self) -> None: ...


def outcome(session: requests.Session, adapter: Canned, change: Callable[[Any], None]) -> tuple[Any, ...]:
    session.mount("http://", adapter)
    change(session)
    response = session.get("http://api.example/first")
    return response.url, response.status_code, [each.status_code for each in response.history]


def _as_it_is(session: Any) -> None: ...


def _own_target(session: Any) -> None:
    session.get_redirect_target = lambda response: "/second" if response.url.endswith("/first") else None


@pytest.mark.parametrize("change", [_as_it_is, _own_target])
@pytest.mark.parametrize("kind", [requests.Response, Created])
@pytest.mark.parametrize("status", [200, 201, 300, 302, 304, 308, 399, None, "200", "302"])
def test_redirects_are_those_of_requests(status: Any, kind: type[requests.Response], change: Callable[[Any], None]) -> None:
    """An adapter or session may say itself what is a redirect. Recorders also make answers without a proper status."""
    adapter = Canned(status, kind)
    assert outcome(Routeweiler(ledger="unused.db"), adapter, change) == outcome(requests.Session(), adapter, change)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (requests.models, "REDIRECT_STATI", (201,)),
        (requests.Response, "is_redirect", property(lambda self: self.status_code == 201)),
        (requests.Session, "get_redirect_target", lambda self, response: "/second" if response.status_code == 201 else None),
    ],
)
def test_a_replaced_rule_for_redirects_counts(owner: Any, name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs let `requests` follow a 201 so."""
    monkeypatch.setattr(owner, name, value)
    for status in (201, 302):
        adapter = Canned(status, requests.Response)
        assert outcome(Routeweiler(ledger="unused.db"), adapter, _as_it_is) == outcome(requests.Session(), adapter, _as_it_is)
