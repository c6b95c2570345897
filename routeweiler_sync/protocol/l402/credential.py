"""What goes back to the server, and to whom: the ``Authorization`` value, a token's origin and scope, and how to hide one in a log.

Knows the shape of a credential. Leaves to others which token to send (adapter, checkout) and where tokens are kept (ledger).

An L402 credential is ``L402 <token>:<preimage>``: the token verbatim as the server gave it, the preimage in hex (bLIP-26,
"L402 HTTP/gRPC Protocol Specification"). aperture decodes strict, padded, standard base64 and lower-case hex, so a token that was
decoded and encoded again may be refused.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Literal

from urllib3.util import parse_url

if TYPE_CHECKING:
    from .challenge import Challenge

Scheme = Literal["L402", "LSAT"]

#: A header line of aperture, nginx or Python's own http.server takes at least 8 KiB; a token above this bound is no token.
MAX_TOKEN_CHARS = 16 * 1024
#: A longer scope or path is replaced by its hash: it is a key in the ledger, and PostgreSQL indexes no text above 2704 bytes.
MAX_SCOPE_CHARS = 512
PREIMAGE_BYTES = 32

# Visible ASCII without the quote and the colon: what can stand in a header and be told from the preimage.
_TOKEN_CHAR = "[!#-9;-~]"  # noqa: S105 - a class of characters, no password
_TOKEN = re.compile(f"{_TOKEN_CHAR}{{1,{MAX_TOKEN_CHARS}}}")
_CREDENTIAL = re.compile(rf"(?:L402|LSAT) +{_TOKEN_CHAR}{{1,{MAX_TOKEN_CHARS}}}:[0-9a-f]{{64}}", re.IGNORECASE)

# Looser than _CREDENTIAL: a credential cut short by a log's own limit must not slip through. A token has no blanks and a start
# needs one, so no character is scanned for two starts: the work is linear in the text.
_CREDENTIAL_IN_TEXT = re.compile(rf"\b(L402|LSAT)[ \t]{{1,8}}[^\s:\"']{{1,{MAX_TOKEN_CHARS}}}:[0-9a-f]{{8,}}", re.IGNORECASE)
_TOKEN_IN_TEXT = re.compile(
    rf"\b((?:token|macaroon)[ \t]{{0,8}}=[ \t]{{0,8}}\\{{0,4}}[\"']?)[^\s,;\"'\\]{{1,{MAX_TOKEN_CHARS}}}", re.IGNORECASE
)

# A URL whose path urllib3's parser, which takes its time, leaves as it is: nothing in it is quoted, and no segment is "." or "..".
_PLAIN_PATH = re.compile(
    r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?((?:/(?!\.{1,2}(?:[/?#]|\Z))[A-Za-z0-9_.~-]*)+)(?:[?#]|\Z)", re.ASCII
)

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_sendable(token: str) -> bool:
    """Whether ``token`` can stand in an ``Authorization`` header: not empty, visible ASCII, no colon or quote, not oversized."""
    return _TOKEN.fullmatch(token) is not None


def authorization(scheme: str, token: str, preimage: bytes) -> str:
    """The value of the ``Authorization`` header: ``L402 <token>:<64 lower-case hex digits>``.

    ``scheme`` is the one of the challenge that was answered (a server that offered only LSAT may know no other); ``preimage`` is
    32 bytes. Raises ValueError, which tells neither token nor preimage.
    """
    if scheme not in ("L402", "LSAT"):
        raise ValueError("the scheme of a credential is L402 or LSAT")
    if not is_sendable(token):
        raise ValueError("the token is empty, oversized, or holds a character that can't be sent in a credential")
    if len(preimage) != PREIMAGE_BYTES:
        raise ValueError(f"a preimage is {PREIMAGE_BYTES} bytes, not {len(preimage)}")
    return f"{scheme} {token}:{preimage.hex()}"


def is_credential(value: str) -> bool:
    """Whether the whole of ``value`` is an L402 or LSAT credential, as `authorization` makes it (any case)."""
    return _CREDENTIAL.fullmatch(value) is not None


def redact(text: str) -> str:
    """``text`` with every L402 or LSAT credential, and every ``token=`` or ``macaroon=`` parameter, replaced, for logs."""
    text = _CREDENTIAL_IN_TEXT.sub(r"\1 <redacted>", text)
    return _TOKEN_IN_TEXT.sub(r"\1<redacted>", text)


def scope_of(challenge: Challenge, path: str) -> str:
    """What a token for ``challenge`` opens at its origin, as the ledger's key: at most `MAX_SCOPE_CHARS` of printable text.

    ``services=…`` where the macaroon names services: aperture binds a token to the service's name, not to a path. Else, and for an
    opaque token, ``path`` (of the URL that answered 402), for nothing wider is known.
    """
    if challenge.services is not None:
        return "services=" + _bounded(challenge.services, MAX_SCOPE_CHARS - len("services="))
    return _bounded(path or "/", MAX_SCOPE_CHARS)


def _bounded(text: str, max_chars: int) -> str:
    # ASCII also keeps out NUL, which PostgreSQL can't store, and what looks alike but isn't.
    if len(text) <= max_chars and text.isascii() and text.isprintable():
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of an http or https URL: lower case, default port dropped, no user info, IPv6 in brackets, IDNA.

    A token goes only to the origin that issued it. Read with urllib3's own parser, with which requests prepares a URL: two parsers
    that disagree about one (``http://a\\@b``) would let one host have another's tokens. Raises ValueError.
    """
    parsed = parse_url(url)
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host:
        raise ValueError("an origin is that of an http or https URL with a host")
    port = "" if parsed.port in (None, _DEFAULT_PORTS[parsed.scheme]) else f":{parsed.port}"
    return f"{parsed.scheme}://{parsed.host}{port}"


def path_of(url: str) -> str:
    """The path of an http or https URL, without query and fragment; ``/`` where it is empty. Raises ValueError.

    A key in the ledger, as a scope is, and bounded in the same way: a path above `MAX_SCOPE_CHARS` is replaced by its hash.
    """
    plain = _PLAIN_PATH.match(url)
    return _bounded(plain[1] if plain is not None else parse_url(url).path or "/", MAX_SCOPE_CHARS)
