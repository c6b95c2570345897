"""What goes back to the server: the value of ``Authorization``; and how to hide one in a text.

Knows the shape of a credential. Leaves to others which token to send and where tokens are kept.

An L402 credential is ``L402 <token>:<preimage>``: the token verbatim as the server gave it, the preimage in hex (bLIP-26,
"L402 HTTP/gRPC Protocol Specification"). aperture decodes strict, padded, standard base64 and lower-case hex, so a token that was
decoded and encoded again may be refused.
"""

from __future__ import annotations

import re

#: The scheme's names, the one of today first.
NAMES = ("L402", "LSAT")

#: A header line of aperture, nginx or Python's own http.server takes at least 8 KiB; a token above this bound is no token.
MAX_TOKEN_CHARS = 16 * 1024
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


def is_sendable(token: str) -> bool:
    """Whether ``token`` can stand in an ``Authorization`` header: not empty, visible ASCII, no colon or quote, not oversized."""
    return _TOKEN.fullmatch(token) is not None


def authorization(scheme: str, token: str, preimage: bytes) -> str:
    """The value of the ``Authorization`` header: ``L402 <token>:<64 lower-case hex digits>``.

    ``scheme`` is the one of the challenge that was answered (a server that offered only LSAT may know no other); ``preimage`` is
    32 bytes. Raises ValueError, which tells neither token nor preimage.
    """
    if scheme not in NAMES:
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
