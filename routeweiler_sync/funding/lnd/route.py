"""The way to the node: its addresses as this system resolves them, or a proxy that the environment names.

gRPC would find both by itself, but otherwise than `requests` does: its own resolver doesn't know the names that only the system
resolves (``.local``, a VPN's names), and its reading of ``no_proxy`` knows neither address ranges nor ``*``. And it would name the
hosts of the local network to the proxy. What is read here goes into the options of one channel; the environment stays as it is.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from ..replies import tidy
from ..worker_calls import NoThreadError, SilentError, result_of

#: The variables that name gRPC's proxy, the first that is set counts (gRPC core, http_proxy_mapper.cc).
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
#: Names in these domains are given out on the local network (RFC 6762, RFC 6761, RFC 8375, ICANN's reservation; ``lan`` by habit).
_LOCAL_DOMAINS = frozenset({"local", "localhost", "localdomain", "lan", "home", "internal", "intranet", "home.arpa"})
#: Addresses of private networks (RFC 1918, RFC 4193), and those that providers and VPNs share (RFC 6598).
_LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_ADDRESSES_MAX = 16
#: Behind a proxy the system's name server may be cut off from the public ones, and silent about their names.
_LOOKUP_S_MAX = 2.0
_PROXY_PORT = 80

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class UnresolvedError(Exception):
    """The system doesn't resolve a name. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyInUse:
    """The proxy that the connection goes through. ``variable`` names it in the environment. ``shown`` is its host and port."""

    variable: str
    shown: str
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where gRPC connects: its target, the channel options that go with it, and the proxy, if there is one.

    ``addresses`` are the host's, as the system resolves it; none behind a proxy. ``authority`` is the host as a server is called.
    """

    target: str
    authority: str
    options: tuple[tuple[str, Any], ...]
    addresses: tuple[str, ...] = ()
    proxy: ProxyInUse | None = None


def route_to(host: str, port: int, *, timeout_s: float) -> Route:
    """Return the way to ``host``. Takes at most ``timeout_s`` seconds.

    Raises: UnresolvedError if the system doesn't resolve the name of the host, or of its proxy, in that time.
    """
    host = ascii_name(host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    given = ip_address(host)
    proxy = None if is_local(host) else proxy_for(host, port)
    if proxy is None:
        found = [host] if given is not None else _resolve(host, port, timeout_s)
        return _direct(found, port, address)
    if given is None:
        # A name of this network's own, such as a container's, mustn't go to the proxy. One that can't be resolved here may.
        with suppress(UnresolvedError):
            found = _resolve(host, port, min(timeout_s / 2, _LOOKUP_S_MAX))
            if all(is_local(each) for each in found):
                return _direct(found, port, address)
    option = ("grpc.http_proxy", _resolved_proxy(proxy, timeout_s / 2))
    return Route(target=f"dns:///{address}", authority=address, options=(option,), proxy=proxy)


def proxy_for(host: str, port: int, environ: Mapping[str, str] | None = None) -> ProxyInUse | None:
    """Return the proxy that the environment names for ``host``, or None.

    ``no_proxy`` is read as `requests` reads it. gRPC speaks to ``http`` proxies only, and so others don't count.
    """
    environ = os.environ if environ is None else environ
    variable = next((name for name in PROXY_VARIABLES if environ.get(name, "").strip()), None)
    if variable is None:
        return None
    url = environ[variable].strip()
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        name, proxy_port = parts.hostname, parts.port or _PROXY_PORT
    except ValueError:
        return None
    if parts.scheme.lower() != "http" or not name or _bypasses(host, port, environ):
        return None
    return ProxyInUse(variable=variable, shown=f"{name}:{proxy_port}", url=url)


def is_local(host: str) -> bool:
    """Return whether ``host`` is an address or a name of this machine or of the local network."""
    if (address := ip_address(host)) is not None:
        mapped = getattr(address, "ipv4_mapped", None)
        address = address if mapped is None else mapped
        here = address.is_loopback or address.is_link_local or address.is_unspecified
        return here or any(address in each for each in _LOCAL_NETWORKS)
    labels = host.lower().rstrip(".").split(".")
    return len(labels) == 1 or labels[-1] in _LOCAL_DOMAINS or ".".join(labels[-2:]) in _LOCAL_DOMAINS


def ascii_name(host: str) -> str:
    """Return a host's name as certificates and protocols write it, in ASCII: ``münchen.example`` is ``xn--mnchen-3ya.example``."""
    with suppress(UnicodeError):
        return host if host.isascii() else host.encode("idna").decode("ascii")
    return host


def ip_address(text: str) -> _IP | None:
    """Return the IP address that ``text`` is, or None."""
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return None


def _direct(addresses: list[str], port: int, authority: str) -> Route:
    options = (("grpc.enable_http_proxy", 0),)
    return Route(target=_target(addresses, port), authority=authority, options=options, addresses=tuple(addresses))


def _bypasses(host: str, port: int, environ: Mapping[str, str]) -> bool:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    own = environ.get("no_grpc_proxy", "")
    if own and urllib.request.proxy_bypass_environment(address, {"no": own}):  # type: ignore[attr-defined]
        return True
    return bool(requests.utils.should_bypass_proxies(f"https://{address}", no_proxy=None))


def _resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """Return the addresses of ``host`` in the system's order. The system can't be interrupted, so a thread asks it."""
    try:
        found = result_of(lambda _: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), timeout_s=timeout_s)
    except SilentError:
        raise UnresolvedError(f"the system didn't resolve the name {tidy(host)} within {timeout_s:.3g} s") from None
    except NoThreadError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no name can be written so
        cause = getattr(error, "strerror", None) or "it isn't a host name"
        raise UnresolvedError(f"the name {tidy(host)} can't be resolved ({tidy(str(cause))})") from None
    addresses = dict.fromkeys(str(each[4][0]) for each in found if each[0] in (socket.AF_INET, socket.AF_INET6))
    if not addresses:
        raise UnresolvedError(f"the name {tidy(host)} has no address")
    return list(addresses)[:_ADDRESSES_MAX]


def _target(addresses: list[str], port: int) -> str:
    """Return gRPC's name of several addresses. It has one for each kind of address; IPv4 ones can be written as IPv6 ones."""
    if all(":" not in each for each in addresses):
        return "ipv4:" + ",".join(f"{each}:{port}" for each in addresses)
    mapped = [each if ":" in each else f"::ffff:{each}" for each in addresses]
    return "ipv6:" + ",".join(f"[{quote(each, safe=':.')}]:{port}" for each in mapped)


def _resolved_proxy(proxy: ProxyInUse, timeout_s: float) -> str:
    """Return the proxy's URL with its address in place of its name."""
    parts = urlsplit(proxy.url)
    name, port = str(parts.hostname), parts.port or _PROXY_PORT
    address = name if ip_address(name) is not None else _preferred(_resolve(name, port, timeout_s))
    login, at, _ = parts.netloc.rpartition("@")
    return f"http://{login}{at}" + (f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


def _preferred(addresses: list[str]) -> str:
    return next((each for each in addresses if ":" not in each), addresses[0])
