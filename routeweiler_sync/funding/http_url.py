"""The address of a wallet that speaks HTTP: which URLs are taken, and how they look in texts.

A key that can spend goes to this address with each call, so a URL without TLS is taken only where nobody can listen in. Opens
nothing; how the address is reached is left to `http_calls`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from .._core import env_vars
from .._core.secret_text import WHERE, kind_of, may_be_secret, shown
from .replies import tidy

_PORTS = {"http": 80, "https": 443}
#: What a path may hold: a line break, for example, would begin a header of its own.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletUrl:
    """A wallet's address. ``host`` is in ASCII, without brackets. ``path`` is "", or begins with a slash and ends without one."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def has_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "https"

    @property
    def netloc(self) -> str:
        """``host:port`` with an IPv6 address in brackets, and without the port that the scheme has by default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return tidy(f"{self.scheme}://{self.netloc}{self.path}")


def read_wallet_url(
    name: str, given: object, *, default_port: int | None = None, environ: Mapping[str, str] | None = None
) -> WalletUrl:
    """Return the address in ``given``, the URL that the argument or variable ``name`` has.

    ``default_port`` is the port of a URL without one, in place of the scheme's. ``http://`` is taken for this machine itself, for
    names that end with ``.onion`` (Tor encrypts), and for any host where ``ROUTEWEILER_ALLOW_HTTP_WALLET`` is ``1``.

    Raises: ValueError for anything else. Its text repeats no secret.
    """
    if not isinstance(given, str):
        raise ValueError(f"{name} must be a URL, not {shown(given)}")
    text = given.strip()
    if (kind := kind_of(text)) not in ("a secret", "a URL with a password"):
        raise ValueError(f"{name} isn't a URL: it looks like {kind}, and so isn't shown. {WHERE[kind]}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text repeats the URL
        raise ValueError(f"{name} isn't a URL: its host or port is malformed") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        raise ValueError(f"{name} must begin with https:// and a host, not be {_shown(text)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{name} has a user name or password in it, and so isn't shown: give the URL without them")
    if parts.query or parts.fragment:
        raise ValueError(f"{name} must be the server's address alone: leave out what begins with ? or #, which isn't shown")
    if port == 0 or re.search(r"[\s%@\\]", host) or not host.isprintable():
        raise ValueError(f"{name} isn't a URL: its host or port is malformed")
    if not _PATH.fullmatch(parts.path) or may_be_secret(host) or may_be_secret(unquote(parts.path)):
        raise ValueError(f"{name} isn't the URL of a wallet: it holds what may be a secret, or no URL may hold, and so isn't shown")
    try:
        ascii_host = host if host.isascii() else _idna(host)
    except UnicodeError:
        raise ValueError(f"{name} isn't a URL: its host or port is malformed") from None
    url = WalletUrl(scheme=scheme, host=ascii_host, port=port or default_port or _PORTS[scheme], path=parts.path.rstrip("/"))
    if not url.has_tls and not _may_be_plain(ascii_host, os.environ if environ is None else environ):
        raise ValueError(
            f"{name} must begin with https://: over http:// anybody on the way could read the key that spends. To allow it all "
            f"the same, set {env_vars.ALLOW_HTTP_WALLET}=1"
        )
    return url


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine by any network."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return (address if mapped is None else mapped).is_loopback
    return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")


def _idna(host: str) -> str:
    """Return the host in ASCII, as browsers and `requests` write it. Python's own codec makes another name of some, as of ``ß``."""
    import idna

    return idna.encode(host, uts46=True).decode("ascii")


def _may_be_plain(host: str, environ: Mapping[str, str]) -> bool:
    is_onion = host.lower().rstrip(".").endswith(".onion")
    return is_onion or is_loopback(host) or environ.get(env_vars.ALLOW_HTTP_WALLET) == "1"


def _shown(text: str) -> str:
    return "a text that may be a secret, and so isn't shown" if may_be_secret(text) else shown(text)
