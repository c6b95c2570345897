"""Match URLs and origins with `fnmatch` patterns, read as their authors mean them.

Pure. What follows from a match is left to `policy.engine` and `budgets`.

A pattern is matched in two parts: scheme and host, then path and query. So a wildcard in the host never crosses ``/``, ``?``, ``#``
or ``@``: ``http://*.example.com/*`` doesn't match ``http://evil.example/x.example.com/``. The host differs from `fnmatch` in two
more ways: ``[::1]`` is an address, not one of three characters, and upper case counts as lower case.

A pattern without ``://`` is for the whole URL where it denies: ``*casino*`` denies every URL that has the word anywhere. Where it
allows, the part before its first slash is for scheme and host, unless that part is only ``*``: ``*example.com*`` allows the hosts
that have this in their name, ``*/free/*`` allows such a path anywhere, and ``*`` allows everything.

A pattern that no URL can match is refused, because in a denial it would deny nothing.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

from .._core.secret_text import shown, without_secrets
from .._core.urls import without_userinfo
from .readings import PATH_READINGS, dotted_quad

_BEGINNINGS = ("http://", "https://")
#: How many readings of patterns are remembered: those of some hundred rules.
_REMEMBERED = 16_384
_WILD = re.compile(r"[*?[]")
# A scheme, with or without wildcards, and its slashes: http://, *://, http*://, [hH]ttp://, *//.
_SCHEME = re.compile(r"((?:[A-Za-z*?]|\[[^]/]+\])*:?//)(.*)", re.DOTALL)
_BRACKETS = re.compile(r"\[([^]]*:[^]]*)\](.*)", re.DOTALL)
_SLASH_IN_BRACKETS = re.compile(r"[^/]*\[[^]/]*/[^]]*\]")
_PORT = re.compile(r"(.*?)((?::[0-9*?]+)?)", re.DOTALL)
# Characters that no host has. A pattern with one of them in its host lacks the slash before its path or query.
_NEVER_IN_HOST = re.compile(r"[=&;,+$'()\"<>\\^`{|}]")
_MAX_PORT = 65_535
# A default port is removed from a pattern only if its host has no *, or has a letter or a dot after the last *. Otherwise the *
# could match another port as well: https://*1:443 would become https://*1, which matches https://a:8441.
_HOST = r"[^/*]+|[^/]*\*[^/*]*[a-z.][^/*]*"
_DEFAULT_PORT = re.compile(rf"(http://(?:{_HOST})):80|(https://(?:{_HOST})):443")


def problem_of_url(pattern: str, *, denies: bool) -> str | None:
    """Return why no URL can match ``pattern`` as it is meant, and what to write instead; None if a URL can.

    ``denies``: whether the pattern is of a rule that denies.
    """
    return _without_userinfo(_problem_of_url(pattern, denies=denies), pattern)


def _problem_of_url(pattern: str, *, denies: bool) -> str | None:
    scheme, rest = _split(pattern)
    host = rest.partition("/")[0]
    if not _can_begin(pattern):
        return f"{shown(pattern)} begins with neither http:// nor https://: write https://host/* or *://host/*"
    if "#" in pattern:
        return f"{shown(pattern)} has a #: the part after it isn't sent to a server. Leave it out"
    if scheme and "@" in host:
        return f"{shown(pattern)} has user info, which is never part of the URL that is compared: leave out what is before the @"
    if scheme and not host:
        return f"{shown(pattern)} has no host: write {scheme}*/ for any"
    if scheme and re.search(r"\.(:[0-9*]+)?$", host):
        return f"{shown(pattern)} has a final dot in its host: leave it out"
    if problem := _problem(pattern, host) or (_problem_of_port(pattern, host) if scheme else None):
        return problem
    if (scheme or not denies) and _SLASH_IN_BRACKETS.match(rest):
        return f"{shown(pattern)} has a slash between brackets in its host, and no host has one: take it out of the brackets"
    bare = _BRACKETS.sub(r"\2", rest)
    if scheme and "/" not in rest and (not _WILD.search(bare) or re.fullmatch(r"\*[^*?[]+", bare)):
        return f"{shown(pattern)} has no path, and every URL has one: write {pattern}/* for all of its pages"
    if not denies and "/" not in rest and not rest.endswith("*"):
        return f"{shown(pattern)} has no path, and every URL has one: a * of the host isn't for the path. Write {pattern}/*"
    if (scheme or not denies) and ("@" in host or _NEVER_IN_HOST.search(host)):
        return f"{shown(pattern)} has no slash between host and path, and a * of the host isn't for the path: write the slash"
    return None


def problem_of_origin(pattern: str) -> str | None:
    """Return why no origin can match ``pattern``, and what to write instead; None if one can.

    The pattern is for ``scheme://host[:port]`` or ``host[:port]``.
    """
    return _without_userinfo(_problem_of_origin(pattern), pattern)


def _problem_of_origin(pattern: str) -> str | None:
    scheme, rest = _split(pattern)
    host, slash, _ = rest.partition("/")
    if slash:
        return f"{shown(pattern)} has a path, and an origin has none: write {without_secrets(scheme + host)}"
    if "@" in host:
        return f"{shown(pattern)} has user info, and an origin has none: leave out what is before the @"
    if scheme and not _can_begin(pattern):
        return f"{shown(pattern)} begins with neither http:// nor https://"
    return _problem(pattern, host) or _problem_of_port(pattern, host)


def matches(origin: str, tail: str, pattern: str, reading: int = 0, *, denies: bool) -> bool:
    """Return whether a URL matches ``pattern``, either as the pattern is written or as a URL is written.

    ``origin`` is the URL's ``scheme://host[:port]``, in lower case. ``tail`` is its path and query, in the reading number
    ``reading`` of `PATH_READINGS`. ``denies``: whether the pattern is of a rule that denies.
    """
    if any(
        fnmatchcase(origin, head) and any(fnmatchcase(tail, end) for end in tails)
        for head, tails in _parts(pattern, reading, denies)
    ):
        return True
    return any(fnmatchcase(origin + tail, whole) for whole in _wholes(pattern, reading, denies))


def matches_origin(origin: str, pattern: str) -> bool:
    """Return whether ``origin``, as `_core.urls.origin_of` writes it, matches ``pattern``.

    The pattern may be in any case, and may name a default port or leave it out.
    """
    pattern = pattern.lower()
    if _DEFAULT_PORT.fullmatch(pattern):
        pattern = pattern.rpartition(":")[0]
    scheme, host = _split(pattern)
    if not scheme:
        origin = origin.partition("://")[2]
    return any(fnmatchcase(origin, scheme + each) for each in _hosts(host))


@lru_cache(maxsize=_REMEMBERED)
def _parts(pattern: str, reading: int, denies: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the pattern's patterns for an origin, each with the patterns for the path and query that go with it."""
    scheme, rest = _split(pattern)
    host, slash, path = rest.partition("/")
    if slash:
        tails = _tails(slash + path, reading)
    elif rest.endswith("*") or denies:
        tails = ("*",)  # the pattern names no path, so it is for all of them
    else:
        return ()
    return tuple((scheme.lower() + each, tails) for each in _hosts(host))


@lru_cache(maxsize=_REMEMBERED)
def _wholes(pattern: str, reading: int, denies: bool) -> tuple[str, ...]:
    """Return the pattern's patterns for the whole URL. There are some only if the pattern isn't clearly in two parts."""
    scheme, rest = _split(pattern)
    host, slash, path = rest.partition("/")
    names_no_host = not scheme and (denies or not host.strip("*"))
    ends_early = denies and not (scheme and rest.endswith("*"))
    if not (names_no_host if slash else ends_early):
        return ()
    cut = "/" if slash else ""
    return tuple(f"{scheme.lower()}{head}{tail}" for head in _hosts(host) for tail in _tails(cut + path, reading))


def _tails(tail: str, reading: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys((tail, PATH_READINGS[reading](tail, True))))


def _hosts(host: str) -> tuple[str, ...]:
    """Return the patterns for a host and port that ``host``, the part of a pattern, stands for."""
    found = _BRACKETS.fullmatch(host)
    if found is not None and (address := shortest(found[1])) is not None:
        mapped = dotted_quad(address)
        return (f"[[]{address}]{found[2]}", *([mapped + found[2]] if mapped is not None else []))
    lowered = host.lower()
    spelt = [host, lowered]
    named = _PORT.fullmatch(lowered)
    if named is not None and (address := dotted_quad(named[1])) is not None:
        spelt.append(address + named[2])
    return tuple(dict.fromkeys(spelt))


def _split(pattern: str) -> tuple[str, str]:
    """Return the pattern's scheme with its ``://`` (empty if it has none), and the rest."""
    found = _SCHEME.fullmatch(pattern)
    return (found[1], found[2]) if found else ("", pattern)


def _can_begin(pattern: str) -> bool:
    found = _WILD.search(pattern)
    begin = (pattern[: found.start()] if found else pattern).lower()
    return any(begin.startswith(each) or each.startswith(begin) for each in _BEGINNINGS)


def _without_userinfo(problem: str | None, pattern: str) -> str | None:
    """Return the text ``problem`` without the user info of ``pattern``: it may be a password."""
    rest = _split(pattern)[1]
    userinfo = rest.removesuffix(without_userinfo(f"//{rest}")[2:])
    return problem.replace(repr(userinfo)[1:-1], "…@") if problem and userinfo else problem


def _problem(pattern: str, host: str) -> str | None:
    if not pattern.isascii() or not pattern.isprintable() or " " in pattern:
        return f"{shown(pattern)} has characters that no URL has: write a host's as xn--…, a path's as %XX"
    found = _BRACKETS.fullmatch(host)
    if found is not None and shortest(found[1]) is None:
        return f"{shown(pattern)} has brackets in its host that hold no IPv6 address: with wildcards in it, write [[] for the first"
    return None


def _problem_of_port(pattern: str, host: str) -> str | None:
    """Return what is wrong with the port in ``host``, the pattern's host and port; None if nothing is, or if there is none."""
    if shortest(host) is not None:
        return f"{shown(pattern)} has an IPv6 address without its brackets: write [{host}]"
    found = _BRACKETS.fullmatch(host)
    _, colon, port = (found[2] if found is not None else host).rpartition(":")
    if not colon or "]" in port or _WILD.search(port):
        return None
    if re.fullmatch(r"0|[1-9][0-9]{0,4}", port) and int(port) <= _MAX_PORT:
        return None
    return f"{shown(pattern)} has a port that no URL has: write a number up to {_MAX_PORT} without leading zeros, or leave it out"


def shortest(address: str) -> str | None:
    """Return an IPv6 address in its shortest form; None if ``address`` isn't one."""
    try:
        return str(IPv6Address(address))
    except AddressValueError:
        return None
