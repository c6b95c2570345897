"""Write the credential that goes to the server, the value of ``Authorization``; and hide credentials in a text.

Knows the form of a credential. Which token to send is left to `paywall`, and where tokens are kept to `ledger`.

An L402 credential is ``L402 <token>:<preimage>``: the token verbatim as the server gave it, the preimage in hex (bLIP-26,
"L402 HTTP/gRPC Protocol Specification"). aperture decodes strict, padded, standard base64 and lower-case hex, so it may refuse a
token that was decoded and encoded again.
"""

from __future__ import annotations

import re

#: The scheme's names, today's first.
NAMES = ("L402", "LSAT")

#: aperture, nginx and Python's own http.server accept header lines of at least 8 KiB. Anything longer than this bound is no token.
MAX_TOKEN_CHARS = 16 * 1024
PREIMAGE_BYTES = 32

# Visible ASCII without the quote and the colon: a header can hold it, and it can be told apart from the preimage after the colon.
_TOKEN_CHAR = "[!#-9;-~]"  # noqa: S105 - a class of characters, no password
_TOKEN = re.compile(f"{_TOKEN_CHAR}{{1,{MAX_TOKEN_CHARS}}}")
_CREDENTIAL = re.compile(rf"(?:L402|LSAT) +{_TOKEN_CHAR}{{1,{MAX_TOKEN_CHARS}}}:[0-9a-f]{{64}}", re.IGNORECASE)

# Looser than _CREDENTIAL: a credential that a log's own limit has cut short must be found too. A token has no blanks and the start
# of a match needs one, so no character is scanned for two starts: the work is linear in the length of the text.
_CREDENTIAL_IN_TEXT = re.compile(rf"\b(L402|LSAT)[ \t]{{1,8}}[^\s:\"']{{1,{MAX_TOKEN_CHARS}}}:[0-9a-f]{{8,}}", re.IGNORECASE)
_TOKEN_IN_TEXT = re.compile(
    rf"\b((?:token|macaroon)[ \t]{{0,8}}=[ \t]{{0,8}}\\{{0,4}}[\"']?)[^\s,;\"'\\]{{1,{MAX_TOKEN_CHARS}}}", re.IGNORECASE
)


def is_sendable(token: str) -> bool:
    """Return whether ``token`` can be sent in ``Authorization``: visible ASCII, no colon or quote, not empty, not oversized."""
    return _TOKEN.fullmatch(token) is not None


def authorization(scheme: str, token: str, preimage: bytes) -> str:
    """Return the value of the ``Authorization`` header: ``L402 <token>:<64 lower-case hex digits>``.

    ``scheme`` is the scheme of the challenge that is answered, since a server that offered only LSAT may know no other.
    ``preimage`` is 32 bytes.

    Raises: ValueError for arguments that make no credential. Its text holds neither token nor preimage.
    """
    if scheme not in NAMES:
        raise ValueError("the scheme of a credential must be L402 or LSAT")
    if not is_sendable(token):
        raise ValueError("the token is empty, oversized, or holds a character that can't be sent in a credential")
    if len(preimage) != PREIMAGE_BYTES:
        raise ValueError(f"a preimage has {PREIMAGE_BYTES} bytes, not {len(preimage)}")
    return f"{scheme} {token}:{preimage.hex()}"


def is_credential(value: str) -> bool:
    """Return whether the whole of ``value`` is an L402 or LSAT credential, as `authorization` writes it, in any case."""
    return _CREDENTIAL.fullmatch(value) is not None


def redact(text: str) -> str:
    """Return ``text`` for a log, with all L402 and LSAT credentials and the values of all ``token=`` and ``macaroon=`` replaced."""
    text = _CREDENTIAL_IN_TEXT.sub(r"\1 <redacted>", text)
    return _TOKEN_IN_TEXT.sub(r"\1<redacted>", text)
