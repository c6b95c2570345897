"""HTTP calls to a wallet over real sockets that misbehave: what is said of a call is never less than may have happened."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trustme

from routeweiler_sync.funding import http_calls
from routeweiler_sync.funding.http_calls import HttpAnswer, HttpCalls, HttpRequest, NoAnswerError, NotSentError, Trust
from routeweiler_sync.funding.http_url import WalletUrl
from tests.support.faulty_sockets import reset, unused_port

PATIENCE_S = 30.0
SLACK_S = 5.0
KEY = "k3y" * 20
ORDER = HttpRequest.of_json("POST", "/pay", {"bolt11": "lnbc1"}, {"X-Api-Key": KEY})
QUESTION = HttpRequest(method="GET", path="/state")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 10\r\n\r\n" + b'{"a":true}'


class Server:
    """Speaks byte for byte what it is told to; ``talk(connection)`` is called with each connection."""

    def __init__(self, talk: Callable[[Any], None], context: ssl.SSLContext | None = None) -> None:
        self.talk, self.context = talk, context
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._held.append(connection)
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError):
            self.talk(self.context.wrap_socket(plain, server_side=True) if self.context is not None else plain)

    def read(self, connection: Any) -> bytes:
        """Read one request, and note it."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := connection.recv(65536)):
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        size = next((int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        while len(body) < size:
            body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(1)
        self._listener.close()
        for connection in self._held:
            with suppress(OSError):
                connection.close()


@contextmanager
def serving(
    answer: bytes | Callable[[Any], None], *, times: int = 1_000, context: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """A server that reads a request and says ``answer``, ``times`` times on each connection; then it closes the connection."""

    def talk(connection: Any) -> None:
        for _ in range(times):
            if not server.read(connection):
                break
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    server = Server(talk, context)
    try:
        yield server
    finally:
        server.close()


def calls_to(port: int, **kwargs: Any) -> HttpCalls:
    return HttpCalls(WalletUrl(scheme="http", host="127.0.0.1", port=port, path="/base"), **kwargs)


def secure_calls_to(port: int, authority: trustme.CA | None, name: str | None = None) -> HttpCalls:
    roots = authority.cert_pem.bytes() if authority is not None else None
    url = WalletUrl(scheme="https", host="127.0.0.1", port=port)
    return HttpCalls(url, lambda: Trust(roots_pem=roots, name=name))


def test_an_answer_comes_whole_with_its_status() -> None:
    """An error is an answer like any other: what it means is the client's matter."""
    with serving(OK.replace(b"200 OK", b"520 Odd")) as server:
        answer = calls_to(server.port).order(ORDER, timeout_s=PATIENCE_S)
    assert (answer.status, answer.content_type, answer.json()) == (520, "application/json", {"a": True})
    assert server.requests[0].startswith(b"POST /base/pay HTTP/1.1\r\n")
    assert server.requests[0].endswith(b'{"bolt11": "lnbc1"}')
    assert KEY.encode() in server.requests[0]


def test_questions_share_a_connection_and_each_order_has_its_own() -> None:
    """On a kept connection, which the server may have closed, it couldn't be known whether an order has left."""
    with serving(OK) as server:
        calls = calls_to(server.port)
        for _ in range(3):
            calls.ask(QUESTION, timeout_s=PATIENCE_S)
        assert server.connections == 1
        for _ in range(3):
            calls.order(ORDER, timeout_s=PATIENCE_S)
        assert server.connections == 4
        calls.close()
        calls.ask(QUESTION, timeout_s=PATIENCE_S)
        assert server.connections == 5


def test_a_question_on_a_connection_that_is_gone_is_asked_again() -> None:
    with serving(OK, times=1) as server:
        calls = calls_to(server.port)
        assert [calls.ask(QUESTION, timeout_s=PATIENCE_S).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("way", ["ask", "order", "lines"])
def test_early_hints_are_not_the_answer(way: str) -> None:
    """A proxy may send them at any time. Taken for the answer, the answer would be read as that of the next question."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    with serving(b"HTTP/1.1 100 Continue\r\n\r\n" + 2 * hints + OK) as server:
        calls = calls_to(server.port)
        for _ in range(3):
            if way == "lines":
                [told] = calls.lines(ORDER, timeout_s=PATIENCE_S)
                assert (told.status, told.line) == (200, b'{"a":true}')
            else:
                answer = getattr(calls, way)(ORDER, timeout_s=PATIENCE_S)
                assert (answer.status, answer.json()) == (200, {"a": True})
    assert server.connections == (1 if way == "ask" else 3)


def test_early_hints_without_end_are_no_answer() -> None:
    stop = threading.Event()

    def hint(connection: Any) -> None:
        while not stop.is_set():
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")

    with serving(hint) as server:
        began = time.monotonic()
        try:
            with pytest.raises(NoAnswerError):
                calls_to(server.port).ask(QUESTION, timeout_s=0.5)
        finally:
            stop.set()
        assert time.monotonic() - began < 0.5 + SLACK_S


@pytest.mark.parametrize("tls", [False, True])
def test_a_second_answer_to_a_question_is_not_that_of_the_next_one(tls: bool) -> None:
    """It would be, for example, what another payment may cost: one that has no such limit would be made."""
    sent, told = threading.Event(), iter(range(1, 100))

    def twice(connection: Any) -> None:
        answer = OK.replace(b'{"a":true}', b'{"a":   %d}' % next(told))
        connection.sendall(answer)
        time.sleep(0.05)  # after the first was read; it must come on its own
        connection.sendall(answer)
        sent.set()

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(twice, context=context if tls else None) as server:
        calls = secure_calls_to(server.port, authority) if tls else calls_to(server.port)
        for number in (1, 2, 3):
            sent.clear()
            assert calls.ask(QUESTION, timeout_s=PATIENCE_S).json() == {"a": number}
            assert sent.wait(PATIENCE_S)


@pytest.mark.parametrize("fault", ["closed", "reset", "half a head", "half a body", "half a chunk"])
def test_an_order_whose_answer_is_cut_may_have_been_carried_out_and_is_sent_once(fault: str) -> None:
    """Said to be "not sent", it would be forgotten, and another invoice paid in its place."""

    def cut(connection: Any) -> None:
        if fault == "reset":
            reset(connection)
        else:
            connection.sendall({
                "closed": b"",
                "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
                "half a body": OK[:-3],
                "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{",
            }[fault])  # fmt: skip

    with serving(cut, times=1) as server:
        calls = calls_to(server.port)
        with pytest.raises(NoAnswerError) as caught:
            calls.order(ORDER, timeout_s=PATIENCE_S)
        if "chunk" in fault or "head" in fault or "body" in fault:
            with pytest.raises(NoAnswerError):
                list(calls.lines(ORDER, timeout_s=PATIENCE_S))
    assert len(server.requests) <= 2
    assert KEY not in str(caught.value)
    assert caught.value.kind in ("cut", "malformed")


def test_an_order_that_nothing_listens_for_has_not_left() -> None:
    with pytest.raises(NotSentError) as caught:
        calls_to(unused_port()).order(ORDER, timeout_s=PATIENCE_S)
    assert (caught.value.kind, caught.value.what) == ("refused", "nothing listens there")


def test_an_order_for_a_name_that_nobody_knows_has_not_left() -> None:
    calls = HttpCalls(WalletUrl(scheme="http", host="no-such-node.invalid", port=80))
    with pytest.raises(NotSentError) as caught:
        calls.order(ORDER, timeout_s=PATIENCE_S)
    assert caught.value.kind == "name"


@pytest.mark.parametrize("fault", ["another authority", "another name", "no TLS", "closed", "reset", "public roots"])
def test_an_order_whose_handshake_fails_has_not_left_and_no_byte_of_the_key_has(fault: str) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("node.example" if fault == "another name" else "127.0.0.1").configure_cert(context)
    heard: list[bytes] = []

    def talk(connection: Any) -> None:
        if fault == "reset":
            reset(connection)
        elif fault == "closed":
            connection.close()
        else:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = Server(talk, None if fault in ("no TLS", "closed", "reset") else context)
    pin = trustme.CA() if fault == "another authority" else None if fault == "public roots" else authority
    try:
        with pytest.raises(NotSentError):
            secure_calls_to(server.port, pin).order(ORDER, timeout_s=PATIENCE_S)
    finally:
        server.close()
    assert not any(KEY.encode() in each for each in heard)


def test_a_pinned_certificate_is_accepted_also_as_a_leaf_and_by_another_name() -> None:
    """An lnd reached by a forwarded port shows a certificate that doesn't name the host."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = authority.issue_cert("node.example")
    leaf.configure_cert(context)
    with serving(OK, context=context) as server:
        url = WalletUrl(scheme="https", host="127.0.0.1", port=server.port)
        calls = HttpCalls(url, lambda: Trust(roots_pem=leaf.cert_chain_pems[0].bytes(), name="node.example"))
        assert calls.order(ORDER, timeout_s=PATIENCE_S).status == 200


def test_a_renewed_certificate_is_trusted_from_the_next_connection_on() -> None:
    old, new = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.issue_cert("127.0.0.1").configure_cert(context)
    trusted = [old]
    with serving(OK, context=context) as server:
        url = WalletUrl(scheme="https", host="127.0.0.1", port=server.port)
        calls = HttpCalls(url, lambda: Trust(roots_pem=trusted[0].cert_pem.bytes()))
        with pytest.raises(NotSentError, match="certificate isn't accepted"):
            calls.order(ORDER, timeout_s=PATIENCE_S)
        trusted[0] = new
        assert calls.order(ORDER, timeout_s=PATIENCE_S).status == 200


@pytest.mark.parametrize(
    "variable", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_nothing_of_the_environment_stands_between(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A proxy would get the key, and a bundle of the environment would take the pin's place."""
    server_side, other = trustme.CA(), trustme.CA()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(server_side.cert_pem.bytes())
    monkeypatch.setenv(variable, str(bundle) if "BUNDLE" in variable else f"http://127.0.0.1:{unused_port()}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.issue_cert("127.0.0.1").configure_cert(context)
    with serving(OK, context=context) as server:
        assert secure_calls_to(server.port, server_side).ask(QUESTION, timeout_s=PATIENCE_S).status == 200
        with pytest.raises(NotSentError):
            secure_calls_to(server.port, other).ask(QUESTION, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("way", ["ask", "order", "lines"])
@pytest.mark.parametrize("pace", ["silent", "trickling head", "trickling body", "silent after a line"])
def test_every_call_ends_in_time(way: str, pace: str) -> None:
    """A server that sends a byte now and then satisfies every socket's timeout, for ever."""
    stop = threading.Event()

    def trickle(connection: Any) -> None:
        if pace == "silent after a line":
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        elif pace != "silent":
            body = pace == "trickling body"
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 100000\r\n\r\n" if body else b"X-Long: "))
            while not stop.wait(0.05):
                connection.sendall(b"a")
        stop.wait(PATIENCE_S)

    with serving(trickle) as server:
        calls, began = calls_to(server.port), time.monotonic()
        try:
            with pytest.raises(NoAnswerError) as caught:
                list(calls.lines(ORDER, timeout_s=0.5)) if way == "lines" else getattr(calls, way)(ORDER, timeout_s=0.5)
        finally:
            stop.set()
        assert caught.value.kind == "timeout"
        assert time.monotonic() - began < 0.5 + SLACK_S


def test_a_frozen_handshake_ends_in_time_and_nothing_has_left() -> None:
    server = Server(lambda connection: time.sleep(0))
    try:
        with pytest.raises(NotSentError) as caught:
            secure_calls_to(server.port, trustme.CA()).order(ORDER, timeout_s=0.3)
    finally:
        server.close()
    assert caught.value.kind == "timeout"


def test_an_order_whose_caller_left_before_it_was_sent_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller was told that nothing was sent. Sent later, the order would be paid and booked by nobody."""
    resolving, go_on = threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        resolving.set()
        go_on.wait(PATIENCE_S)
        return resolve(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with serving(OK) as server:
        with pytest.raises(NotSentError, match="within 0"):
            calls_to(server.port).order(ORDER, timeout_s=0.2)
        assert resolving.is_set()
        go_on.set()
        deadline = time.monotonic() + PATIENCE_S
        while not server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert server.requests == []


def test_lines_come_one_by_one_and_leaving_early_ends_the_connection() -> None:
    ended = threading.Event()

    def talk(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b'{"a":', b"1}\n", b"{}\n"):
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        if not connection.recv(1):
            ended.set()

    with serving(talk) as server:
        lines = calls_to(server.port).lines(ORDER, timeout_s=PATIENCE_S)
        assert [next(lines).line, next(lines).line] == [b'{"a":1}', b"{}"]
        lines.close()
        assert ended.wait(PATIENCE_S)


def test_lines_of_an_answer_without_a_last_line_break_are_all_yielded() -> None:
    with serving(OK) as server:
        lines = list(calls_to(server.port).lines(ORDER, timeout_s=PATIENCE_S))
    assert [(each.status, each.line) for each in lines] == [(200, b'{"a":true}')]


def test_what_is_too_large_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile server, or a wrong one, could fill the memory."""
    monkeypatch.setattr(http_calls, "LINE_BYTES_MAX", 1000)
    request = HttpRequest(method="GET", path="/", bytes_max=1000)
    exactly = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 1000
    with serving(exactly) as server:
        assert len(calls_to(server.port).ask(request, timeout_s=PATIENCE_S).body) == 1000
        assert [len(each.line) for each in calls_to(server.port).lines(request, timeout_s=PATIENCE_S)] == [1000]
    with serving(exactly.replace(b"1000", b"1001") + b"a") as server:
        calls = calls_to(server.port)
        for call in (calls.ask, calls.order, lambda request, timeout_s: list(calls.lines(request, timeout_s=timeout_s))):
            with pytest.raises(NoAnswerError) as caught:
                call(request, timeout_s=PATIENCE_S)
            assert caught.value.kind == "large"


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9\r\n", b"\x15\x03\x01\x00\x02\x02\x50" * 20 + b"\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"]
)
def test_what_is_not_http_is_no_answer(said: bytes) -> None:
    with serving(said, times=1) as server, pytest.raises(NoAnswerError):
        calls_to(server.port).order(ORDER, timeout_s=PATIENCE_S)


def test_a_redirect_is_an_answer_and_isn_t_followed() -> None:
    """Followed, the key would go to whatever host the answer names."""
    with serving(OK) as other:
        to = f"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n".encode()
        with serving(to) as server:
            assert calls_to(server.port).order(ORDER, timeout_s=PATIENCE_S).status == 307
        assert other.requests == []


@pytest.mark.parametrize("key", ["a\r\nX: y", "schlüssel☃", "a\0b\n"])
def test_a_key_that_no_header_can_hold_isn_t_sent_and_not_told(key: str) -> None:
    request = HttpRequest(method="GET", path="/", headers={"X-Api-Key": key})
    with serving(OK) as server:
        with pytest.raises(NotSentError) as caught:
            calls_to(server.port).order(request, timeout_s=PATIENCE_S)
        assert server.requests == []
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert key not in repr(request)


def test_a_program_that_prints_its_http_headers_does_not_print_the_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    with serving(OK) as server:
        calls_to(server.port).order(ORDER, timeout_s=PATIENCE_S)
    assert capsys.readouterr().out == ""


def test_a_replaced_ssl_context_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """truststore puts its own class there, which would trust the system's authorities beside the pinned certificate."""

    class Replaced(ssl.SSLContext):
        def wrap_socket(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the replaced class was used")

    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(OK, context=context) as server:
        monkeypatch.setattr(ssl, "SSLContext", Replaced)
        assert secure_calls_to(server.port, authority).order(ORDER, timeout_s=PATIENCE_S).status == 200


@pytest.mark.parametrize("way", ["ask", "order", "lines"])
def test_closing_ends_the_calls_that_are_running(way: str) -> None:
    """A program that ends shall not wait for a slow payment's timeout."""
    told, errors = threading.Event(), list[Exception]()

    def talk(connection: Any) -> None:
        told.set()
        connection.recv(1)

    with serving(talk) as server:
        calls = calls_to(server.port)

        def call() -> None:
            try:
                list(calls.lines(ORDER, timeout_s=PATIENCE_S)) if way == "lines" else getattr(calls, way)(
                    ORDER, timeout_s=PATIENCE_S
                )
            except NoAnswerError as error:
                errors.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        assert told.wait(PATIENCE_S)
        calls.close()
        caller.join(SLACK_S)
    assert [type(each) for each in errors] == [NoAnswerError]
    assert not calls._running


def test_many_threads_share_the_calls() -> None:
    with serving(OK) as server:
        calls, answers = calls_to(server.port), list[HttpAnswer]()
        threads = [threading.Thread(target=lambda: answers.append(calls.ask(QUESTION, timeout_s=PATIENCE_S))) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(answers) == 20
        assert len(calls._kept) <= 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_uses_no_connection_of_its_parents() -> None:
    """Both would read each other's answers."""
    with serving(OK) as server:
        calls = calls_to(server.port)
        calls.ask(QUESTION, timeout_s=PATIENCE_S)
        if (pid := os.fork()) == 0:
            os._exit(0 if calls.ask(QUESTION, timeout_s=PATIENCE_S).status == 200 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        calls.ask(QUESTION, timeout_s=PATIENCE_S)
        assert server.connections == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there are no timers of this kind")
def test_an_interrupt_ends_the_wait_and_the_calls_stay_usable() -> None:
    class StopError(Exception): ...

    def stop(*_: object) -> None:
        raise StopError

    silent = threading.Event()

    def talk(connection: Any) -> None:
        if not silent.is_set():
            silent.set()
            connection.recv(1)
        connection.sendall(OK)

    old = signal.signal(signal.SIGALRM, stop)
    try:
        with serving(talk) as server:
            calls = calls_to(server.port)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(StopError):
                calls.order(ORDER, timeout_s=PATIENCE_S)
            assert calls.order(ORDER, timeout_s=PATIENCE_S).status == 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_what_is_not_json_is_told_without_its_text() -> None:
    answer = HttpAnswer(status=200, content_type="text/html", body=b"<html>" + KEY.encode())
    with pytest.raises(ValueError, match="JSONDecodeError") as caught:
        answer.json()
    assert KEY not in str(vars(caught.value))
    assert caught.value.__suppress_context__
    with pytest.raises(ValueError, match="nested"):
        HttpAnswer(status=200, content_type="", body=b"[" * 200_000).json()
