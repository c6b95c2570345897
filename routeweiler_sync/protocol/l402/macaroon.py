"""What a token says of itself, where it is a macaroon. A token may as well be opaque; then this says None and nobody minds.

Knows the binary layout of a version-2 macaroon, L402's identifier and its caveats. Can't know whether the macaroon is genuine: the
root key is the server's. Leaves to checkout to compare the payment hash with the invoice's and the expiry with the clock.

Reading only. The token goes back to the server verbatim: pymacaroons would serialise it url-safe and unpadded, which aperture
refuses.

What pymacaroons 0.13.0 lets pass, so that it is checked here:

- base64: ``if '_' or '-' in s`` is always true, so it decodes the url-safe alphabet only, and drops any other character in
  silence: standard base64 with ``+`` or ``/`` is misread;
- anything may follow the signature, the signature may have any length, and lengths may be written with padding;
- in the version-1 format, lengths with a sign or blanks in them (``int(…, 16)``). L402 mints version 2: version 1 is opaque here.
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

# What Go's strconv.ParseInt(…, 10, 64) takes, for that is how aperture reads an expiry.
_INT64 = re.compile(r"[+-]?[0-9]{1,19}")
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Macaroon:
    """What can be read in a token without the server's root key. Holds neither signature nor token id, so it opens nothing.

    ``payment_hash`` is 32 bytes, or None where the identifier isn't L402's version 0. ``caveats`` are the first-party ones, in
    order, as (condition, value), split at the first ``=`` as aperture does.
    """

    payment_hash: bytes | None
    caveats: tuple[tuple[str, str], ...] = ()

    @property
    def services(self) -> str | None:
        """The value of the last ``services`` caveat, verbatim; None where there is none or it is empty.

        Each further one may only narrow the one before (aperture's satisfiers refuse the token otherwise), so the last is what the
        token fits.
        """
        values = [value for condition, value in self.caveats if condition == "services"]
        return (values[-1] or None) if values else None

    @property
    def valid_until(self) -> int | None:
        """Unix seconds after which the token is refused: the least of the ``[…_]valid_until`` caveats; None where there is none.

        A value that is no 64-bit number is passed over: what a server makes of it can't be told.
        """
        times = [
            int(value)
            for condition, value in self.caveats
            if (condition == "valid_until" or condition.endswith("_valid_until")) and _INT64.fullmatch(value)
        ]
        return min((time for time in times if -_INT64_MAX <= time <= _INT64_MAX), default=None)


def parse_macaroon(token: str) -> Macaroon | None:
    """The macaroon in ``token`` (base64, standard or url-safe, padded or not); None where it is anything else. Never raises."""
    raw = _decoded(token)
    if raw is None or raw[:1] != bytes([_FORMAT_V2]):
        return None

    from pymacaroons.serializers import BinarySerializer

    serializer = BinarySerializer()
    try:
        macaroon: Any = serializer.deserialize_raw(raw)
        written = serializer.serialize_raw(macaroon)
    except Exception:  # noqa: BLE001 - it raises Exception, UnicodeDecodeError, TypeError …; each means "no macaroon"
        return None
    # It writes a location, packet 01 00, even where there is none. Any other difference is something that it passed over.
    without_location = written[:1] + written[3:] if written[1:3] == b"\x01\x00" else written
    if raw not in (written, without_location) or len(macaroon.signature_bytes) != 2 * _SIGNATURE_BYTES:
        return None

    identifier: bytes = macaroon.identifier_bytes
    ours = len(identifier) == _IDENTIFIER_BYTES and identifier.startswith(_IDENTIFIER_VERSION)
    return Macaroon(payment_hash=bytes(identifier[2:34]) if ours else None, caveats=_first_party(macaroon.caveats))


def _decoded(token: str) -> bytes | None:
    matched = _BASE64.fullmatch(token) if len(token) <= MAX_TOKEN_CHARS else None
    if matched is None:
        return None
    digits = matched[1].translate(_URL_SAFE_TO_STANDARD)
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4))
    except ValueError:  # one digit too many
        return None


def _first_party(caveats: list[Any]) -> tuple[tuple[str, str], ...]:
    found = []
    for caveat in caveats:
        if not caveat.first_party():
            continue
        try:
            text = caveat.caveat_id_bytes.decode()
        except UnicodeDecodeError:
            continue  # no condition of L402's; unknown caveats are skipped
        condition, _, value = text.partition("=")
        found.append((condition, value))
    return tuple(found)
