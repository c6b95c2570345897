"""Find tokens in texts that others wrote, however they are quoted and escaped there. Pure.

`redact` of `schemes` knows the forms in which tokens stand in headers. A server may write its token into a body, a cookie or a
header of its own as well: as JSON, XML, HTML or a query, in another alphabet of base64. There the token is found by its value.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

from .http_auth import OversizedHeaderError, read_challenges
from .schemes import NAMES, redact, secrets_in

#: A shorter token isn't looked for by its value: it would be found in every text.
MIN_TOKEN_CHARS = 6
#: How often a text may be escaped: a URL within JSON within HTML.
MAX_ESCAPE_LEVELS = 3

_REDACTED = "<redacted>"
_TOKEN_NAMES = ("token", "macaroon")
_CREDENTIAL = re.compile(r"[A-Za-z0-9]+[ \t]+([^\s:]+):[0-9A-Fa-f]+")
_HEX_ESCAPE = re.compile(r"\\(?:u\{?(?:00)*|x)([0-9A-Fa-f]{2})\}?")
_OCTAL_ESCAPE = re.compile(r"\\([0-3][0-7]{2})")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+")
_PREIMAGE = re.compile(r"[0-9a-f]{64}")
# What looks like a token: its name, and soon after it a long value.
_NAMED = re.compile(r"(?:token|macaroon|l402|lsat|preimage)[^A-Za-z0-9]{0,40}[A-Za-z0-9+/_-]{32}", re.IGNORECASE)


def tokens_in(lines: Iterable[str]) -> frozenset[str]:
    """Return the tokens that the lines of ``WWW-Authenticate`` offer, of all schemes that can be paid."""
    try:
        listed = read_challenges(lines)
    except OversizedHeaderError:
        return frozenset()
    return frozenset(
        value for each in listed if each.scheme.upper() in NAMES for name, value in each.params if name in _TOKEN_NAMES and value
    )


def token_of(authorization: str | bytes | None) -> frozenset[str]:
    """Return what is secret in a credential, the value of ``Authorization``: its token, or the preimage too if that opens alone.

    The set is empty if the value is no credential.
    """
    if isinstance(authorization, bytes):
        authorization = authorization.decode("latin-1")
    value = (authorization or "").strip()
    found = _CREDENTIAL.fullmatch(value)
    return secrets_in(value) if found is None else frozenset((found[1],))


def holds_token(text: str | bytes | bytearray, tokens: frozenset[str], *, by_value: bool = False) -> bool:
    """Return whether ``text`` holds one of ``tokens``, or what looks like a token, in any of the usual ways to quote and escape.

    With ``by_value``, only ``tokens`` count.
    """
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text).decode("latin-1")
    wanted = _searched(tokens)
    # Taking quotes and escapes away makes no text of ASCII longer, so that most URLs are too short for any token.
    if by_value and (not wanted or (text.isascii() and len(text) < len(wanted[0]))):
        return False
    for _ in range(MAX_ESCAPE_LEVELS + 1):
        if not by_value and (redact(text) != text or _NAMED.search(text)):
            return True
        plain = _joined(text)
        standard, lower = _in_standard_digits(plain), plain.lower()
        if any(each in plain or each in standard or (each in lower and each == each.lower()) for each in wanted):
            return True
        unescaped = _unescaped(text)
        if unescaped == text:
            break
        text = unescaped
    return False


def without_tokens(text: str, tokens: frozenset[str], *, by_value: bool = False) -> str:
    """Return ``text``, the value of a header for instance, with the tokens in it replaced, or all of it if need be.

    With ``by_value``, only ``tokens`` are replaced, and nothing else that looks like a token.
    """
    if by_value and not any(token in text for token in tokens) and not holds_token(text, tokens, by_value=True):
        return text
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) >= MIN_TOKEN_CHARS:
            text = text.replace(token, _REDACTED)
    text = text if by_value else redact(text)
    return _REDACTED if holds_token(text.replace(_REDACTED, ""), tokens, by_value=by_value) else text


@lru_cache(maxsize=64)
def _searched(tokens: frozenset[str]) -> tuple[str, ...]:
    """Return what to search a text for, the shortest first: the tokens as they are, and their bytes in other alphabets."""
    found: dict[str, None] = {}
    for token in tokens:
        if len(token) < MIN_TOKEN_CHARS:
            continue
        plain = _joined(token)
        digits = _in_standard_digits(plain)
        found.update(dict.fromkeys((plain, digits)))
        if _BASE64.fullmatch(digits) and len(digits) % 4 != 1:
            raw = base64.b64decode(digits + "=" * (-len(digits) % 4))
            found[raw.hex()] = None
        if _PREIMAGE.fullmatch(token):
            found[base64.b64encode(bytes.fromhex(token)).decode().rstrip("=")] = None
        found[token.encode("utf-8", "surrogatepass").hex()] = None
        found[base64.b64encode(token.encode("utf-8", "surrogatepass")).decode().rstrip("=")] = None
    return tuple(sorted((each for each in found if len(each) >= MIN_TOKEN_CHARS), key=len))


def _joined(text: str) -> str:
    """Return ``text`` without what may stand between the parts of a token that is wrapped or quoted. No token holds any of it."""
    text = "".join(text.split())
    for char in "\0\\\"'=":
        text = text.replace(char, "")
    return text


def _in_standard_digits(text: str) -> str:
    """Return ``text`` with the digits of the URL-safe alphabet of base64 replaced by those of the standard one."""
    return text.replace("-", "+").replace("_", "/")


def _unescaped(text: str) -> str:
    text = html.unescape(unquote(text, encoding="latin-1"))
    if "\\" not in text:
        return text
    text = _HEX_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return _OCTAL_ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
