"""Clients of services that take a session: what their authors and their users do with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
from urllib3.util.retry import Retry

from routeweiler_sync.testing import Paywall
from routeweiler_sync.testing.paywall import PaywallRequest

from .conftest import Books, Paying, library


class ChatClient:
    """The kind of client that SDKs of language models have: a session, a key, JSON, server-sent events, retries."""

    def __init__(self, base_url: str, api_key: str, *, session: requests.Session | None = None, max_retries: int = 2) -> None:
        self.base_url = base_url
        self.session = session or requests.Session()
        self.session.headers.update({"Authorization": f"Bearer {api_key}", "User-Agent": "chat-sdk/1.0"})
        retries = Retry(
            total=max_retries, status_forcelist=[402, 408, 409, 429, 500, 502, 503], allowed_methods=None, backoff_factor=0
        )
        for prefix in ("http://", "https://"):
            self.session.get_adapter(prefix).max_retries = retries  # type: ignore[attr-defined]

    def chat(self, text: str) -> str:
        response = self.session.post(f"{self.base_url}/v1/chat", json={"input": text}, timeout=(5, 30))
        response.raise_for_status()
        return response.json()["output"]  # type: ignore[no-any-return]

    def stream(self, text: str) -> Iterator[str]:
        with self.session.post(
            f"{self.base_url}/v1/chat", json={"input": text, "stream": True}, stream=True, timeout=30
        ) as response:
            response.raise_for_status()
            for line in response.iter_lines(decode_unicode=True):
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line.removeprefix("data: "))["delta"]


def answering(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
    asked = json.loads(request.body)
    if asked.get("stream"):
        events = [f"data: {json.dumps({'delta': word})}\n\n" for word in asked["input"].split()]
        return 200, {"Content-Type": "text/event-stream; charset=utf-8"}, "".join([*events, "data: [DONE]\n\n"]).encode()
    return 200, {"Content-Type": "application/json"}, json.dumps({"output": asked["input"].upper()}).encode()


def test_a_client_of_a_language_model(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Its key is its own Authorization, its retries list 402: each call would pay, or none."""
    paywall.respond = answering
    client = ChatClient(paywall.base_url, "sk-secret", session=session)
    assert client.chat("one two") == "ONE TWO"
    assert list(client.stream("three four five")) == ["three", "four", "five"]
    paywall.answer_next(503, times=2)
    assert client.chat("six") == "SIX"
    own = [request for request in paywall.requests if not request.authorized]
    assert {request.headers["Authorization"] for request in own} == {"Bearer sk-secret"}
    assert [request.status for request in paywall.requests] == [402, 200, 402, 200, 402, 503, 503, 200]
    assert paywall.requests[0].body == paywall.requests[1].body
    books.once()


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch, paywall: Paywall, session: requests.Session) -> Any:
    module = library("openai")
    if not hasattr(module, "requestssession"):
        pytest.skip("openai from version 1 on is no user of requests")
    from openai import api_requestor

    monkeypatch.setattr(api_requestor, "_thread_context", type(api_requestor._thread_context)())
    monkeypatch.setattr(module, "requestssession", session)
    monkeypatch.setattr(module, "api_base", paywall.base_url + "/v1")
    monkeypatch.setattr(module, "api_key", "sk-secret")
    return module


def test_openai(openai: Any, paywall: Paywall, books: Books) -> None:
    """`openai.requestssession`, plain and streamed: the answer is the model's, not the paywall's."""
    message = {"role": "assistant", "content": "hello"}

    def respond(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
        if json.loads(request.body).get("stream"):
            events = [{"choices": [{"delta": {"content": word}}]} for word in ("hel", "lo")]
            lines = [f"data: {json.dumps(event)}\n\n" for event in events]
            return 200, {"Content-Type": "text/event-stream"}, "".join([*lines, "data: [DONE]\n\n"]).encode()
        return 200, {"Content-Type": "application/json"}, json.dumps({"choices": [{"message": message}]}).encode()

    paywall.respond = respond
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert openai.ChatCompletion.create(**ask)["choices"][0]["message"]["content"] == "hello"
    chunks = openai.ChatCompletion.create(**ask, stream=True)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["hel", "lo"]
    assert paywall.requests[0].headers["Authorization"] == "Bearer sk-secret"
    assert paywall.requests[0].body == paywall.requests[1].body
    books.once()


def test_stripe(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """A form and an idempotency key: the paid retry carries the same one, or two customers would be made."""
    stripe = library("stripe")
    paywall.respond = lambda request: (200, {"Content-Type": "application/json"}, b'{"id": "cus_1", "object": "customer"}')
    client = stripe.StripeClient(
        "sk_test_1", http_client=stripe.RequestsClient(session=session), base_addresses={"api": paywall.base_url}
    )
    assert client.v1.customers.create({"email": "a@b.example"}).id == "cus_1"
    refused, paid = paywall.requests
    assert refused.body == paid.body
    assert parse_qs(paid.body.decode())["email"] == ["a@b.example"]
    assert refused.headers["Idempotency-Key"] == paid.headers["Idempotency-Key"]
    assert refused.headers["Authorization"] == "Bearer sk_test_1"
    assert client.v1.customers.retrieve("cus_1").id == "cus_1"
    books.once()


def test_gitlab(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Its key goes in a header of its own: that one is there on the paid retry too. Pages follow from the Link header."""
    gitlab = library("gitlab")

    def respond(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
        page = int(parse_qs(request.query).get("page", ["1"])[0])
        more = {"Link": f'<{paywall.url_for("/api/v4/projects")}?page={page + 1}>; rel="next"'} if page < 3 else {}
        return 200, {"Content-Type": "application/json", **more}, json.dumps([{"id": page, "name": f"p{page}"}]).encode()

    paywall.respond = respond
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    client = gitlab.Gitlab(paywall.base_url, private_token="glpat-secret", session=session)
    assert [project.id for project in client.projects.list(iterator=True)] == [1, 2, 3]
    assert {request.headers["PRIVATE-TOKEN"] for request in paywall.requests} == {"glpat-secret"}
    assert [request.status for request in paywall.requests] == [402, 200, 200, 200]
    books.once()


def test_hvac(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """It hands ``allow_redirects`` and ``verify`` on with each call, and takes any 4xx for an error of its own."""
    hvac = library("hvac")
    secret = {"data": {"data": {"password": "x"}, "metadata": {}}}
    paywall.respond = lambda request: (200, {"Content-Type": "application/json"}, json.dumps(secret).encode())
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    client = hvac.Client(url=paywall.base_url, token="hvs.secret", session=session)
    for _ in range(2):
        assert client.secrets.kv.v2.read_secret_version(path="p", raise_on_deleted_version=True) == secret
    assert {request.headers["X-Vault-Token"] for request in paywall.requests} == {"hvs.secret"}
    books.once()


@pytest.mark.parametrize("how", ["transport", "authorized"])
def test_google(paying: Paying, paywall: Paywall, books: Books, how: str) -> None:
    """`Request(session)` for the tokens, `AuthorizedSession` for the calls: it answers a 401 itself, and has no eye for a 402."""
    library("google.auth")
    from google.auth.transport import requests as transport
    from google.oauth2.credentials import Credentials

    if how == "transport":
        session = paying()
        session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        request = transport.Request(session)
        answers = [request(paywall.url, method="POST", body=b"grant") for _ in range(2)]
        assert [(answer.status, answer.data) for answer in answers] == [(200, paywall.content)] * 2
    else:
        session = paying.wrap(transport.AuthorizedSession(Credentials("ya29.secret")))
        for _ in range(2):
            assert session.get(paywall.url).status_code == 200
        own = [request for request in paywall.requests if not request.authorized]
        assert [request.headers["Authorization"] for request in own] == ["Bearer ya29.secret"] * 2
    books.once()


def test_a_reader_that_takes_a_session(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Who parses is handed the body of a response as a file: it is what was paid for, decoded, from its first byte."""
    table = "name,price\nbread,3\nwine,8\n"
    paywall.respond = lambda request: (
        200,
        {"Content-Type": "text/csv", "Content-Encoding": "gzip"},
        gzip.compress(table.encode()),
    )
    session.mount("http://", requests.adapters.HTTPAdapter())
    with session.get(paywall.url, stream=True) as response:
        response.raise_for_status()
        response.raw.decode_content, response.raw.auto_close = True, False
        rows = list(csv.DictReader(io.TextIOWrapper(response.raw)))
    assert rows == [{"name": "bread", "price": "3"}, {"name": "wine", "price": "8"}]
    books.once()


def test_pandas(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """The same with the real one, where it is there."""
    pandas = pytest.importorskip("pandas")
    paywall.content = b"name,price\nbread,3\nwine,8\n"
    session.mount("http://", requests.adapters.HTTPAdapter())
    with session.get(paywall.url, stream=True) as response:
        assert list(pandas.read_csv(response.raw)["price"]) == [3, 8]
    books.once()
