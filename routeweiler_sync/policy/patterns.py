"""Patterns (`fnmatch`) for URLs and origins, read as they are meant. Pure; what follows from a match is for policy and budgets.

Only in its host does a pattern mean something else than its letters: ``[::1]`` is an address, not one of three characters, and
upper case is lower. A pattern that no URL can match is refused: in a ban it would ban nothing.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

_BEGINNINGS = ("http://", "https://")
_WILD = re.compile(r"[*?[]")
_SCHEME = re.compile(r"([A-Za-z*?]*://)(.*)", re.DOTALL)
_BRACKETS = re.compile(r"\[([^]]*:[^]]*)\](.*)", re.DOTALL)
# Behind a * only where that can't stand for another port then.
_HOST = r"[^/*]+|[^/]*\*[^/*]*[a-z.][^/*]*"
_DEFAULT_PORT = re.compile(rf"(http://(?:{_HOST})):80|(https://(?:{_HOST})):443")


def problem_of_url(pattern: str) -> str | None:
    """Why no URL can match ``pattern`` as it is meant, and what to write instead; None where one can."""
    scheme, rest = _split(pattern)
    host = rest.partition("/")[0]
    if not _can_begin(pattern):
        return f"{pattern!r} begins with neither http:// nor https://: write https://host/* or *://host/*"
    if "#" in pattern:
        return f"{pattern!r} has a #: what stands behind it isn't sent to a server. Leave it out"
    if scheme and "@" in host:
        return f"{pattern!r} has user info, which is no part of a URL here: leave out what stands before the @"
    if scheme and re.search(r"\.(:[0-9*]+)?$", host):
        return f"{pattern!r} has a final dot in its host: leave it out"
    if problem := _problem(pattern, host):
        return problem
    bare = _BRACKETS.sub(r"\2", rest)
    if scheme and "/" not in rest and (not _WILD.search(bare) or re.fullmatch(r"\*[^*?[]+", bare)):
        return f"{pattern!r} has no path, and every URL has one: write {pattern}/* for all of its pages"
    return None


def problem_of_origin(pattern: str) -> str | None:
    """As `problem_of_url`, for ``scheme://host[:port]`` or ``host[:port]``."""
    scheme, rest = _split(pattern)
    host, slash, _ = rest.partition("/")
    if slash:
        return f"{pattern!r} has a path, and an origin has none: write {scheme}{host}"
    if "@" in host:
        return f"{pattern!r} has user info, and an origin has none: leave out what stands before the @"
    if scheme and not _can_begin(pattern):
        return f"{pattern!r} begins with neither http:// nor https://"
    return _problem(pattern, host)


def matches(text: str, pattern: str) -> bool:
    """Whether ``text`` fits ``pattern``, as written or with its host as URLs have it."""
    return any(fnmatchcase(text, each) for each in _meant(pattern))


def matches_origin(origin: str, pattern: str) -> bool:
    """Whether ``origin``, as `l402.credential.origin_of` writes it, fits ``pattern``: in any case, a default port or none."""
    pattern = pattern.lower()
    if _DEFAULT_PORT.fullmatch(pattern):
        pattern = pattern.rpartition(":")[0]
    return matches(origin if "://" in pattern else origin.partition("://")[2], pattern)


@lru_cache(maxsize=1_024)
def _meant(pattern: str) -> tuple[str, ...]:
    scheme, rest = _split(pattern)
    host, slash, path = rest.partition("/")
    found = _BRACKETS.fullmatch(host)
    if found is not None and (address := shortest(found[1])) is not None:
        return (f"{scheme.lower()}[[]{address}]{found[2]}{slash}{path}",)
    lowered = f"{scheme.lower()}{host.lower() if scheme else host}{slash}{path}"
    return (pattern, lowered) if lowered != pattern else (pattern,)


def _split(pattern: str) -> tuple[str, str]:
    """The scheme with its ``://``, or nothing, and the rest."""
    found = _SCHEME.fullmatch(pattern)
    return (found[1], found[2]) if found else ("", pattern)


def _can_begin(pattern: str) -> bool:
    found = _WILD.search(pattern)
    begin = (pattern[: found.start()] if found else pattern).lower()
    return any(begin.startswith(each) or each.startswith(begin) for each in _BEGINNINGS)


def _problem(pattern: str, host: str) -> str | None:
    if not pattern.isascii() or not pattern.isprintable() or " " in pattern:
        return f"{pattern!r} has characters that no URL has: write a host's as xn--…, a path's as %XX"
    found = _BRACKETS.fullmatch(host)
    if found is not None and shortest(found[1]) is None:
        return f"{pattern!r} has brackets in its host that hold no IPv6 address: with wildcards in it, write [[] for the first"
    return None


def shortest(address: str) -> str | None:
    """An IPv6 address as it is written shortest; None for what isn't one."""
    try:
        return str(IPv6Address(address))
    except AddressValueError:
        return None
