"""Read what a token says about itself, if it is a macaroon. A token may be opaque instead; that is no fault.

Knows the binary layout of a version-2 macaroon, L402's identifier and its caveats. Can't know whether the macaroon is genuine,
because only the server has the root key. Comparing the payment hash with the invoice's, and the expiry with the clock, is left to
`payments.checks`.

This module only reads. The token goes back to the server verbatim: pymacaroons would serialise it url-safe and unpadded, which
aperture refuses.

pymacaroons 0.13.0 accepts the following, so this module checks it:

- base64 of any alphabet: its ``if '_' or '-' in s`` is always true, so it decodes the url-safe alphabet only and silently drops any
  other character. Standard base64 with ``+`` or ``/`` is misread;
- anything after the signature, a signature of any length, and lengths written with padding;
- in the version-1 format, lengths with a sign or blanks in them (``int(…, 16)``). L402 issues version 2; version 1 is opaque here.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from .credential import MAX_TOKEN_CHARS

_BASE64 = re.compile(r"([A-Za-z0-9+/_-]+)={0,2}")
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")

_FORMAT_V2 = 2
_SIGNATURE_BYTES = 32

# u16 version 0 | payment_hash[32] | token_id[32] (bLIP-26, "Macaroon Identifier").
_IDENTIFIER_BYTES = 66
_IDENTIFIER_VERSION = b"\x00\x00"

# The numbers that Go's strconv.ParseInt(…, 10, 64) accepts, because aperture reads an expiry with it.
_INT64 = re.compile(r"[+-]?[0-9]{1,19}")
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Macaroon:
    """What can be read in a token without the server's root key. It holds neither signature nor token id, so it opens nothing.

    ``payment_hash`` is 32 bytes, or None if the identifier isn't L402's version 0. ``caveats`` are the first-party caveats in their
    order, as (condition, value), split at the first ``=`` as aperture does.
    """

    payment_hash: bytes | None
    caveats: tuple[tuple[str, str], ...] = ()

    @property
    def services(self) -> str | None:
        """The value of the last ``services`` caveat, verbatim; None if there is none or it is empty.

        Each of these caveats may only narrow the one before it (aperture's satisfiers refuse the token otherwise), so the last one
        names what the token opens.
        """
        values = [value for condition, value in self.caveats if condition == "services"]
        return (values[-1] or None) if values else None

    @property
    def valid_until(self) -> int | None:
        """The unix time in seconds after which the token is refused: the least of its ``[…_]valid_until`` caveats, or None.

        A value that isn't a 64-bit number is ignored, because it can't be known what a server makes of it.
        """
        times = [
            int(value)
            for condition, value in self.caveats
            if (condition == "valid_until" or condition.endswith("_valid_until")) and _INT64.fullmatch(value)
        ]
        return min((time for time in times if -_INT64_MAX <= time <= _INT64_MAX), default=None)


def parse_macaroon(token: str) -> Macaroon | None:
    """Return the macaroon in ``token`` (base64, standard or url-safe, padded or not); None for anything else. Never raises."""
    raw = _decoded(token)
    if raw is None or raw[:1] != bytes([_FORMAT_V2]):
        return None

    from pymacaroons.serializers import BinarySerializer

    serializer = BinarySerializer()
    try:
        macaroon: Any = serializer.deserialize_raw(raw)
        written = serializer.serialize_raw(macaroon)
    except Exception:  # noqa: BLE001 - pymacaroons raises Exception, UnicodeDecodeError, TypeError …: the token is no macaroon
        return None
    # pymacaroons writes a location, packet 01 00, even if there is none. Any other difference is a fault that its reader ignored.
    without_location = written[:1] + written[3:] if written[1:3] == b"\x01\x00" else written
    if raw not in (written, without_location) or len(macaroon.signature_bytes) != 2 * _SIGNATURE_BYTES:
        return None

    identifier: bytes = macaroon.identifier_bytes
    is_l402 = len(identifier) == _IDENTIFIER_BYTES and identifier.startswith(_IDENTIFIER_VERSION)
    return Macaroon(payment_hash=bytes(identifier[2:34]) if is_l402 else None, caveats=_first_party(macaroon.caveats))


def _decoded(token: str) -> bytes | None:
    matched = _BASE64.fullmatch(token) if len(token) <= MAX_TOKEN_CHARS else None
    if matched is None:
        return None
    digits = matched[1].translate(_URL_SAFE_TO_STANDARD)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4))
    except ValueError:  # a number of digits that base64 can't have
        return None


def _first_party(caveats: list[Any]) -> tuple[tuple[str, str], ...]:
    found = []
    for caveat in caveats:
        if not caveat.first_party():
            continue
        try:
            text = caveat.caveat_id_bytes.decode()
        except UnicodeDecodeError:
            continue  # not a condition of L402; unknown caveats are skipped
        condition, _, value = text.partition("=")
        found.append((condition, value))
    return tuple(found)
