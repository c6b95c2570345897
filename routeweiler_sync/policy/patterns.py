"""Match URLs and origins with `fnmatch` patterns, read as their authors mean them.

Pure. What follows from a match is left to `policy.engine` and `budgets`. A pattern differs from `fnmatch` in its host alone:
``[::1]`` is an address, not one of three characters, and upper case counts as lower case. A pattern that no URL can match is
refused, because in a denial it would deny nothing.
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
# A default port is removed from a pattern only if its host has no *, or has a letter or a dot after the last *. Otherwise the *
# could match another port as well: https://*1:443 would become https://*1, which matches https://a:8441.
_HOST = r"[^/*]+|[^/]*\*[^/*]*[a-z.][^/*]*"
_DEFAULT_PORT = re.compile(rf"(http://(?:{_HOST})):80|(https://(?:{_HOST})):443")


def problem_of_url(pattern: str) -> str | None:
    """Return why no URL can match ``pattern`` as it is meant, and what to write instead; None if a URL can."""
    scheme, rest = _split(pattern)
    host = rest.partition("/")[0]
    if not _can_begin(pattern):
        return f"{pattern!r} begins with neither http:// nor https://: write https://host/* or *://host/*"
    if "#" in pattern:
        return f"{pattern!r} has a #: the part after it isn't sent to a server. Leave it out"
    if scheme and "@" in host:
        return f"{pattern!r} has user info, which is never part of the URL that is compared: leave out what is before the @"
    if scheme and re.search(r"\.(:[0-9*]+)?$", host):
        return f"{pattern!r} has a final dot in its host: leave it out"
    if problem := _problem(pattern, host):
        return problem
    bare = _BRACKETS.sub(r"\2", rest)
    if scheme and "/" not in rest and (not _WILD.search(bare) or re.fullmatch(r"\*[^*?[]+", bare)):
        return f"{pattern!r} has no path, and every URL has one: write {pattern}/* for all of its pages"
    return None


def problem_of_origin(pattern: str) -> str | None:
    """Return why no origin can match ``pattern``, and what to write instead; None if one can.

    The pattern is for ``scheme://host[:port]`` or ``host[:port]``.
    """
    scheme, rest = _split(pattern)
    host, slash, _ = rest.partition("/")
    if slash:
        return f"{pattern!r} has a path, and an origin has none: write {scheme}{host}"
    if "@" in host:
        return f"{pattern!r} has user info, and an origin has none: leave out what is before the @"
    if scheme and not _can_begin(pattern):
        return f"{pattern!r} begins with neither http:// nor https://"
    return _problem(pattern, host)


def matches(text: str, pattern: str) -> bool:
    """Return whether ``text`` matches ``pattern``, either as the pattern is written or with its host written as URLs have it."""
    return any(fnmatchcase(text, each) for each in _meant(pattern))


def matches_origin(origin: str, pattern: str) -> bool:
    """Return whether ``origin``, as `_core.urls.origin_of` writes it, matches ``pattern``.

    The pattern may be in any case, and may name a default port or leave it out.
    """
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
    """Return the pattern's scheme with its ``://`` (empty if it has none), and the rest."""
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
    """Return an IPv6 address in its shortest form; None if ``address`` isn't one."""
    try:
        return str(IPv6Address(address))
    except AddressValueError:
        return None
