"""Read the URI of a connection to a wallet: ``nostr+walletconnect://<wallet's key>?relay=wss://…&secret=<hex>`` (NIP-47).

Pure. The secret is the private key with which this client signs; it is in no text of this module. How a relay is reached is left to
`link`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from ..._core import env_vars
from ..._core.secret_text import kind_of, may_be_secret

#: More relays than this are a mistake: each may be waited for.
RELAYS_MAX = 8
#: A longer text isn't a URI of a wallet.
URI_CHARS_MAX = 4_096

_SCHEME = re.compile(r"(nostr\+walletconnect|nostrwalletconnect):(//)?", re.IGNORECASE)
_KEY = re.compile(r"[0-9a-f]{64}")
_FORM = "nostr+walletconnect://<wallet's key>?relay=wss://…&secret=<64 hex digits>"
#: The order of the group of secp256k1: a private key is above 0 and below it.
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, slots=True, kw_only=True)
class NwcUri:
    """What a wallet's URI holds: the wallet's public key (64 hex digits), its relays in order, and this client's private key."""

    wallet_key: str
    relays: tuple[str, ...]
    secret: str = field(repr=False)


def parse_uri(uri: object, environ: Mapping[str, str] | None = None) -> NwcUri:
    """Return what ``uri`` holds.

    ``environ``, by default `os.environ`, may allow relays without TLS on any host (``ROUTEWEILER_ALLOW_HTTP_WALLET``).

    Raises: ValueError for anything but such a URI. Its text repeats nothing of it that may be a secret.
    """
    if not isinstance(uri, str):
        raise ValueError(f"uri must be a text {_FORM}, not a {type(uri).__name__}")
    text = uri.strip()
    scheme = _SCHEME.match(text)
    if scheme is None or len(text) > URI_CHARS_MAX:
        kind = kind_of(text)
        looks = f": it looks like {kind}, and so isn't shown" if kind != "a secret" else ""
        raise ValueError(f"uri isn't a wallet's URI {_FORM}{looks}")
    key, _, query = text[scheme.end() :].partition("?")
    key = key.rstrip("/").lower()
    if not _KEY.fullmatch(key):
        raise ValueError("uri names no wallet: 64 hex digits must come after the scheme")
    try:
        pairs = parse_qsl(query.partition("#")[0], keep_blank_values=True, max_num_fields=2 * RELAYS_MAX + 16)
    except ValueError:
        raise ValueError("uri has too many parameters") from None
    secrets = [value for name, value in pairs if name == "secret"]
    if len(secrets) != 1:
        raise ValueError("uri has no secret of 64 hex digits, or more than one; in a shell it needs quotes, else an & ends it")
    if not _KEY.fullmatch(secrets[0].lower()) or not 0 < int(secrets[0], 16) < _ORDER:
        raise ValueError(_bad_secret(secrets[0]))
    if secrets[0].lower() == key:
        raise ValueError("uri has the wallet's public key in place of the secret")
    allow_plain = (os.environ if environ is None else environ).get(env_vars.ALLOW_HTTP_WALLET) == "1"
    relays = tuple(dict.fromkeys(_relay(value, allow_plain=allow_plain) for name, value in pairs if name == "relay"))
    if not relays:
        raise ValueError("uri names no relay: add relay=wss://…")
    if len(relays) > RELAYS_MAX:
        raise ValueError(f"uri names {len(relays)} relays, and {RELAYS_MAX} are the most")
    return NwcUri(wallet_key=key, relays=relays, secret=secrets[0].lower())


def _bad_secret(secret: str) -> str:
    if secret.lower().startswith("nsec1"):
        return "the secret of uri is an nsec: give it as 64 hex digits, as the wallet wrote it"
    return "the secret of uri isn't a private key of 64 hex digits"


def _relay(url: str, *, allow_plain: bool) -> str:
    """Return a relay's URL in one spelling. Raises: ValueError."""
    shown = "" if may_be_secret(url) else f" ({url[:100]!r})"
    try:
        parts = urlsplit(url.strip())
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(f"a relay of uri isn't a URL{shown}") from None
    if parts.scheme not in ("wss", "ws") or not host or any(not 33 <= ord(each) <= 126 for each in url.strip()):
        raise ValueError(f"a relay of uri isn't a URL wss://host{shown}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a relay of uri has a user name or password in it, which relays don't have")
    if parts.scheme == "ws" and not (allow_plain or _is_near(host)):
        way_out = f"use wss://, or set {env_vars.ALLOW_HTTP_WALLET}=1 if you trust the way to it"
        raise ValueError(f"a relay of uri, at {host[:100]}, is reached without TLS: {way_out}")
    bracketed = f"[{host}]" if ":" in host else host
    place = bracketed if port is None else f"{bracketed}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{place}{parts.path or '/'}{query}"


def _is_near(host: str) -> bool:
    """Return whether what goes to ``host`` stays on this machine, or within Tor."""
    if host == "localhost" or host.endswith((".localhost", ".onion")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
