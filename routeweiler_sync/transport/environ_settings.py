"""What the environment says about a call, without the search that `requests` makes for each.

`requests.Session.merge_environment_settings` goes through all variables twice in search of proxies, which costs more than all that
this package adds to a call. If no variable named a proxy when they were last read, and none has changed, there is none now either.
In every other case `requests` searches as ever.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import requests
from requests.__version__ import __version__ as requests_version

#: The newest minor version of `requests` that is known to do what `settings_of` does. A newer one always searches.
READ_UP_TO = (2, 34)
#: The variables that name the certificates to trust. The first that isn't empty counts.
CERTIFICATES = (b"REQUESTS_CA_BUNDLE", b"CURL_CA_BUNDLE")
#: What `os.environ` consists of. If it has more, a test has put a method of its own on it.
ATTRIBUTES = {"encodekey", "decodekey", "encodevalue", "decodevalue", "_data"}

# Any: their types leave out the names that are only used there.
sessions: Any = requests.sessions
utils: Any = requests.utils
urllib_request: Any = urllib.request
Environ: Any = os._Environ

_MERGE: Any = requests.Session.merge_environment_settings


class _Environment:
    """The environment as it was when it was read.

    No dataclass or tuple: reporters of errors write local variables down, and what they write of this must hold no secrets.
    """

    __slots__ = ("certificates", "has_proxies", "variables")

    def __init__(self, variables: dict[bytes, bytes], decoded: Callable[[bytes], str]) -> None:
        self.variables = variables
        #: Whether a variable names a proxy, or hosts that need none.
        self.has_proxies = any(name[-6:].lower() == b"_proxy" for name in variables)
        named = next(filter(None, map(variables.get, CERTIFICATES)), None)
        #: The file or folder of the certificates to trust; None if no variable names it.
        self.certificates = None if named is None else decoded(named)


#: What was read last. A program may change its environment at any time, so this is compared with it before each use.
_known: _Environment | None = None


def settings_of(session: requests.Session, inherited: Callable[..., Any], given: tuple[Any, ...]) -> dict[str, Any] | None:
    """Return what ``inherited(*given)`` would, where that is the ``merge_environment_settings`` of ``session``.

    None if only ``inherited`` itself can tell.
    """
    if getattr(inherited, "__func__", None) is not _MERGE or not session.trust_env:
        return None
    url, proxies, stream, verify, cert = given
    if not (proxies is None or (type(proxies) is dict and not proxies)):
        return None
    if type(url) is not str or not url.isascii() or "[" in url or "]" in url:  # may be one that the search refuses
        return None
    environment = _environment()
    if environment is None or environment.has_proxies:
        return None
    if verify is True or verify is None:
        verify = environment.certificates or verify
    merged = sessions.merge_setting
    return {
        "proxies": merged(proxies, session.proxies),
        "stream": merged(stream, session.stream),
        "verify": merged(verify, session.verify),
        "cert": merged(cert, session.cert),
    }


def _environment() -> _Environment | None:
    """Return the environment as it is now; None if anything that `requests` reads it by was replaced, or isn't known."""
    global _known
    environ: Any = os.environ
    if environ is not _ENVIRON or len(environ.__dict__) != len(ATTRIBUTES) or _means() != _OWN_MEANS:
        return None
    known = _known
    if known is None or known.variables != environ._data:
        _known = known = _Environment(environ._data.copy(), environ.decodevalue)
    return known


def _means() -> tuple[object, ...]:
    """Return what `requests` reads the environment by. Tests and other libraries put their own in place of some of it."""
    return (
        sessions.get_environ_proxies,
        utils.should_bypass_proxies,
        utils.getproxies,
        utils.proxy_bypass,
        urllib_request.getproxies_environment,
        Environ.__iter__,
        Environ.__getitem__,
        Environ.get,
        Environ.items,
        Environ.__contains__,
        sessions.os,
        utils.os,
        urllib_request.os,
    )


def _is_known() -> bool:
    """Return whether `requests`, as it was imported, finds proxies in variables only. It doesn't on macOS and Windows.

    False too if another library has put anything of its own in place already.
    """
    own: tuple[tuple[Any, tuple[object, ...]], ...] = (
        (sessions, (_MERGE,)),
        (utils, (sessions.get_environ_proxies, utils.should_bypass_proxies)),
        (urllib_request, (utils.getproxies, utils.proxy_bypass)),
        (os, (Environ.__iter__, Environ.__getitem__)),
    )
    return (
        os.name == "posix"
        and _is_read(requests_version)
        and utils.getproxies is urllib_request.getproxies_environment
        and utils.proxy_bypass is urllib_request.proxy_bypass_environment
        and type(_ENVIRON) is Environ
        and vars(_ENVIRON).keys() == ATTRIBUTES
        and all(getattr(Environ, name) is getattr(Mapping, name) for name in ("get", "items", "__contains__"))
        # `type` and no isinstance: a wrapper may claim to be the function that it wraps.
        and all(type(each) is FunctionType and each.__globals__ is vars(module) for module, functions in own for each in functions)
    )


def _is_read(version: str) -> bool:
    try:
        return tuple(map(int, version.split(".")[:2])) <= READ_UP_TO
    except ValueError:
        return False


_ENVIRON: Any = os.environ
_OWN_MEANS = _means() if _is_known() else ()
