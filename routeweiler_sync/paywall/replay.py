"""Sending a request a second time: whether its body allows that, the copy to send, and draining the first answer.

Why and when a request is sent again is left to `handler`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.structures import CaseInsensitiveDict
from requests.utils import super_len

from .._core.deadline import monotonic_s
from ..errors import UnreplayableBodyError

#: A superseded answer is read up to this many bytes and for this long. If more is left then, its connection is closed. An endless
#: body must not fill the memory, and an answer that isn't read at all would keep its pooled connection.
MAX_DRAIN_BYTES = 64 * 1024
MAX_DRAIN_S = 1.0
_CHUNK_BYTES = 16 * 1024
#: The boundary in a Content-Type.
_BOUNDARY = re.compile(r'\s*multipart/.*?;\s*boundary="?([^";,\s]+)', re.IGNORECASE)


def is_in_memory(request: requests.PreparedRequest) -> bool:
    """Return whether the body of ``request`` can be sent any number of times as it is: there is none, or it is text or bytes."""
    return request.body is None or isinstance(request.body, (str, bytes, bytearray, memoryview))


def check_replayable(request: requests.PreparedRequest) -> None:
    """Check that the body of ``request``, which has been sent once, can be sent again exactly as it was.

    A file is left at the position where the body begins.

    Raises: UnreplayableBodyError if it can't. The error's advice says what to pass instead.
    """
    try:
        obstacle = _obstacle(request)
    except Exception as error:  # noqa: BLE001  (the caller's object may raise anything; what fails now would fail after paying)
        obstacle = _unseekable(request.body, error)
    if obstacle is not None:
        raise _error(*obstacle)


def rewind(request: requests.PreparedRequest) -> None:
    """Move a file back to the position where the body of ``request`` begins. Do nothing for other bodies.

    Raises: UnreplayableBodyError if the file can't be moved there any more, though `check_replayable` found that it could.
    """
    body: Any = request.body
    position = getattr(request, "_body_position", None)
    # The library `responses` replaces a file by its bytes and leaves the position: bytes have no seek().
    if isinstance(position, int) and hasattr(body, "seek"):
        try:
            body.seek(position)
        except Exception as error:
            raise _error(*(_CLOSED if _is_closed(body) else _unseekable(body, error))) from error


def again(request: requests.PreparedRequest, answers: list[requests.Response]) -> requests.PreparedRequest:
    """Return a copy of ``request`` to send after ``answers``, with the cookies that they set, merged as `HTTPDigestAuth` does.

    The body isn't copied: it is the same object.
    """
    copy: requests.PreparedRequest
    if not answers:  # only a header of the copy will be changed, so the cookies needn't be copied
        copy = object.__new__(requests.PreparedRequest)
        copy.__dict__.update(request.__dict__)
        copy.headers = _copied(request.headers)
        return copy
    copy = requests.PreparedRequest.copy(request)
    if copy.headers is None:
        copy.headers = CaseInsensitiveDict()
    jar = copy._cookies
    if jar is not None:
        cookie = copy.headers.pop("Cookie", None)
        if cookie is not None and cookie != get_cookie_header(jar, copy):
            copy.headers["Cookie"] = cookie  # the caller set this header: it wasn't made from the jar
        for answer in answers:
            extract_cookies_to_jar(jar, request, answer.raw)
        copy.prepare_cookies(jar)
    return copy


def _copied(headers: Any) -> Any:
    """Return a copy of ``headers``. Their own `copy` sets each header anew, and each call with a token would pay for that."""
    if headers is None:
        return CaseInsensitiveDict()
    store = getattr(headers, "_store", None)
    if type(headers) is not CaseInsensitiveDict or type(store) is not OrderedDict:
        return headers.copy()
    copy: Any = CaseInsensitiveDict()
    copy._store = store.copy()
    return copy


def resource_digest(request: requests.PreparedRequest) -> str:
    """Return a digest of method, path with query, and body. It identifies the page, and shows nothing of what they hold.

    A path that begins with several slashes counts as one with a single slash, as `requests` sends it. The boundary that parts of a
    form are separated by, which is new in each request, doesn't count. A file is left at the position where it was.
    """
    path = request.path_url or ""
    page = (f"/{path.lstrip('/')}" if path.startswith("//") else path).encode("utf-8", "surrogatepass")
    method = (request.method or "GET").upper().encode("utf-8", "surrogatepass")
    body = _body_digest(request)
    # Without method and body: the form that ledgers of version 1 hold for every request.
    return hashlib.sha256(page if method == b"GET" and not body else b"\0".join((method, page, body))).hexdigest()


def with_steady_boundary(request: requests.PreparedRequest) -> requests.PreparedRequest | None:
    """Return a copy of ``request`` whose form is the same, with a boundary made from what its parts hold; None if there is none.

    A form gets a new boundary whenever it is encoded, so each run sends other bytes. A payment that is good for one body alone,
    which a challenge with a digest asks for, could never be presented by a later run. None too if it has such a boundary already,
    if the body can't be encoded again with certainty, or if a header may hold a digest or signature of it.
    """
    headers, body = request.headers, request.body
    content_type = "" if headers is None else _text(headers.get("Content-Type") or "")
    found = _BOUNDARY.match(content_type)
    if found is None or headers is None or not isinstance(body, (str, bytes)) or any(map(_may_sign, headers.items())):
        return None
    try:
        content = body.encode("ascii") if isinstance(body, str) else body
        old = b"--" + found[1].encode("ascii")
    except UnicodeEncodeError:
        return None
    lines = list(_boundary_lines(old, content))
    if len(lines) < 2 or content.count(old) != len(lines):
        return None
    ends, starts = [0, *(line.end() for line in lines)], [*(line.start() for line in lines), len(content)]
    parts = [content[end:start] for end, start in zip(ends, starts, strict=True)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    boundary = digest.hexdigest()[:32].encode()
    while any(boundary in part for part in parts):
        boundary = hashlib.sha256(boundary).hexdigest()[:32].encode()
    if boundary == found[1].encode("ascii"):
        return None
    steady = again(request, [])
    steady.body = (b"--" + boundary).join(parts)
    steady.headers["Content-Type"] = content_type[: found.start(1)] + boundary.decode() + content_type[found.end(1) :]
    if "Content-Length" in steady.headers:
        steady.headers["Content-Length"] = str(len(steady.body))
    return steady


def _may_sign(header: tuple[Any, Any]) -> bool:
    """Return whether ``header`` may hold a digest or signature of the body, which another boundary would make wrong."""
    name, value = _text(header[0]).lower(), _text(header[1]).lower()
    if name in ("authorization", "proxy-authorization"):
        return not value.startswith(("basic ", "bearer ", "digest "))
    return re.search("digest|md5|sha|sig|hmac|checksum|hash", name) is not None


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def content_digest(request: requests.PreparedRequest) -> str | None:
    """Return the SHA-256 of the body of ``request`` as it is sent, in base64; None if it can't be read again.

    A file is left at the position where it was.
    """
    body: Any = request.body
    try:
        if body is None or isinstance(body, str):
            digest = hashlib.sha256((body or "").encode("utf-8", "surrogatepass")).digest()
        elif not hasattr(body, "read"):
            digest = hashlib.sha256(memoryview(body).cast("B")).digest()
        else:
            digest = _file_digest(body, request)
    except Exception:  # noqa: BLE001  (the caller's object may raise anything; `check_replayable` says what is wrong with it)
        return None
    return base64.b64encode(digest).decode("ascii")


def _body_digest(request: requests.PreparedRequest) -> bytes:
    """Return the digest of the body, empty if there is none. A body that can't be read again counts by its class alone."""
    body: Any = request.body
    if not body and is_in_memory(request):
        return b""
    try:
        if isinstance(body, str):
            return hashlib.sha256(body.encode("utf-8", "surrogatepass")).digest()
        if not hasattr(body, "read"):
            return _bytes_digest(memoryview(body).cast("B"), request)
        return _file_digest(body, request)
    except Exception:  # noqa: BLE001  (the caller's object may raise anything; `check_replayable` says what is wrong with it)
        return type(body).__name__.encode()


def _bytes_digest(body: memoryview, request: requests.PreparedRequest) -> bytes:
    """Return the digest of a body in memory, which isn't copied.

    The boundary in the lines that separate the parts of a form doesn't count. What the parts hold does.
    """
    content_type = "" if request.headers is None else str(request.headers.get("Content-Type", ""))
    found = _BOUNDARY.match(content_type)
    digest, at = hashlib.sha256(), 0
    if found is not None:
        for line in _boundary_lines(b"--" + found[1].encode(), body):
            digest.update(body[at : line.start()])
            digest.update(b"--")
            at = line.end()
    digest.update(body[at:])
    return digest.digest()


def _boundary_lines(delimiter: bytes, body: bytes | memoryview) -> Iterator[re.Match[bytes]]:
    """Return where ``delimiter``, two dashes and the boundary, begins a line of ``body`` that separates or ends parts of a form."""
    return re.finditer(rb"(?:^|(?<=\r\n))" + re.escape(delimiter) + rb"(?=(?:--)?[ \t]*(?:\r\n|$))", body)


def _file_digest(body: Any, request: requests.PreparedRequest) -> bytes:
    """Return the digest of a file from where the request's body begins. The file is at its former position afterwards."""
    before, digest = body.tell(), hashlib.sha256()
    body.seek(request._body_position)
    try:
        while chunk := body.read(_CHUNK_BYTES):
            digest.update(chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else chunk)
    finally:
        body.seek(before)
    return digest.digest()


# -- why a body can't be sent again, and what to pass instead -------------------------------------------------------------------

#: (why the body can't be sent again, what to pass instead), both without a full stop.
_Obstacle = tuple[str, str]

_CLOSED = "the file has been closed since", "Keep it open until the call has returned"
_JOIN = 'Pass bytes, b"".join(…) of it, or write it to a tempfile.TemporaryFile() and pass that'
_COPY = "Pass its content as bytes, data=….read(), or copy it into a tempfile.TemporaryFile() and pass that"


def _error(what: str, instead: str) -> UnreplayableBodyError:
    return UnreplayableBodyError(
        f"The server wants to be paid, but the request's body can't be sent a second time: {what}.", advice=f"{instead}."
    )


def _obstacle(request: requests.PreparedRequest) -> _Obstacle | None:
    """Return why the body of ``request`` can't be sent again and what to pass instead, or None if it can be.

    Raises: whatever the body itself raises.
    """
    body: Any = request.body
    if body is None or isinstance(body, (str, bytes)):
        return None
    if not hasattr(body, "read"):  # urllib3 reads from whatever has a read(), even if it is bytes-like too
        try:
            memoryview(body).release()
        except ValueError:
            return "it is a memoryview that has been released since", "Keep it until the call has returned"
        except (TypeError, BufferError):
            pass
        else:
            return _SHRUNK if _is_too_short(request, body) else None
    position: Any = getattr(request, "_body_position", None)
    if _is_closed(body):
        return _one_shot(body, position) if _is_used_up(body) else _CLOSED
    if not isinstance(position, int) or not hasattr(body, "seek"):
        return _one_shot(body, position)
    body.seek(position)  # called to find out: many objects have a seek() that raises
    is_text = isinstance(body, io.TextIOBase)
    if not is_text and hasattr(body, "tell") and body.tell() != position:
        return f"it is {_kind(body)}, whose seek() doesn't go to the given position", _COPY
    if _is_too_short(request, body):
        return _SHRUNK
    if _content_length(request) and callable(getattr(body, "read", None)):
        is_there = bool(body.read(1))
        body.seek(position)
        if not is_there:
            return f"it is {_kind(body)}, whose seek() says that it went back, although it didn't", _COPY
    return None


_SHRUNK = "it has become shorter since it was first sent", "Pass bytes, or a file that nobody changes until the call has returned"


def _one_shot(body: Any, position: Any) -> _Obstacle:
    """Return the obstacle of a body that can't go back to where it began. ``position`` is where, None if it wasn't noted."""
    kind = _kind(body)
    if isinstance(body, GeneratorType):
        return "it is a generator, which the first request has used up", _JOIN
    if not hasattr(body, "read"):
        what = "an iterator" if hasattr(body, "__next__") else "an iterable, which may give something else the second time"
        return f"it is {kind}, {what}", _JOIN
    if hasattr(body, "to_string"):  # requests-toolbelt's MultipartEncoder, its monitor, and classes with their interface
        return (
            f"it is {kind}, an encoder that can be read only once",
            "Pass its bytes, data=….to_string() (the Content-Type as before), or give the parts to requests itself: files=",
        )
    if isinstance(body, io.TextIOBase) and body.seekable():
        return "it is a text file that is being iterated, so its position isn't known", 'Open it in binary mode, open(…, "rb")'
    if position is None and hasattr(body, "seek") and hasattr(body, "tell"):
        return (
            f"it is {kind}, and its position wasn't noted when the request was prepared",
            "Pass bytes (of an mmap: a memoryview), or an open file as data= of the request",
        )
    return f"it is {kind}, a stream that can't go back (as pipes, sockets and terminals are)", _COPY


def _unseekable(body: Any, error: Exception) -> _Obstacle:
    return f"it is {_kind(body)}, and can't go back to where it began ({type(error).__name__})", _COPY


def _kind(body: Any) -> str:
    return f"of class {type(body).__name__}"


def _is_closed(body: Any) -> bool:
    return getattr(body, "closed", False) is True


def _is_used_up(body: Any) -> bool:
    """Return whether a closed ``body`` never could go back: a response of urllib3, for instance, closes itself at its end."""
    try:
        return hasattr(body, "seekable") and not body.seekable()
    except ValueError:  # raised by a closed file
        return False


def _content_length(request: requests.PreparedRequest) -> int | None:
    """Return the Content-Length header of ``request`` in bytes, or None if the body is sent in chunks."""
    if request.headers is None or "Transfer-Encoding" in request.headers:
        return None
    length = str(request.headers.get("Content-Length"))
    return int(length) if length.isdecimal() else None


def _is_too_short(request: requests.PreparedRequest, body: Any) -> bool:
    """Return whether less of ``body`` is left than Content-Length announces. The server would wait for the rest and never answer.

    False for a text file, whose length isn't measured: `requests` measures it wrongly, and warns each time.
    """
    length = _content_length(request)
    return length is not None and not isinstance(body, io.TextIOBase) and super_len(body) < length


# -- the superseded answer ------------------------------------------------------------------------------------------------------


def drain(response: requests.Response) -> None:
    """Read the rest of a superseded answer within `MAX_DRAIN_BYTES` and `MAX_DRAIN_S`, then release or close its connection.

    The connection goes back to the pool if all was read, else it is closed. What was read becomes ``response.content``. Raises
    nothing.
    """
    if response._content_consumed:
        response.close()
        return
    content, at_end = b"", False
    with contextlib.suppress(Exception):  # the answer is superseded: whatever is wrong with its body doesn't matter
        content, at_end = _read(response.raw)
    response._content = content
    response._content_consumed = True
    if not at_end:
        # With _content_consumed set, Response.close() skips raw.close(), and the half-read connection would return to the pool.
        with contextlib.suppress(Exception):
            response.raw.close()
    with contextlib.suppress(Exception):
        response.close()


def _read(raw: Any) -> tuple[bytes, bool]:
    """Read ``raw`` within the bounds. Return what could be read, and whether that was all."""
    content, end_s = bytearray(), monotonic_s() + MAX_DRAIN_S
    # read1 returns what has arrived. read waits until all the requested bytes are there, however slowly they arrive.
    read1 = getattr(raw, "read1", None)
    while len(content) < MAX_DRAIN_BYTES:
        left_s = end_s - monotonic_s()
        if left_s <= 0:
            return bytes(content), False
        _set_timeout(raw, left_s)
        want = min(_CHUNK_BYTES, MAX_DRAIN_BYTES - len(content))
        chunk = read1(want, decode_content=True) if read1 is not None else raw.read(want, decode_content=True)
        if not chunk:
            return bytes(content), True
        content += chunk
    return bytes(content), False


def _set_timeout(raw: Any, timeout_s: float) -> None:
    """Set how long the next read from ``raw`` may wait, if ``raw`` still has its connection.

    A connection that has gone back to the pool isn't touched:
      1. With the last byte of the body, the connection goes back to the pool, and ``raw`` no longer has it.
      2. Another thread may take the connection at once, and wait on it for an answer of its own.
      3. A timeout set now would cut that wait short, or make the other thread see an end of the connection.
    So the timeout isn't reset afterwards either: whichever thread takes a connection from the pool sets its own.
    """
    sock = getattr(getattr(raw, "connection", None), "sock", None)
    if sock is not None:
        sock.settimeout(timeout_s)
