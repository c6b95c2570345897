"""Why the node can't be reached, or refuses: the likeliest cause of a gRPC error, and what its user can do about it.

gRPC and lnd say what failed and seldom why. What they leave out is looked up: in the pinned certificate, in the one that the server
shows (`look_at` asks it, over a connection that carries no secret), in the clock. An error text is made of it here and nothing is
decided: whether a payment may have begun is left to `replies`.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Literal

from ..._core.deadline import monotonic_s
from ..._core.durations import in_words
from ..replies import tidy
from .certificates import Certificate, read_der
from .endpoint import Endpoint, shown
from .replies import WRONG_PATH
from .route import ProxyInUse

#: The longest look at a server: it delays an error, and the error is worth more than its best wording.
LOOK_S_MAX = 1.5

_LOOK_CODES = frozenset({"UNAVAILABLE", "UNAUTHENTICATED", "INTERNAL"})
_LOOK_TEXT = re.compile(r"certificate|handshake|ssl|tls|alpn|peer|verification|http|closed|reset|eof")


def _port_advice(endpoint: Endpoint) -> str:
    if endpoint.rest_url is not None:
        return "check that this is lnd's REST port (8080 by default; 10009 is gRPC)"
    return "check that this is lnd's gRPC port (10009 by default; 8080 is REST)"


#: What is at fault: the connection or the node itself, the certificate (its dates and names too), or the macaroon.
Part = Literal["node", "certificate", "macaroon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What to tell of an error. ``what`` follows "lnd at host:port: "; ``advice`` begins with a small letter; no full stops.

    ``part`` is what is at fault.
    """

    what: str
    advice: str
    part: Part = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a server showed to a client that trusts anybody: its ``certificate``.

    ``is_plain``: it has no TLS. ``is_http``: it answers a web request.
    """

    certificate: Certificate | None = None
    is_plain: bool = False
    is_http: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A gRPC error and what is known around it. ``timeout_s`` is the bound that the call had.

    ``pinned`` are the certificates that are trusted (None: the default roots), ``seen`` is what `look_at` has seen.
    """

    method: str
    code: str
    text: str
    timeout_s: float
    pinned: tuple[Certificate, ...] | None = None
    proxy: ProxyInUse | None = None
    seen: Seen = Seen()


def cause_of(failure: Failure, endpoint: Endpoint, now: datetime | None = None) -> Cause:
    """Return the cause of an error. ``now`` is this machine's time."""
    code, text, lower = failure.code, tidy(failure.text), failure.text.lower()
    now = datetime.now(timezone.utc) if now is None else now
    if (found := macaroon_cause(failure.method, code, failure.text, endpoint, now)) is not None:
        return found
    if failure.proxy is not None and (found := _proxy_cause(failure, failure.proxy, lower)) is not None:
        return found
    # The second in grpc 1.6x, the others from Python's ssl
    if re.search(r"hostname verification|not in peer certificate|hostname mismatch|ip address mismatch", lower):
        return replace(_name_cause(failure), part="certificate")
    if "certificate_verify_failed" in lower or "certificate verify failed" in lower:
        return replace(_certificate_cause(failure, text, now), part="certificate")
    if code == "DEADLINE_EXCEEDED":
        return Cause(
            what=f"it didn't answer {failure.method} within {failure.timeout_s:.3g} s",
            advice="check that the node is up and can be reached from here",
        )
    if "refused" in lower:
        advice = "check that lnd is running and that this is its gRPC port (10009 by default)"
        if endpoint.rest_url is not None:
            advice = "check that lnd is running and that this is its REST port (8080 by default; lnd's restlisten)"
        return Cause(what=f"nothing listens there ({text})", advice=advice)
    if endpoint.rest_url is not None and (found := _rest_cause(failure, endpoint)) is not None:
        return found
    if failure.seen.is_http and failure.seen.is_plain:
        what = f"a web server without TLS answers there, and lnd's gRPC has TLS: the TLS handshake failed ({text})"
        return Cause(what=what, advice=_port_advice(endpoint))
    if failure.seen.is_http or "http2 header with status" in lower or "missing selected alpn" in lower:
        what = f"a web server answers there and not gRPC; this looks like lnd's REST port ({text})"
        return Cause(what=what, advice=_port_advice(endpoint))
    if failure.seen.is_plain:
        return Cause(what=f"what answers there has no TLS: the TLS handshake failed ({text})", advice=_port_advice(endpoint))
    if "handshake" in lower or "wrong_version_number" in lower:
        return Cause(what=f"the TLS handshake failed ({text})", advice=_port_advice(endpoint))
    if "unreachable" in lower or "no route" in lower:
        return Cause(what=f"there is no way to it from here ({text})", advice="check the network or the VPN, and the host")
    return Cause(what=f"{failure.method} was answered with {code}: {text}", advice="look into lnd's log")


def macaroon_cause(method: str, code: str, text: str, endpoint: Endpoint, now: datetime | None = None) -> Cause | None:
    """Return the cause if lnd's error is about the macaroon, else None. ``method`` is the RPC's name without its service."""
    found = _macaroon_cause(method, code, text, endpoint, datetime.now(timezone.utc) if now is None else now)
    return None if found is None else replace(found, part="macaroon")


def _macaroon_cause(method: str, code: str, text: str, endpoint: Endpoint, now: datetime) -> Cause | None:
    if code != "UNKNOWN":
        return None
    said, lower = f"lnd: {tidy(text)}", text.strip().lower()
    macaroon = "the macaroon" if endpoint.macaroon_path is None else f"the macaroon in {shown(endpoint.macaroon_path)}"
    if lower == "permission denied":
        return Cause(what=f"{macaroon} doesn't permit {method} ({said})", advice="bake one with the permission " + _uri(method))
    if "macaroon has expired" in lower:
        return Cause(
            what=f"{macaroon} has expired{_by_the_clock(text, now)} ({said})",
            advice="bake a new one, or write it into the same file",
        )
    if "different ip" in lower:
        return Cause(what=f"{macaroon} is for another IP address than this machine's ({said})", advice="bake one for this machine")
    if "signature mismatch" in lower:
        return Cause(
            what=f"{macaroon} isn't this node's ({said})", advice=f"give a macaroon of the node at {tidy(endpoint.address)}"
        )
    if re.match(r"cannot (retrieve|get) macaroon", lower):
        what = f"the node doesn't know {macaroon}: it is another node's, or was revoked ({said})"
        return Cause(what=what, advice=f"give a macaroon of the node at {tidy(endpoint.address)}, or bake a new one")
    if re.match(r"empty macaroon data|encoding/hex: |cannot determine data format|unmarshal v[12]: ", lower):
        return Cause(what=f"{macaroon} is cut off, or none at all ({said})", advice="copy the node's *.macaroon file again")
    if re.search(r"\baccount( [0-9a-f]+)? has expired$|\baccount not found$|account service has been (stopped|disabled)$", lower):
        return Cause(
            what=f"the account that {macaroon} is for can't be used ({said})",
            advice="look at it with `litcli accounts list`, or give a macaroon of another account",
        )
    if lower.startswith(("verification failed: ", 'caveat "', "expected 1 macaroon")):
        return Cause(what=f"{macaroon} was refused ({said})", advice="bake one without the caveat that isn't satisfied")
    return None


def wants_look(code: str, text: str) -> bool:
    """Return whether a look at the server can tell more about an error than its text does."""
    lower = text.lower()
    return code in _LOOK_CODES and "refused" not in lower and _LOOK_TEXT.search(lower) is not None


def look_at(address: str, port: int, timeout_s: float) -> Seen:
    """Return what the server at an IP address shows: its certificate, and whether it speaks HTTP. Never raises an Exception."""
    deadline = monotonic_s() + timeout_s
    seen = Seen()
    with suppress(Exception):
        with _connected(address, port, deadline) as plain:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            try:
                with context.wrap_socket(plain) as secure:
                    der = secure.getpeercert(binary_form=True)
                    with suppress(ValueError):
                        seen = Seen(certificate=read_der(der) if der else None)
                    return Seen(certificate=seen.certificate, is_http=_speaks_http(secure, deadline))
            except ssl.SSLError as error:
                if "WRONG_VERSION_NUMBER" not in str(error) and "RECORD_LAYER_FAILURE" not in str(error):
                    return seen
        with _connected(address, port, deadline) as plain:
            return Seen(is_plain=True, is_http=_speaks_http(plain, deadline))
    return seen


def _connected(address: str, port: int, deadline: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=max(deadline - monotonic_s(), 0.01))


def _speaks_http(connection: socket.socket, deadline: float) -> bool:
    connection.settimeout(max(deadline - monotonic_s(), 0.01))
    with suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        return connection.recv(16).startswith(b"HTTP/")
    return False


def _rest_cause(failure: Failure, endpoint: Endpoint) -> Cause | None:
    """Return the cause of what only REST meets: other servers that speak HTTP, and lnd's own gRPC port."""
    text, lower = tidy(failure.text), failure.text.lower()
    if failure.seen.is_plain:
        what = f"what answers there has no TLS: the TLS handshake failed ({text})"
        return Cause(what=what, advice="check the port, or give the URL with http:// if the node is on this machine")
    if "no application protocol" in lower or "isn't http" in lower:
        what = f"what answers there isn't lnd's REST interface; this looks like its gRPC port ({text})"
        return Cause(what=what, advice=_port_advice(endpoint))
    if lower.startswith("the connection "):
        scheme = "https" if endpoint.rest_url is not None and not endpoint.rest_url.has_tls else "http"
        what = f"it took the connection, but didn't answer {failure.method} ({text})"
        return Cause(what=what, advice=f"{_port_advice(endpoint)} and that the URL shouldn't begin with {scheme}://")
    if failure.code == WRONG_PATH:
        what = f"it has no {failure.method} at this URL ({text})"
        return Cause(what=what, advice="check the path of the URL, and that the node is lnd 0.17 or newer")
    if failure.code.startswith("HTTP "):
        what = f"{failure.method} was answered with {failure.code} ({text}), and not by lnd"
        return Cause(what=what, advice="check the URL, and the proxy or web server in front of lnd")
    return None


def _proxy_cause(failure: Failure, proxy: ProxyInUse, lower: str) -> Cause | None:
    named = f"the proxy {tidy(proxy.shown)} of the environment variable {proxy.variable}"
    advice = "check the proxy, or name the node's host in NO_PROXY to connect without it"
    if (answered := re.search(r"proxy returned response code (\d+)", lower)) is not None:
        status = answered[1]
        wants = "wants a login" if status == "407" else "refuses to connect to the node"
        return Cause(what=f"{named} {wants}: it answered {status}", advice=advice)
    if "certificate" in lower or "hostname verification" in lower:
        return None
    if failure.code == "DEADLINE_EXCEEDED":
        return Cause(what=f"{failure.method} wasn't answered within {failure.timeout_s:.3g} s through {named}", advice=advice)
    if failure.code == "UNAVAILABLE":
        down = f"{named} is down: nothing listens there" if "refused" in lower else f"no connection through {named}"
        return Cause(what=f"{down} ({tidy(failure.text)})", advice=advice)
    return None


def _name_cause(failure: Failure) -> Cause:
    shows = failure.seen.certificate
    names = ", ".join([*shows.hosts, *shows.addresses][:8]) if shows is not None else ""
    named = f", but {tidy(names)}" if names else ""
    return Cause(
        what=f"its TLS certificate doesn't name this host{named}",
        advice="use a host that it names, or set lnd's tlsextradomain or tlsextraip",
    )


def _certificate_cause(failure: Failure, text: str, now: datetime) -> Cause:
    """Return why the server's certificate isn't accepted."""
    shows, pinned = failure.seen.certificate, failure.pinned
    is_pinned = shows is not None and pinned is not None and any(each.der == shows.der for each in pinned)
    # A pin that has expired explains nothing where the server shows another certificate, unless its authority is what is pinned.
    if is_pinned or shows is None or pinned is None or re.search(r"has expired|not yet valid", text):
        for certificate in [shows, *(pinned or ())] if shows is not None else list(pinned or ()):
            if (found := _date_cause(certificate, now)) is not None:
                return found
    via = ""
    if failure.proxy is not None:
        via = f"; the proxy {tidy(failure.proxy.shown)} of {failure.proxy.variable} may have put its own in its place"
    if pinned is None:
        return Cause(
            what=f"nothing is pinned, and its TLS certificate isn't from an authority that this system trusts{via}",
            advice="give tls_cert_path, the path of lnd's tls.cert",
        )
    if is_pinned:
        return Cause(
            what=f"its TLS certificate is the one pinned, but isn't accepted ({text})", advice="make a new one and restart lnd"
        )
    if "expired" in text.lower() and shows is None:
        return Cause(what=f"its TLS certificate has expired ({text})", advice=_EXPIRED_ADVICE)
    return Cause(
        what=f"its TLS certificate isn't the one pinned{via}", advice="if the node has made a new one, copy its tls.cert again"
    )


_EXPIRED_ADVICE = (
    "let lnd make a new one (delete its tls.cert and tls.key and restart it, or use tlsautorefresh), and copy its tls.cert here; "
    "if the date is wrong, set this machine's clock"
)


def _date_cause(certificate: Certificate, now: datetime) -> Cause | None:
    if now > certificate.not_after:
        ago = in_words((now - certificate.not_after).total_seconds())
        what = f"its TLS certificate expired on {_day(certificate.not_after)}, {ago} ago by this machine's clock ({_day(now)})"
        return Cause(what=what, advice=_EXPIRED_ADVICE)
    if now < certificate.not_before:
        behind = in_words((certificate.not_before - now).total_seconds())
        what = (
            f"its TLS certificate isn't valid yet: it is from {_day(certificate.not_before)}, and this machine's clock "
            f"({_day(now)}) is {behind} behind that"
        )
        return Cause(
            what=what, advice="set this machine's clock; if it is right, look at the node's, and let lnd make a new certificate"
        )
    return None


def _by_the_clock(text: str, now: datetime) -> str:
    """Return by how much the clocks differ if a macaroon that lnd calls expired hasn't by this one; else how long ago it has."""
    found = re.search(r"time-before (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if found is None:
        return ""
    with suppress(ValueError):
        moment = datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00"))
        apart = in_words(abs((now - moment).total_seconds()))
        if moment > now:
            return f" by the node's clock, but not by this machine's, which is at least {apart} behind the node's"
        return f", {apart} ago by this machine's clock"
    return ""


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _uri(method: str) -> str:
    service = {"SendPaymentV2": "routerrpc.Router", "TrackPaymentV2": "routerrpc.Router", "GetState": "lnrpc.State"}
    return f"uri:/{service.get(method, 'lnrpc.Lightning')}/{method}"
