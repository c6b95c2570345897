"""How long a server may keep an agent's call waiting, and that only such calls are bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync.agents import waits
from routeweiler_sync.agents.fetching import Fetched, Rules, fetch
from routeweiler_sync.testing import Paywall
from tests.support.http_server import raw_server, socket_server
from tests.support.proxies import SocksProxy

RULES = Rules(max_sats_per_call=100)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\nA: "


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "HEAD_S_MAX", 0.5)
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def slow_at_last(whole: int) -> Iterator[str]:
    """A server that answers as many requests as one expects, on connections that stay open; then its answers' heads never end."""
    answers = [WHOLE] * whole

    def serve(connection: socket.socket, ended: threading.Event) -> None:
        while connection.recv(65_536):
            if answers:
                connection.sendall(answers.pop())
                continue
            connection.sendall(ENDLESS)
            while not ended.wait(0.02):
                connection.sendall(b"x")

    with socket_server(serve) as url:
        yield url


def told_of(answer: Fetched) -> tuple[str, bool | None, bool]:
    assert answer.problem is not None
    return answer.problem.code, answer.problem.spent, answer.problem.retryable


GIVEN_UP = ("ReadTimeout", False, True)


@pytest.mark.parametrize(("head", "more"), [(ENDLESS, b"x"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")], ids=["header", "continue"])
def test_an_answer_whose_head_has_no_end_is_given_up(either_session: Routeweiler, head: bytes, more: bytes) -> None:
    """Each byte begins a socket's timeout anew: a few such servers would hold all threads of an agent for days."""
    with raw_server(head, lambda: more, pause_s=0.02) as url:
        assert told_of(fetch(either_session, RULES, url)) == GIVEN_UP


def test_a_connection_that_was_open_before_is_no_way_around(either_session: Routeweiler) -> None:
    """The server would wait until a program's connection is there that an agent's call sends on."""
    with slow_at_last(whole=2) as url:
        assert either_session.get(url).text == "ok"
        assert fetch(either_session, RULES, url).status == 200
        assert told_of(fetch(either_session, RULES, url)) == GIVEN_UP


@pytest.mark.parametrize("kind", ["http", "socks5h"])
def test_an_answer_through_a_proxy_is_bounded_too(session: Routeweiler, kind: str) -> None:
    """Behind a proxy a call would hang; or, with a connection that isn't the proxy's, fail, or go past the proxy."""
    with slow_at_last(whole=1) as url, contextlib.ExitStack() as stack:
        proxy = url
        if kind == "socks5h":
            pytest.importorskip("socks")
            address = ("127.0.0.1", int(url.strip("/").rpartition(":")[2]))
            proxy = stack.enter_context(SocksProxy({("shop.example", 80): address})).url(kind)
        session.proxies = {"http": proxy}
        assert fetch(session, RULES, "http://shop.example/").status == 200
        assert told_of(fetch(session, RULES, "http://shop.example/"))[1:] == GIVEN_UP[1:]  # urllib3 has two errors for it


def test_the_programs_own_calls_wait_as_long_as_they_say(session: Routeweiler) -> None:
    """A program's long poll would end because an agent shares its session."""
    fetch(session, RULES, "http://127.0.0.1:9/")
    heads = iter([ENDLESS, *[b"x"] * 60, b"\r\nContent-Length: 0\r\n\r\n"])
    with raw_server(b"", lambda: next(heads, b""), pause_s=0.02) as url:
        assert session.get(url).headers["A"] == "x" * 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_is_bounded_too(session: Routeweiler, paywall: Paywall, tmp_path: Path) -> None:
    """A child has connections of its own, of which the first would not be bounded."""
    fetch(session, RULES, paywall.url_for("/free"))
    with slow_at_last(whole=0) as url:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                told = told_of(fetch(session, RULES, url))
                (tmp_path / "told").write_text(str(told))
            os._exit(0)
        os.waitpid(child, 0)
    assert (tmp_path / "told").read_text() == str(GIVEN_UP)
