"""pytest-httpserver: a handler of the user's own answers 402, with a real challenge."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.testing.paywall import PaywallLogic

from .conftest import Books, library

library("pytest_httpserver")

from pytest_httpserver import HTTPServer  # noqa: E402
from werkzeug import Request, Response  # noqa: E402


@pytest.fixture
def logic(lnd: FakeLnd) -> PaywallLogic:
    return PaywallLogic(lnd, price_msat=10_000)


def sells(logic: PaywallLogic) -> Any:
    """A handler as a user of both writes it."""

    def handler(request: Request) -> Response:
        reply = logic.answer(request.method, request.full_path.rstrip("?"), list(request.headers.items()), request.get_data())
        return Response(reply.body, reply.status, list(reply.headers))

    return handler


def test_a_handler_that_wants_to_be_paid(
    session: requests.Session, httpserver: HTTPServer, logic: PaywallLogic, books: Books
) -> None:
    """Its server is werkzeug's, whose header lines and connections are not `http.server`'s."""
    httpserver.expect_request("/paid", method="POST").respond_with_handler(sells(logic))
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    response = session.post(httpserver.url_for("/paid"), json={"q": 1}, params={"p": "a b"})
    assert (response.status_code, response.content) == (200, logic.content)
    refused, paid = logic.requests
    assert (refused.body, refused.query) == (paid.body, paid.query) == (b'{"q": 1}', "p=a+b")
    httpserver.check_assertions()
    assert [served.status_code for _, served in httpserver.log] == [402, 200]
    assert session.post(httpserver.url_for("/paid")).payment.reused
    books.once()


def test_ordered_handlers(session: requests.Session, httpserver: HTTPServer, logic: PaywallLogic, books: Books) -> None:
    """A test that counts requests sees two for a paid call, and no third: nothing is asked twice that was answered."""
    httpserver.expect_ordered_request("/paid").respond_with_handler(sells(logic))
    httpserver.expect_ordered_request("/paid", headers={"Authorization": re.compile("L402 .*")}, header_value_matcher=_matches).\
        respond_with_handler(sells(logic))  # fmt: skip
    httpserver.expect_ordered_request("/after").respond_with_json({"done": True})
    session.mount(httpserver.url_for("/"), requests.adapters.HTTPAdapter())
    assert session.get(httpserver.url_for("/paid")).content == logic.content
    assert session.get(httpserver.url_for("/after")).json() == {"done": True}
    httpserver.check_assertions()
    books.once()


def _matches(name: str, actual: str | None, expected: Any) -> bool:
    return bool(expected.fullmatch(actual or "")) if hasattr(expected, "fullmatch") else actual == expected


def test_a_402_that_isnt_ours(session: requests.Session, httpserver: HTTPServer, logic: PaywallLogic, books: Books) -> None:
    """Without a challenge it is an answer like any other, for the user's hook too; what comes after it still pays."""
    seen: list[int] = []
    session.hooks["response"] = [lambda response, **kwargs: seen.append(response.status_code)]
    httpserver.expect_request("/quota").respond_with_data("quota", status=402)
    httpserver.expect_request("/paid").respond_with_handler(sells(logic))
    assert session.get(httpserver.url_for("/quota")).text == "quota"
    assert session.get(httpserver.url_for("/paid")).status_code == 200
    assert seen == [402, 200]
    books.once()
