"""Read what lnd's REST gateway sends into gRPC's terms, so that `replies` reads both alike. Pure.

Knows the forms (lnd 0.17 to 0.21, grpc-gateway v2): of a stream one JSON object a line, ``{"result": …}`` or ``{"error": {"code",
"message"}}``; of a single answer the object itself; of an error that the gateway makes ``{"code", "message"}`` without the wrapper.
``code`` is gRPC's number. The HTTP status is only the gateway's image of it, and says nothing that a proxy couldn't say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..http_calls import read_json
from ..replies import tidy
from .replies import BAD_REQUEST, UNKNOWN_HASH, WRONG_PATH

#: gRPC's codes by number (google.rpc.Code).
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_INVALID_ARGUMENT, _NOT_FOUND = 3, 5
_BAD_REQUEST_STATUS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class RestReply:
    """One message or error. ``code`` is ``OK``, or an error's: gRPC's name, one of `replies`, or ``HTTP 502`` for what isn't lnd's.

    ``message`` is set for ``OK`` alone: the JSON object. ``text`` is the text of an error.
    """

    code: str
    text: str = ""
    message: dict[str, Any] | None = None


def read_reply(status: int, content_type: str, data: bytes, *, is_stream: bool) -> RestReply:
    """Return what one line of a stream, or the body of a single answer, says. Whatever isn't lnd's is an error without meaning."""
    try:
        content = read_json(data)
    except ValueError:
        return _foreign(status, content_type)
    if not isinstance(content, dict):
        return _foreign(status, content_type)
    error = content.get("error")
    if is_stream and isinstance(error, dict):
        return _error(error, status, content_type, is_wrapped=True)
    if is_stream and status == 200 and isinstance(result := content.get("result"), dict):
        return RestReply(code="OK", message=result)
    if not is_stream and status == 200:
        return RestReply(code="OK", message=content)
    return _error(content, status, content_type, is_wrapped=False)


def _error(content: dict[str, Any], status: int, content_type: str, *, is_wrapped: bool) -> RestReply:
    number, text = content.get("code"), content.get("message")
    if isinstance(number, bool) or not isinstance(number, int) or not isinstance(text, str) or not 0 < number < len(_CODES):
        return _foreign(status, content_type)
    code = _CODES[number]
    if number == _INVALID_ARGUMENT and not is_wrapped and status == _BAD_REQUEST_STATUS:
        code = BAD_REQUEST
    elif number == _NOT_FOUND and text.strip() != UNKNOWN_HASH:
        code = WRONG_PATH
    return RestReply(code=code, text=text)


def _foreign(status: int, content_type: str) -> RestReply:
    return RestReply(code=f"HTTP {status}", text=f"{tidy(content_type) or 'no content type'}, nothing of lnd's")
