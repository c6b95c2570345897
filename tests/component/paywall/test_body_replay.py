"""Bodies: what was sent with the first request is sent again with the token, byte for byte, or nothing is paid."""

from __future__ import annotations

import bz2
import gc
import gzip
import hashlib
import io
import lzma
import os
import socket
import sys
import tarfile
import tempfile
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import HealthCheck, given, settings, strategies as st

from routeweiler_sync import (
    UnreplayableBodyError,
    payment_of,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._paywall_logic import PaywallRequest
from tests.support.accounts import Books
from tests.support.digest_paywall import FrugalPaywall

pytestmark = pytest.mark.slow

REQUESTS = tuple(int(part) for part in requests.__version__.split(".")[:2])
SENDS_UTF8 = not urllib3.__version__.startswith("1.")
CONTENT = bytes(range(256)) * 300  # more than a block of urllib3's or of a buffered file

# -- every kind of file -------------------------------------------------------------------------------------------------------


def _file(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return path.open("rb")


def _unbuffered(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return path.open("rb", buffering=0)


def _read_and_write(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return path.open("r+b")


def _written(make: Callable[[], Any]) -> Callable[[Path, bytes], Any]:
    def written(path: Path, content: bytes) -> Any:
        file = make()
        file.write(content)
        return file

    return written


def _compressed(module: Any) -> Callable[[Path, bytes], Any]:
    def compressed(path: Path, content: bytes) -> Any:
        with module.open(path, "wb") as file:
            file.write(content)
        return module.open(path, "rb")

    return compressed


def _of_a_zip(path: Path, content: bytes) -> Any:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", content)
    return zipfile.ZipFile(path).open("member")


def _of_a_tar(path: Path, content: bytes) -> Any:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("member")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return tarfile.open(path).extractfile("member")


class Reader:
    """The least that a file-like object has to have."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


class Lines:
    """No read(): it is iterated, and goes out in chunks."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self._file.read(1000), b"")

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


FILES: dict[str, Callable[[Path, bytes], Any]] = {
    "file": _file,
    "unbuffered": _unbuffered,
    "read and write": _read_and_write,
    "BytesIO": lambda path, content: io.BytesIO(content),
    "BufferedReader": lambda path, content: io.BufferedReader(io.BytesIO(content)),
    "TemporaryFile": _written(tempfile.TemporaryFile),
    "NamedTemporaryFile": _written(tempfile.NamedTemporaryFile),
    "spooled in memory": _written(partial(tempfile.SpooledTemporaryFile, 1 << 20)),
    "spooled on disk": _written(partial(tempfile.SpooledTemporaryFile, 1)),
    "bz2": _compressed(bz2),
    "lzma": _compressed(lzma),
    "zip": _of_a_zip,
    "tar": _of_a_tar,
    "reader": lambda path, content: Reader(content),
    "lines": lambda path, content: Lines(content),
}
if sys.version_info < (3, 13):  # from there on, requests announces the compressed length, and sends more
    FILES["gzip"] = _compressed(gzip)
#: What requests itself announces wrongly, for it measures what is on disk and not what is read.
MISMEASURED = ("bz2", "lzma") if sys.version_info >= (3, 13) else ()


def framing(request: PaywallRequest) -> dict[str, str | None]:
    """What tells a server how long the body is, and what it is."""
    return {name: request.headers.get(name) for name in ("Content-Length", "Transfer-Encoding", "Content-Type")}


def arrived(paywall: Paywall) -> list[tuple[int, bytes, dict[str, str | None]]]:
    return [(request.status, request.body, framing(request)) for request in paywall.requests]


def check_sent_alike(session: requests.Session, paywall: Paywall, path: str, make: Callable[[], dict[str, Any]]) -> bytes:
    """A paid POST sends twice what `requests` sends once, to the byte. Gives what that is."""
    before = len(paywall.requests)
    free = make()
    assert requests.post(paywall.url_for("/free/" + path), **free).status_code == 200
    paid = make()
    response = session.post(paywall.url_for("/" + path), **paid)
    assert response.status_code == 200
    assert not response.payment.reused
    (_, body, frame), first, second = arrived(paywall)[before:]
    assert first == (402, body, frame)
    assert second == (200, body, frame)
    for file in (free.get("data"), paid.get("data")):
        if hasattr(file, "close"):
            file.close()
    return body


@pytest.mark.parametrize("offset", [0, 1, 70_000, len(CONTENT)])
@pytest.mark.parametrize("kind", sorted(set(FILES) - set(MISMEASURED)))
def test_every_kind_of_file_is_sent_again_from_where_it_stood(
    session, paywall: Paywall, books: Books, tmp_path: Path, kind: str, offset: int
) -> None:
    """The money would buy an error, or worse: half of the file stored as if it were the whole."""

    def body() -> dict[str, Any]:
        file = FILES[kind](tmp_path / "body", CONTENT)
        file.seek(offset)
        return {"data": file}

    assert check_sent_alike(session, paywall, "page", body) == CONTENT[offset:]
    books.check()


@pytest.mark.parametrize(
    ("how", "text"),
    [  # no StringIO of anything but ASCII: `requests` announces characters, and sends bytes
        ("file", "plain ASCII\n" * 3000),
        pytest.param("file", "Grüße, 世界 🌍\n" * 3000, marks=pytest.mark.skipif(not SENDS_UTF8, reason="urllib3 1 sends Latin-1")),
        ("StringIO", "plain ASCII\n" * 3000),
    ],
)
def test_text_is_sent_again_as_requests_sends_it(session, paywall: Paywall, tmp_path: Path, how: str, text: str) -> None:
    """A position in a text file is no count of bytes: whoever computes with it sends something else the second time."""
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8", newline="")

    def body() -> dict[str, Any]:
        return {"data": path.open(encoding="utf-8", newline="") if how == "file" else io.StringIO(text)}

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", requests.exceptions.FileModeWarning)
        assert check_sent_alike(session, paywall, "page", body) == text.encode()
    told = [each for each in warned if each.category is requests.exceptions.FileModeWarning]
    assert len(told) == (2 if how == "file" else 0), "requests warns once a call, and so do we"


@pytest.mark.filterwarnings("ignore::requests.exceptions.FileModeWarning")
def test_a_text_file_is_sent_again_from_its_middle(session, paywall: Paywall, tmp_path: Path) -> None:
    """A text file's position holds its decoder's state: read as a number of bytes, it sends the wrong half of the file."""
    path = tmp_path / "text"
    path.write_text("é" * 5000 + "the rest\n" * 2000, encoding="utf-8")

    def body() -> dict[str, Any]:
        file = path.open(encoding="utf-8")
        file.read(5000)
        return {"data": file}

    assert check_sent_alike(session, paywall, "page", body) == b"the rest\n" * 2000


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "empty bytes": lambda: {"data": b""},
    "empty text": lambda: {"data": ""},
    "an empty form": lambda: {"data": {}},
    "bytes": lambda: {"data": CONTENT},
    "text": lambda: {"data": "Grüße 世界" if SENDS_UTF8 else "Grüße"},
    "bytearray": lambda: {"data": bytearray(CONTENT)},
    "empty bytearray": lambda: {"data": bytearray()},
    "memoryview": lambda: {"data": memoryview(CONTENT)[3:-3]},
    "an empty file": lambda: {"data": io.BytesIO(b"")},
    "form": lambda: {"data": {"a": "1", "b": ["x", "y"], "ü": "ß"}},
    "form as a list": lambda: {"data": [("a", "1"), ("a", "2"), ("b", b"\xff")]},
    "json": lambda: {"json": {"k": [1, 2.5, None, "ü"]}},
    "empty json": lambda: {"json": {}},
    "json null": lambda: {"json": None},
    "type of its own": lambda: {"data": b"<a/>", "headers": {"Content-Type": "text/xml; charset=x"}},
}


@pytest.mark.parametrize("kind", BODIES)
def test_every_kind_of_body_is_sent_again_as_requests_sends_it(either_session, paywall: Paywall, books: Books, kind: str) -> None:
    """Body, length and type: a server that gets another Content-Length waits for ever, or takes the rest for a request."""
    check_sent_alike(either_session, paywall, "page", BODIES[kind])
    books.check()


def test_a_multipart_body_is_sent_again_with_its_boundary(session, paywall: Paywall, tmp_path: Path) -> None:
    """A second boundary in the body and the first in the header: nothing can be read of it."""
    with _file(tmp_path / "a", CONTENT) as a, _file(tmp_path / "b", b"0123456789") as b:
        b.seek(4)
        files = [("a", ("a.bin", a, "application/x", {"X-Part": "1"})), ("b", b), ("c", ("c.txt", io.BytesIO(b"cc"))), ("d", "dd")]
        assert session.post(paywall.url, files=files, data={"field": "value"}).status_code == 200
    first, second = paywall.requests
    assert (first.body, framing(first)) == (second.body, framing(second))
    assert CONTENT in second.body
    assert b"\r\n\r\n456789\r\n" in second.body
    boundary = second.headers["Content-Type"].partition("boundary=")[2]
    assert second.body.endswith(f"--{boundary}--\r\n".encode())


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_body_goes_with_every_method(session, paywall: Paywall, method: str) -> None:
    """A search is often a GET with a body, and a deletion has its reasons in one."""
    session.request(method, paywall.url, data=io.BytesIO(b"body"))
    assert {request.body for request in paywall.requests} == {b"body"}


@pytest.fixture
def dynamic(lnd: FakeLnd) -> Iterator[Paywall]:
    """Each path wants a token of its own."""
    with Paywall(lnd, price_msat=1_000, dynamic=True) as wall:
        yield wall


def test_any_file_is_sent_again_from_any_offset(make_session, dynamic: Paywall, lnd: FakeLnd, books: Books, tmp_path: Path) -> None:
    """What nobody thought of: empty rests, offsets behind the end, newlines, blocks that end where the file does."""
    session = make_session(budget_envelope=None)
    numbers = iter(range(10_000))
    blocks = (
        st.sampled_from([16_384, 65_536]).flatmap(lambda size: st.integers(size - 2, size + 2)).map(lambda n: b"\r\n" * (n // 2))
    )

    @given(
        kind=st.sampled_from(sorted(set(FILES) - set(MISMEASURED))),
        content=st.binary(max_size=2_000) | blocks,
        offset=st.integers(0, 3_000) | st.integers(16_000, 70_000),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def check(kind: str, content: bytes, offset: int) -> None:
        def body() -> dict[str, Any]:
            file = FILES[kind](tmp_path / "body", content)
            file.seek(offset)
            return {"data": file}

        assert check_sent_alike(session, dynamic, f"page/{next(numbers)}", body) == content[offset:]

    check()
    books.check()


# -- bodies that can be sent only once ----------------------------------------------------------------------------------------


class MultipartEncoder:
    """As requests-toolbelt's: a length, a read(), and no way back."""

    def __init__(self) -> None:
        self._file = io.BytesIO(b"once")

    @property
    def len(self) -> int:
        return 4 - self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def to_string(self) -> bytes:
        return self.read()


class SeekFails(Reader):
    def __len__(self) -> int:
        return 4

    def seek(self, position: int, whence: int = 0) -> int:
        raise OSError("Illegal seek")


class SeekIsntThere(SeekFails):
    def seek(self, position: int, whence: int = 0) -> int:
        raise NotImplementedError("not this one")


class SeekStays(Reader):
    """``seek`` does nothing, and ``tell`` says so."""

    def seek(self, position: int, whence: int = 0) -> int:
        return self.tell()

    def __len__(self) -> int:
        return 4


class SeekAndTellLie(SeekStays):
    def tell(self) -> int:
        return 0


class ClosesAtItsEnd(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data:
            self.close()
        return data


class Shrinks(io.BytesIO):
    """Cut down by somebody else while the first request is under way."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data:
            self.truncate(2)
        return data


class Chunks:
    """Whether it gives the same when it is asked again, nobody knows."""

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"on", b"ce")


class FileWithoutIter:
    """`requests` notes no position of what has no ``__iter__``."""

    def __init__(self) -> None:
        self._file = io.BytesIO(b"once")
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell


def _pipe() -> Any:
    reading, writing = os.pipe()
    os.write(writing, b"once")
    os.close(writing)
    return os.fdopen(reading, "rb")


def _socket() -> Any:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"once")
    theirs.close()
    file = ours.makefile("rb")
    ours.close()
    return file


def _iterated_text() -> Any:
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115
    file.write("skipped\nonce")
    file.seek(0)
    next(file)
    return file


ONE_SHOT: dict[str, tuple[Callable[[], Any], str, str]] = {
    "generator": (lambda: (chunk for chunk in (b"on", b"ce")), "a generator", 'b"".join'),
    "iterator": (lambda: iter([b"on", b"ce"]), "an iterator", 'b"".join'),
    "map": (lambda: map(bytes, ([111, 110], [99, 101])), "of class map, an iterator", 'b"".join'),
    "iterable": (Chunks, "Chunks, an iterable", 'b"".join'),
    "pipe": (_pipe, "a stream", "read()"),
    "socket": (_socket, "a stream", "read()"),
    "encoder": (MultipartEncoder, "MultipartEncoder, an encoder", "to_string()"),
    "file without __iter__": (FileWithoutIter, "wasn't noted", "Pass bytes"),
    "seek fails": (lambda: SeekFails(b"once"), "of class SeekFails, and can't go back", "read()"),
    "seek isn't there": (lambda: SeekIsntThere(b"once"), "can't go back to where it began (NotImplementedError)", "read()"),
    "seek stays": (lambda: SeekStays(b"once"), "whose seek() doesn't go", "read()"),
    "seek and tell lie": (lambda: SeekAndTellLie(b"once"), "of class SeekAndTellLie, whose seek() says", "read()"),
    "an answer": (lambda: urllib3.HTTPResponse(io.BytesIO(b"once"), preload_content=False), "a stream", "read()"),
    "closed": (lambda: ClosesAtItsEnd(b"once"), "has been closed", "Keep it open"),
    "shrunk": (lambda: Shrinks(b"once"), "has become shorter", "nobody changes"),
}
if SENDS_UTF8 and REQUESTS >= (2, 32):  # before, text couldn't be sent in chunks
    ONE_SHOT["iterated text"] = (_iterated_text, "a text file that is being iterated", '"rb"')


@pytest.mark.filterwarnings("ignore::requests.exceptions.FileModeWarning")
@pytest.mark.parametrize("kind", ONE_SHOT)
def test_a_body_that_can_be_sent_only_once_isnt_paid_for_and_says_what_to_pass(
    either_session, paywall: Paywall, lnd: FakeLnd, books: Books, kind: str
) -> None:
    """The money would be gone, and the server would get an empty body, half of one, or wait for the rest."""
    make, what, instead = ONE_SHOT[kind]
    with pytest.raises(UnreplayableBodyError) as caught:
        either_session.post(paywall.url, data=make())
    assert caught.value.spent is False
    assert isinstance(caught.value, requests.RequestException)
    assert caught.value.request is not None
    assert caught.value.response.status_code == 402
    told, spent, advice = str(caught.value).partition("Nothing was spent. ")
    assert what in told
    assert spent
    assert instead in advice
    assert (lnd.payments, lnd.orders, books.rows) == ([], [], [])
    assert [request.status for request in paywall.requests] == [402]
    assert paywall.requests[0].body == b"once"
    (line,) = books.lines
    assert (line["payment"], line["outcome"]["error"]["code"]) == (None, "unreplayable_body")


@pytest.mark.filterwarnings("ignore::requests.exceptions.FileModeWarning")
@pytest.mark.parametrize("kind", ONE_SHOT)
def test_a_stored_token_serves_a_body_that_can_be_sent_only_once(either_session, paywall: Paywall, books: Books, kind: str) -> None:
    """Nothing is sent twice then: who pays for the path with a GET can stream whatever he likes to it."""
    either_session.get(paywall.url)
    response = either_session.post(paywall.url, data=ONE_SHOT[kind][0]())
    assert response.status_code == 200
    assert payment_of(response).reused
    assert [request.status for request in paywall.requests] == [402, 200, 200]
    assert paywall.requests[-1].body == b"once"
    books.check()


@pytest.mark.parametrize("kind", ONE_SHOT)
@pytest.mark.filterwarnings("ignore::requests.exceptions.FileModeWarning")
def test_free_pages_take_every_body(session, paywall: Paywall, books: Books, kind: str) -> None:
    """Whoever streams to a page that costs nothing would have to change his program for a payment that never comes."""
    assert session.post(paywall.url_for("/free"), data=ONE_SHOT[kind][0]()).status_code == 200
    assert paywall.requests[-1].body == b"once"


def test_a_released_memoryview_isnt_paid_for(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """As with a closed file."""
    view = memoryview(b"once")
    session = make_session(confirm=lambda quote: view.release() or True)
    with pytest.raises(UnreplayableBodyError, match="released"):
        session.post(paywall.url, data=view)
    assert (lnd.orders, books.rows) == ([], [])


def test_a_body_put_into_a_prepared_request_by_hand_isnt_paid_for(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Nobody knows where such a file began: from its start may be twice what was sent."""
    prepared = session.prepare_request(requests.Request("POST", paywall.url))
    prepared.body = io.BytesIO(b"skipped" + b"once")
    prepared.body.seek(7)
    prepared.headers["Content-Length"] = "4"
    with pytest.raises(UnreplayableBodyError, match="wasn't noted"):
        session.send(prepared)
    assert lnd.orders == []


def test_a_body_closed_while_confirm_is_asked_isnt_paid_for(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A person thinks for minutes, and meanwhile a `with` block ends or a job is cancelled: the money would buy an exception."""
    body = io.BytesIO(b"body")
    asked = []

    def confirm(quote: Any) -> bool:
        asked.append(quote)
        body.close()
        return True

    session = make_session(confirm=confirm)
    with session.limit(sats=100) as limit, pytest.raises(UnreplayableBodyError, match="closed") as caught:
        session.post(paywall.url, data=body)
    assert caught.value.spent is False
    assert len(asked) == 1
    assert (lnd.orders, books.rows, limit.spent_msat) == ([], [], 0)
    assert session.post(paywall.url, data=b"body").status_code == 200
    books.check()


def test_a_body_lost_while_the_node_pays_says_that_the_payment_is_kept(
    session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Nobody could foresee it; but the caller must hear that money left, and the next call must not pay again."""

    class Lost(io.BytesIO):
        def seek(self, *args: int) -> int:
            if lnd.payments:
                raise ValueError("I/O operation on a detached buffer")
            return super().seek(*args)

    with pytest.raises(UnreplayableBodyError, match="tokens are kept") as caught:
        session.post(paywall.url, data=Lost(b"body"))
    assert caught.value.spent is True
    assert "Nothing was spent" not in str(caught.value)
    assert caught.value.response.status_code == 402
    assert caught.value.response.history == []
    assert session.post(paywall.url, data=io.BytesIO(b"body")).payment.reused
    assert len(lnd.payments) == 1
    assert [request.body for request in paywall.requests if request.paid] == [b"body"]
    books.check()


def test_a_body_that_was_moved_while_the_node_paid_is_sent_from_its_start(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Who looks into the file from another thread, a progress bar or a checksum, would have half of it paid for and sent."""
    body = io.BytesIO(CONTENT)
    body.seek(7)
    lnd.hang_next()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.post, paywall.url, data=body)
        lnd.wait_for(lambda node: bool(node.payments))
        body.seek(0, io.SEEK_END)
        lnd.release()
        assert call.result(30).status_code == 200
    assert [request.body for request in paywall.requests] == [CONTENT[7:]] * 2


def test_unpayable_return_gives_the_402_of_a_body_that_cant_be_sent_again(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Whoever asked for the 402 instead of an error gets it here too."""
    response = make_session(unpayable="return").post(paywall.url, data=iter([b"once"]))
    assert (response.status_code, response.history) == (402, [])
    assert lnd.orders == []


# -- the caller's request and file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "file", "form"])
def test_the_callers_prepared_request_stays_as_it_was(either_session, paywall: Paywall, tmp_path: Path, kind: str) -> None:
    """Whoever sends it again, to somebody else perhaps, would send a token, or cookies that aren't his."""
    paywall.respond = lambda request: (200, {"Set-Cookie": "paid=1"}, b"")
    data: Any = {"bytes": b"0123456789", "form": {"a": "1"}, "file": io.BytesIO(b"0123456789")}[kind]
    if kind == "file":
        data.seek(3)
    prepared = either_session.prepare_request(requests.Request("POST", paywall.url, data=data, cookies={"own": "1"}))
    before = {name: value.copy() if name == "headers" else value for name, value in vars(prepared).items()}
    jar = list(prepared._cookies)
    first = either_session.send(prepared)
    assert first.status_code == 200
    after = dict(vars(prepared))
    assert after == before
    assert list(prepared._cookies) == jar
    assert prepared.body is before["body"]
    assert first.request is not prepared
    assert first.request.headers["Authorization"].startswith(("L402 ", "LSAT "))
    if kind == "file":
        assert data.tell() == 10, "as after any request: at its end"
        data.seek(3)
    assert either_session.send(prepared).status_code == 200
    assert [request.status for request in paywall.requests] == [402, 200, 200]
    assert len({request.body for request in paywall.requests}) == 1


def test_a_file_that_was_moved_after_it_was_prepared_is_sent_from_there_with_a_token(session, paywall: Paywall) -> None:
    """As with `requests`: it is sent from where it stands. A token that goes along changes nothing of it."""
    session.get(paywall.url)
    body = io.BytesIO(b"0123456789")
    prepared = session.prepare_request(requests.Request("POST", paywall.url, data=body))
    body.seek(4)
    prepared.headers["Content-Length"] = "6"
    assert session.send(prepared).status_code == 200
    assert paywall.requests[-1].body == b"456789"


def test_a_guessed_token_leaves_a_file_alone(session, paywall: Paywall) -> None:
    """Only what costs nothing to send twice is sent with a token that may not be welcome."""
    session.get(paywall.url)
    body = io.BytesIO(b"0123456789")
    prepared = session.prepare_request(requests.Request("GET", paywall.url_for("/elsewhere"), data=body))
    body.seek(4)
    prepared.headers["Content-Length"] = "6"
    session.send(prepared)
    assert not paywall.requests[2].authorized
    assert paywall.requests[2].body == b"456789"


def test_one_body_in_two_threads_is_never_paid_twice(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Two threads that read one file garble each other's bodies, with or without us; they must not pay for it twice."""
    session = make_session()
    shared = io.BytesIO(CONTENT)
    start = threading.Barrier(4)

    def post(body: Any) -> int | None:
        start.wait()
        try:
            return session.post(paywall.url, data=body, timeout=2).status_code
        except requests.RequestException:
            return None

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(post, [shared, shared, CONTENT, CONTENT]))
    assert statuses[2:] == [200, 200]
    assert len(lnd.payments) == 1
    whole = [request.body == CONTENT for request in paywall.requests if request.paid]
    assert sum(whole) >= 2
    books.check()


# -- framing ------------------------------------------------------------------------------------------------------------------


def test_expect_100_continue_goes_out_both_times(session, paywall: Paywall, books: Books) -> None:
    """`requests` doesn't wait for the 100 and steps over it: so does a paid retry."""
    check_sent_alike(session, paywall, "page", lambda: {"data": io.BytesIO(CONTENT), "headers": {"Expect": "100-continue"}})
    assert [request.headers.get("Expect") for request in paywall.requests] == ["100-continue"] * 3
    books.check()


def test_a_streamed_upload_of_known_length_keeps_it(session, paywall: Paywall) -> None:
    """An object that knows its length and can go back isn't sent in chunks, which many servers refuse."""

    class Known(Reader):
        def __len__(self) -> int:
            return len(CONTENT)

    check_sent_alike(session, paywall, "page", lambda: {"data": Known(CONTENT)})
    assert paywall.requests[-1].headers["Content-Length"] == str(len(CONTENT))
    assert "Transfer-Encoding" not in paywall.requests[-1].headers


@pytest.mark.parametrize("early", ["close", "reset"])
@pytest.mark.parametrize("size", [10, 200_000, 24 << 20])
@pytest.mark.parametrize("kind", ["bytes", "file", "chunks"])
def test_a_402_before_the_body_was_read_is_paid_once_or_not_at_all(
    make_session, lnd: FakeLnd, books: Books, early: Any, size: int, kind: str
) -> None:
    """Servers answer large uploads before they are through, and hang up. What the client sees of it is the network's mood: the
    402, or a reset. It must never be a payment for each try, nor one whose token is lost.
    """
    content = b"x" * size
    with FrugalPaywall(lnd, price_msat=10_000, early=early) as wall:
        session = make_session()
        for attempt in range(3):
            body: Any = {"bytes": content, "file": io.BytesIO(content), "chunks": Lines(content)}[kind]
            try:
                response = session.post(wall.url, data=body, timeout=20)
            except requests.ConnectionError:
                books.check()
                assert [line["outcome"]["error"]["code"] for line in books.lines] == ["ConnectionError"] * (attempt + 1)
                assert lnd.payments == []
            else:
                assert response.status_code == 200
                break
        wall.early = ""
        assert session.post(wall.url, data=content, timeout=20).status_code == 200
        assert len(lnd.payments) == 1
        digest = hashlib.sha256(content).hexdigest()
        assert wall.bodies[-1] == (size, digest)
        assert {body for body in wall.bodies if body[0]} == {(size, digest)}
    books.check()


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_a_large_body_costs_no_memory(make_session, lnd: FakeLnd, tmp_path: Path, kind: str) -> None:
    """An upload of gigabytes that `requests` can make must not need them twice in memory because it is paid for."""
    size = 48 << 20
    content = b"x" * size
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / "large"
    path.write_bytes(content)
    with FrugalPaywall(lnd, price_msat=10_000) as wall, path.open("rb") as file:
        session = make_session()
        if kind == "file":
            del content
        gc.collect()
        tracemalloc.start()
        try:
            response = session.post(wall.url, data=file if kind == "file" else content)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert response.status_code == 200
        assert wall.bodies == [(size, digest)] * 2
    assert peak < 16 << 20


# -- redirects ----------------------------------------------------------------------------------------------------------------

#: status → the method and whether the body arrives behind it, for a POST.
AFTER = {301: ("GET", False), 302: ("GET", False), 303: ("GET", False), 307: ("POST", True), 308: ("POST", True)}


@pytest.fixture
def second(lnd: FakeLnd) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=20_000, service="second") as wall:
        yield wall


@pytest.mark.parametrize("status", AFTER)
@pytest.mark.parametrize("paid", ["first", "second", "both"])
@pytest.mark.parametrize("kind", ["bytes", "file", "lines"])
def test_bodies_are_redirected_as_requests_does_it(
    either_session, paywall: Paywall, second: Paywall, lnd: FakeLnd, books: Books, kind: str, paid: str, status: int
) -> None:
    """Each hop and each retry needs the body from its start, or none: else a 307 loses it, or a 303 repeats an order."""
    target = second.url if paid != "first" else second.url_for("/free")
    start = paywall.url
    if paid == "second":
        start = paywall.url_for(f"/redirect?status={status}&to={target}")
    paywall.respond = lambda request: (status, {"Location": target}, b"")
    content = b"skipped" + CONTENT
    body: Any = {"bytes": CONTENT, "file": io.BytesIO(content), "lines": Lines(content)}[kind]
    if kind != "bytes":
        body.seek(7)
    response = either_session.post(start, data=body)
    assert response.status_code == 200
    method, has_body = AFTER[status]
    statuses = {"first": ([402, status], [200]), "second": ([status], [402, 200]), "both": ([402, status], [402, 200])}[paid]
    assert [(r.status, r.method, r.body) for r in paywall.requests] == [(each, "POST", CONTENT) for each in statuses[0]]
    behind = CONTENT if has_body else b""
    assert [(r.status, r.method, r.body) for r in second.requests] == [(each, method, behind) for each in statuses[1]]
    for request in second.requests:
        assert ("Content-Length" in request.headers) is (has_body and kind != "lines")
        assert ("Transfer-Encoding" in request.headers) is (has_body and kind == "lines")
    assert [r.status_code for r in response.history] == (statuses[0] + statuses[1])[:-1]
    assert lnd.spent_msat == {"first": 10_000, "second": 20_000, "both": 30_000}[paid]
    books.check()


@pytest.mark.parametrize("kind", ["pipe", "seek fails"])
def test_a_body_that_cant_go_back_isnt_redirected(
    either_session, paywall: Paywall, second: Paywall, lnd: FakeLnd, books: Books, kind: str
) -> None:
    """The error is the one of `requests`, and what is behind the redirect isn't paid for."""
    either_session.get(paywall.url)
    paywall.respond = lambda request: (307, {"Location": second.url}, b"")
    with pytest.raises(requests.exceptions.UnrewindableBodyError):
        either_session.post(paywall.url, data=ONE_SHOT[kind][0]())
    assert second.requests == []
    assert len(lnd.payments) == 1
    books.check()


def test_a_generator_isnt_paid_for_behind_a_redirect(
    session, paywall: Paywall, second: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """`requests` follows with what is left of it, nothing: that isn't worth any money."""
    start = paywall.url_for(f"/redirect?status=307&to={second.url}")
    with pytest.raises(UnreplayableBodyError):
        session.post(start, data=iter([b"once"]))
    assert (lnd.orders, books.rows) == ([], [])


def test_a_body_that_only_says_it_can_seek(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Found after the payment it would be a bare OSError, and the money gone."""

    class Pipe(io.BytesIO):
        sought = 0

        def seek(self, *args: int) -> int:
            if self.sought >= 2 and args[0] == 0 and len(args) == 1 and self.read(1) == b"":
                raise OSError("Illegal seek")
            self.sought += 1
            return super().seek(*args)

    with pytest.raises(UnreplayableBodyError):
        session.post(paywall.url, data=Pipe(b"body"))
    assert lnd.payments == []
