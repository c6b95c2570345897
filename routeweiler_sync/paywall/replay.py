"""Sending a request a second time: whether its body bears it, the copy that goes out, and what becomes of the first answer."""

from __future__ import annotations

import contextlib
import io
import time
from types import GeneratorType
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.structures import CaseInsensitiveDict
from requests.utils import super_len

from ..errors import UnreplayableBodyError

#: Of an answer that is superseded, this much is read, for this long; then its connection is closed. An endless body must not
#: fill the memory, and one that isn't read at all would keep a pooled connection.
MAX_DRAIN_BYTES = 64 * 1024
MAX_DRAIN_S = 1.0
_CHUNK_BYTES = 16 * 1024


def is_in_memory(request: requests.PreparedRequest) -> bool:
    """Whether ``request``'s body can be sent again and again without anybody touching it: there is none, or it is text or bytes."""
    return request.body is None or isinstance(request.body, (str, bytes, bytearray, memoryview))


def check_replayable(request: requests.PreparedRequest) -> None:
    """UnreplayableBodyError unless ``request``'s body, which has been sent, can be sent again exactly as it was.

    It says what to pass instead. A file is left where the body begins.
    """
    try:
        obstacle = _obstacle(request)
    except Exception as error:  # noqa: BLE001  (a body is any object of the caller's: what it can't do now it can't do once paid)
        obstacle = _unseekable(request.body, error)
    if obstacle is not None:
        raise _error(*obstacle)


def rewind(request: requests.PreparedRequest) -> None:
    """Put a file back to where ``request``'s body begins. UnreplayableBodyError where it has lost that since it was checked."""
    body: Any = request.body
    position = getattr(request, "_body_position", None)
    # `responses` swaps a file for its bytes and leaves the position: rewind only what can be.
    if isinstance(position, int) and hasattr(body, "seek"):
        try:
            body.seek(position)
        except Exception as error:
            raise _error(*(_CLOSED if _is_closed(body) else _unseekable(body, error))) from error


def again(request: requests.PreparedRequest, answers: list[requests.Response]) -> requests.PreparedRequest:
    """A copy of ``request`` to send after ``answers``: cookies merged as `HTTPDigestAuth` does it. The body is the very same."""
    copy: requests.PreparedRequest
    if not answers:  # nothing of it will be changed but a header: there is no need to copy the cookies
        copy = object.__new__(requests.PreparedRequest)
        copy.__dict__.update(request.__dict__)
        copy.headers = CaseInsensitiveDict() if request.headers is None else request.headers.copy()
        return copy
    copy = requests.PreparedRequest.copy(request)
    if copy.headers is None:
        copy.headers = CaseInsensitiveDict()
    jar = copy._cookies
    if jar is not None:
        cookie = copy.headers.pop("Cookie", None)
        if cookie is not None and cookie != get_cookie_header(jar, copy):
            copy.headers["Cookie"] = cookie  # the caller's own, not the jar's
        for answer in answers:
            extract_cookies_to_jar(jar, request, answer.raw)
        copy.prepare_cookies(jar)
    return copy


# -- what keeps a body from being sent again, and what to pass instead ----------------------------------------------------------

_Obstacle = tuple[str, str]

_CLOSED = "the file has been closed since", "Keep it open until the call has returned"
_JOIN = 'Pass bytes, b"".join(…) of it, or write it to a tempfile.TemporaryFile() and pass that'
_COPY = "Pass what it holds as bytes, data=….read(), or copy it into a tempfile.TemporaryFile() and pass that"


def _error(what: str, instead: str) -> UnreplayableBodyError:
    return UnreplayableBodyError(
        f"The server wants to be paid, but the request's body can't be sent a second time: {what}.", advice=f"{instead}."
    )


def _obstacle(request: requests.PreparedRequest) -> _Obstacle | None:
    """(what it is, what to pass instead); None where there is none. Whatever the body itself raises comes through."""
    body: Any = request.body
    if body is None or isinstance(body, (str, bytes)):
        return None
    if not hasattr(body, "read"):  # else it is read, whatever else it may be: as urllib3 has it
        try:
            memoryview(body).release()
        except ValueError:
            return "it is a memoryview that has been released since", "Keep it until the call has returned"
        except (TypeError, BufferError):
            pass
        else:
            return _SHRUNK if _is_cut_short(request, body) else None
    position: Any = getattr(request, "_body_position", None)
    if _is_closed(body):
        return _one_shot(body, position) if _is_used_up(body) else _CLOSED
    if not isinstance(position, int) or not hasattr(body, "seek"):
        return _one_shot(body, position)
    body.seek(position)  # many have the method and can't
    is_text = isinstance(body, io.TextIOBase)
    if not is_text and hasattr(body, "tell") and body.tell() != position:
        return f"it is {_kind(body)}, whose seek() doesn't go where it should", _COPY
    if _is_cut_short(request, body):
        return _SHRUNK
    if _announced(request) and callable(getattr(body, "read", None)):
        is_there = bool(body.read(1))
        body.seek(position)
        if not is_there:
            return f"it is {_kind(body)}, whose seek() says that it went back, and it didn't", _COPY
    return None


_SHRUNK = "it has become shorter since it was first sent", "Pass bytes, or a file that nobody changes until the call has returned"


def _one_shot(body: Any, position: Any) -> _Obstacle:
    """What a body is whose beginning can't be gone back to."""
    kind = _kind(body)
    if isinstance(body, GeneratorType):
        return "it is a generator, which the first request has used up", _JOIN
    if not hasattr(body, "read"):
        what = "an iterator" if hasattr(body, "__next__") else "an iterable, which may give something else when it is asked again"
        return f"it is {kind}, {what}", _JOIN
    if hasattr(body, "to_string"):  # requests-toolbelt's MultipartEncoder, its monitor, and what follows them
        return (
            f"it is {kind}, an encoder that can be read only once",
            "Pass its bytes, data=….to_string() (the Content-Type as before), or give the parts to requests itself: files=",
        )
    if isinstance(body, io.TextIOBase) and body.seekable():
        return "it is a text file that is being iterated, and can't tell where it stands", 'Open it in binary mode, open(…, "rb")'
    if position is None and hasattr(body, "seek") and hasattr(body, "tell"):
        return (
            f"it is {kind}, and where it began wasn't noted when the request was prepared",
            "Pass bytes (of an mmap: a memoryview), or an open file as data= of the request",
        )
    return f"it is {kind}, a stream (as pipes, sockets and terminals are) that can't go back", _COPY


def _unseekable(body: Any, error: Exception) -> _Obstacle:
    return f"it is {_kind(body)}, and can't go back to where it began ({type(error).__name__})", _COPY


def _kind(body: Any) -> str:
    return f"of class {type(body).__name__}"


def _is_closed(body: Any) -> bool:
    return getattr(body, "closed", False) is True


def _is_used_up(body: Any) -> bool:
    """Whether a closed ``body`` could never go back: what urllib3 answers closes itself at its end."""
    try:
        return hasattr(body, "seekable") and not body.seekable()
    except ValueError:  # a closed file's
        return False


def _announced(request: requests.PreparedRequest) -> int | None:
    """The body's length in bytes, as the request's header has it; None where it goes out in chunks."""
    if request.headers is None or "Transfer-Encoding" in request.headers:
        return None
    length = str(request.headers.get("Content-Length"))
    return int(length) if length.isdecimal() else None


def _is_cut_short(request: requests.PreparedRequest, body: Any) -> bool:
    """Whether less is left of ``body`` than the header announces: the server would wait for the rest, and never serve.

    A text file isn't measured: `requests` warns whenever it does, and measures it wrongly.
    """
    announced = _announced(request)
    return announced is not None and not isinstance(body, io.TextIOBase) and super_len(body) < announced


# -- the answer that is superseded ----------------------------------------------------------------------------------------------


def drain(response: requests.Response) -> None:
    """Read what there is of a superseded answer, within the bounds, and give its connection back or close it. Raises nothing."""
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
    """(what could be read within the bounds, whether that was all)."""
    content, end_s = bytearray(), time.monotonic() + MAX_DRAIN_S
    # read1 gives what has arrived; read waits for all that was asked for, however slowly it drips.
    read1 = getattr(raw, "read1", None)
    while len(content) < MAX_DRAIN_BYTES:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return bytes(content), False
        _bound(raw, left_s)
        want = min(_CHUNK_BYTES, MAX_DRAIN_BYTES - len(content))
        chunk = read1(want, decode_content=True) if read1 is not None else raw.read(want, decode_content=True)
        if not chunk:
            return bytes(content), True
        content += chunk
    return bytes(content), False


def _bound(raw: Any, timeout_s: float) -> None:
    """Wait no longer than this for the next bytes, if the connection is still the answer's.

    With the last byte of the body it goes back to the pool, and another thread may be waiting on it at once: who touches its
    timeout then, cuts that one's wait short or has it see an end of the connection. Whoever takes it from the pool sets its own.
    """
    sock = getattr(getattr(raw, "connection", None), "sock", None)
    if sock is not None:
        sock.settimeout(timeout_s)
