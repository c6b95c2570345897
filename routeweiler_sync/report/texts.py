"""Texts that others wrote, made safe for a report: on one line, without control characters, and without what may be a secret.

Escaping for HTML or CSV is left to `page` and `sheet`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .._core.secret_text import SECRET_CHARS_MIN, without_secrets
from .._core.urls import without_userinfos
from ..protocol.schemes import redact
from ..trace.redaction import without_queries

#: A longer text is cut to this many characters.
SHOWN_CHARS_MAX = 300
#: Of a longer text nothing is shown: it bounds the time that a hostile text takes.
_READ_CHARS_MAX = 20_000

#: A short text of these characters holds neither a secret nor a URL.
_PLAIN = re.compile(rf"[A-Za-z0-9 _./-]{{1,{SECRET_CHARS_MIN - 1}}}")
#: A path whose parts are too short for a secret, as most are.
_PLAIN_PATH = re.compile(rf"(?:/[A-Za-z0-9_.-]{{0,{SECRET_CHARS_MIN // 2}}}){{1,4}}")


def clean(text: str, *, keep: tuple[str, ...] = ()) -> str:
    """Return ``text`` on one line, with control characters escaped, without query strings and without what may be a secret.

    ``keep`` are texts that are known to be no secret, such as a payment hash.
    """
    return text if _PLAIN.fullmatch(text) else _cleaned(text, keep)


def clean_path(path: str) -> str:
    """Return a URL's ``path``, or a scope, as `clean` does."""
    return path if _PLAIN_PATH.fullmatch(path) else clean(path)


@lru_cache(maxsize=4096)
def _cleaned(text: str, keep: tuple[str, ...]) -> str:
    if len(text) > _READ_CHARS_MAX:
        return f"<{len(text)} characters>"
    text = without_secrets(redact(without_queries(without_userinfos(text))), keep)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= SHOWN_CHARS_MAX else f"{shown[:SHOWN_CHARS_MAX]}…"
