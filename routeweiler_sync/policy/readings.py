"""The ways in which a URL's path, and its host, may be read by a server. Pure.

``/casino/x``, ``/a/../casino/x``, ``//casino/x``, ``/%63asino/x`` and ``/a%2F..%2Fcasino/x`` may all lead to the same page: it
depends on the server and on the proxies before it. A policy is about pages, so `engine` matches its patterns with all of these
readings. A reading is applied to a pattern as well, so that a pattern always matches the URL that it was copied from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address

#: A path may be escaped several times, and each proxy before a server may remove one level.
MAX_ESCAPE_LEVELS = 3

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile(r"/{2,}")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_PARAMS = re.compile(r";[^/]*")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_WILDCARDS = frozenset("*?[")

#: A reading: the function gets path and query, and whether they are of a pattern.
Reading = Callable[[str, bool], str]


def _reading(levels: int, *, backslashes: bool = False, params: str = "kept", slashes: str = "kept") -> Reading:
    """Return one way to read a path and query.

    - ``levels``: how often escapes are decoded. 0: once, and those of unreserved characters only (RFC 3986 section 6.2.2).
    - ``backslashes``: whether a backslash is a slash.
    - ``params``: what becomes of a segment's parameters (``/a;x=1/``). ``kept``: they are a part of it. ``dots``: ``..;x`` is a dot
      segment all the same. ``dropped``: they are no part of any segment. Java servers differ in this.
    - ``slashes``: whether doubled slashes are ``kept``, or made single ``before`` or ``after`` dot segments are removed.
    """

    def read(tail: str, is_pattern: bool) -> str:
        path, mark, query = tail.partition("?")
        if params == "dropped":
            path = _PARAMS.sub("", path)
        for _ in range(max(1, levels)):
            path = _unescaped(path, is_pattern, keep_reserved=levels == 0)
            query = _unescaped(query, is_pattern, keep_reserved=levels == 0)
        if backslashes:
            path = path.replace("\\", "/")
        if params == "dropped":
            path = _PARAMS.sub("", path)
        if slashes == "before":
            path = _SLASHES.sub("/", path)
        path = _without_dots(path, params=params != "kept")
        return (path if slashes == "kept" else _SLASHES.sub("/", path)) + mark + query

    return read


def _as_sent(tail: str, is_pattern: bool) -> str:
    """Return the path and query as they are sent."""
    return _quoted(tail)


_SLASH_WAYS = ("kept", "before", "after")
#: The readings. A denial and a limit hold if one of them matches. The first is the text as it is sent.
PATH_READINGS: tuple[Reading, ...] = (
    _as_sent,
    *(
        _reading(levels, backslashes=backslashes, params=params, slashes=slashes)
        for levels in range(MAX_ESCAPE_LEVELS + 1)
        for backslashes in (False, True)
        for params in ("kept", "dots")
        for slashes in _SLASH_WAYS
    ),
    *(_reading(levels, backslashes=True, params="dropped", slashes="before") for levels in range(MAX_ESCAPE_LEVELS + 1)),
)
#: How many of the readings, the first ones, an allowance must match. Not those that drop parameters: an allowance may name them.
READINGS_TO_ALLOW = len(PATH_READINGS) - (MAX_ESCAPE_LEVELS + 1)


def dotted_quad(host: str) -> str | None:
    """Return the IPv4 address that ``host`` is another spelling of, as the C library reads it; None if it is a name.

    ``127.1``, ``2130706433``, ``0x7f.0.0.1`` and ``0177.0.0.1`` are all ``127.0.0.1``. An IPv6 address that holds an IPv4 address
    (``::ffff:127.0.0.1``) is one as well.
    """
    if ":" in host:
        return _mapped(host)
    parts = host.split(".")
    if not 1 <= len(parts) <= 4:
        return None
    numbers = [_number(part) for part in parts]
    *first, last = [-1 if number is None else number for number in numbers]
    if not all(0 <= number < 256 for number in first) or not 0 <= last < 256 ** (4 - len(first)):
        return None
    value = last + sum(number << 8 * (3 - at) for at, number in enumerate(first))
    return ".".join(str(byte) for byte in value.to_bytes(4, "big"))


def decoded_host(host: str) -> str:
    """Return ``host`` in lower case with its escapes decoded, names in other scripts in their ``xn--`` form."""
    text = _unescaped(_quoted(host), False)
    if text.isascii():
        return text.lower()
    try:
        text = text.encode("latin-1").decode("utf-8")
        import idna  # it comes with requests

        return idna.encode(text, uts46=True).decode("ascii")
    except ValueError:  # idna's errors too: no name, so no server has it
        return host


def _mapped(address: str) -> str | None:
    try:
        inner = IPv6Address(address.partition("%")[0]).ipv4_mapped
    except ValueError:
        return None
    return None if inner is None else str(inner)


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isalnum():
        return None
    base = 16 if text[:2].lower() == "0x" else 8 if text.startswith("0") and len(text) > 1 else 10
    try:
        return int(text[2:] or "0", 16) if base == 16 else int(text, base)
    except ValueError:
        return None


def _unescaped(text: str, is_pattern: bool, *, keep_reserved: bool = False) -> str:
    """Return ``text`` with its escapes decoded, byte by byte. With ``keep_reserved``, other escapes are put in upper case."""

    def decode(found: re.Match[str]) -> str:
        char = chr(int(found[1], 16))
        if keep_reserved and char not in _UNRESERVED:
            return found[0].upper()
        return f"[{char}]" if is_pattern and char in _WILDCARDS else char

    return _ESCAPE.sub(decode, _quoted(text))


def _quoted(text: str) -> str:
    """Return ``text`` with characters beyond ASCII escaped, as they are sent."""
    return _NOT_ASCII.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), text)


def _without_dots(path: str, *, params: bool) -> str:
    """Return ``path`` without dot segments (RFC 3986 section 5.2.4). ``params``: segments such as ``..;x`` are dot segments too."""
    if not path.startswith("/"):
        return path
    kept: list[str] = []
    segments = path[1:].split("/")
    name = ""
    for segment in segments:
        name = segment.partition(";")[0] if params else segment
        if name == ".." and kept:
            kept.pop()
        elif name not in (".", ".."):
            kept.append(segment)
    if name in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
