"""Sending a request a second time: whether its body bears it, the copy that goes out, and what becomes of the first answer."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import requests
from requests.cookies import extract_cookies_to_jar, get_cookie_header
from requests.structures import CaseInsensitiveDict

#: Of an answer that is superseded, this much is read, for this long; then its connection is closed. An endless body must not
#: fill the memory, and one that isn't read at all would keep a pooled connection.
MAX_DRAIN_BYTES = 64 * 1024
MAX_DRAIN_S = 1.0
_CHUNK_BYTES = 16 * 1024


def is_replayable(request: requests.PreparedRequest) -> bool:
    """Whether ``request``'s body can be sent again exactly as it was."""
    body: Any = request.body
    if body is None or isinstance(body, (str, bytes, bytearray, memoryview)):
        return True
    position = getattr(request, "_body_position", None)
    if not isinstance(position, int) or not hasattr(body, "seek"):
        return False
    try:
        body.seek(position)  # many have the method and can't
    except (OSError, ValueError):
        return False
    return True


def again(request: requests.PreparedRequest, answers: list[requests.Response]) -> requests.PreparedRequest:
    """A copy of ``request`` to send again after ``answers``: body at its start, cookies merged as `HTTPDigestAuth` does it."""
    copy = requests.PreparedRequest.copy(request)
    if copy.headers is None:
        copy.headers = CaseInsensitiveDict()
    jar = copy._cookies
    if jar is not None and answers:
        cookie = copy.headers.pop("Cookie", None)
        if cookie is not None and cookie != get_cookie_header(jar, copy):
            copy.headers["Cookie"] = cookie  # the caller's own, not the jar's
        for answer in answers:
            extract_cookies_to_jar(jar, request, answer.raw)
        copy.prepare_cookies(jar)
    position = getattr(copy, "_body_position", None)
    body: Any = copy.body
    # `responses` swaps a file for its bytes and leaves the position: rewind only what can be.
    if isinstance(position, int) and hasattr(body, "seek"):
        body.seek(position)
    return copy


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
