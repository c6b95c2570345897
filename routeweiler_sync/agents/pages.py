"""What an agent sees of a page: its text, cut at a stated size, without what opens paid pages. Nothing is sent here."""

from __future__ import annotations

import codecs
import contextlib
import time
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING

import requests

from .waits import Watch, fileno_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The most bytes that a character takes in UTF-8: so many times the wanted characters are read.
_BYTES_PER_CHAR = 4
_CHUNK_BYTES = 16_384
#: No charset has a longer name.
_CHARSET_CHARS_MAX = 40
#: Python's codecs that no page is written in. They are slow, don't decode text, or yield what can't be encoded again.
_NOT_OF_PAGES = frozenset(("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"))
#: How long a page may take to arrive, in seconds.
READ_S_MAX = 120.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """The body of an answer. ``text`` is None if it isn't text, or if it was withheld; ``note`` then says why.

    ``cut``: the page is longer than what was read. ``size_bytes`` is the length of the whole page, None if that isn't known.
    """

    text: str | None
    cut: bool = False
    size_bytes: int | None = None
    note: str | None = None


class PageBrokenError(Exception):
    """The page didn't arrive whole."""


def read(response: requests.Response, max_chars: int) -> Page:
    """Read at most ``max_chars`` characters of the page, decompressed, and close the response.

    Raises: PageBrokenError if the page breaks off, or takes longer than `READ_S_MAX`.
    """
    with response:
        content, is_whole = _read_bytes(response, (max_chars + 1) * _BYTES_PER_CHAR)
    text = _decoded(content, response.headers.get("Content-Type", ""), is_whole)
    size = len(content) if is_whole else _announced_size(response)
    if text is None:
        kind = _media_type(response) or "unknown type"
        return Page(text=None, cut=not is_whole, size_bytes=size, note=f"The page isn't text ({kind}), so it isn't shown.")
    shown, hidden = _without_secrets(response, text)
    cut = len(shown) > max_chars or not is_whole
    note = "What opens paid pages was taken out of the text." if hidden else None
    return Page(text=shown[:max_chars], cut=cut, size_bytes=size, note=note)


def _read_bytes(response: requests.Response, max_bytes: int) -> tuple[bytes, bool]:
    """Return the first bytes, up to a chunk more than ``max_bytes``, and whether they are all."""
    parts, got = [], 0
    for chunk in chunks(response):
        parts.append(chunk)
        got += len(chunk)
        if got > max_bytes:
            return b"".join(parts), False
    return b"".join(parts), True


def chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the page in pieces, decompressed.

    Raises: PageBrokenError if the page breaks off, or takes longer than `READ_S_MAX`.
    """
    ends_at_s = time.monotonic() + READ_S_MAX
    if hasattr(response.raw, "enforce_content_length"):
        response.raw.enforce_content_length = True  # not the default in urllib3 1.26, which accepts half a page as a whole one
    pieces = _pieces(response)
    with Watch(fileno_of(response.raw), READ_S_MAX) as watch:
        while True:
            try:
                chunk, problem = next(pieces, None), None
            except (requests.RequestException, OSError, ValueError) as error:
                chunk, problem = None, error
            if watch.expired or (chunk is not None and time.monotonic() > ends_at_s):
                raise PageBrokenError(f"it took longer than {READ_S_MAX:g} s") from problem
            if problem is not None:
                raise PageBrokenError(str(problem)) from problem
            if chunk is None:
                return
            yield chunk


def _pieces(response: requests.Response) -> Iterator[bytes]:
    content = getattr(response, "_content", False)
    if isinstance(content, bytes):  # read before, by a hook for instance
        return iter([content])
    return response.iter_content(_CHUNK_BYTES)


def _announced_size(response: requests.Response) -> int | None:
    """Return the size that the server has announced for the page, if it isn't compressed."""
    length = response.headers.get("Content-Length", "")
    is_plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 and is_plain else None


def _decoded(content: bytes, content_type: str, is_whole: bool) -> str | None:
    """Return ``content`` as text, by its charset, else as UTF-8, else as Latin-1 if the server calls it text. Else None."""
    message = Message()
    message["Content-Type"] = content_type
    with contextlib.suppress(ValueError):  # in UTF-16 without a mark of its order of bytes, for instance
        if (decoder := _decoder(message)) is not None:
            return encodable(decoder.decode(content, is_whole))
    if b"\0" in content:
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, is_whole)
    except UnicodeDecodeError:
        return content.decode("latin-1") if message.get_content_maintype() == "text" and content_type else None


def _decoder(message: Message) -> codecs.IncrementalDecoder | None:
    """Return what decodes the charset that ``message`` names; None if it names none, or none that a page is written in."""
    try:
        charset = message.get_content_charset()
        if charset is None or len(charset) > _CHARSET_CHARS_MAX or codecs.lookup(charset).name in _NOT_OF_PAGES:
            return None
        b" ".decode(charset, "replace")  # LookupError for a codec that isn't of text, such as hex
        return codecs.getincrementaldecoder(charset)("replace")
    except (LookupError, ValueError):
        return None


def encodable(text: str) -> str:
    """Return ``text`` with a question mark for each lone surrogate: with one in it, it can't be sent on as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _media_type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()[:100]


def _without_secrets(response: requests.Response, text: str) -> tuple[str, bool]:
    """Return ``text`` without secrets, and whether it held any. Of a 401 or 402, what only looks like a token goes too."""
    from ..paywall.credentialed import secrets_of
    from ..protocol.token_search import without_tokens

    tokens = secrets_of(response).union(*map(secrets_of, response.history))
    clean = without_tokens(text, tokens, by_value=response.status_code not in (401, 402))
    return clean, clean != text
