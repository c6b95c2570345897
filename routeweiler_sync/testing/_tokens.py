"""Tokens as servers make them: aperture's macaroons, other servers' macaroons, and tokens that aren't macaroons.

Knows how a token is written and, for aperture's, how it is checked. What a token opens is left to `_ways`.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pymacaroons import Macaroon

TokenKind = Literal["macaroon", "macaroon-urlsafe", "macaroon-v1", "json", "uuid", "jwt", "hex", "opaque"]
_IDENTIFIER = struct.Struct(">H32s32s")
#: How long a token lives by its own account, where the service says nothing of it.
_LIFE_S = 3_600


def make_token(kind: TokenKind, *, root_key: bytes, token_id: bytes, payment_hash: bytes, caveats: Sequence[str]) -> str:
    """Return a new token. ``root_key``, ``token_id`` and ``payment_hash`` are 32 bytes each; only macaroons have ``caveats``."""
    if kind == "macaroon":
        return mint(root_key, token_id, payment_hash, caveats)
    if kind == "macaroon-urlsafe":
        return _url_safe(base64.b64decode(mint(root_key, token_id, payment_hash, caveats)))
    if kind == "macaroon-v1":
        return _mint_v1(root_key, payment_hash, caveats)
    return _OTHERS[kind](payment_hash)


def mint(root_key: bytes, token_id: bytes, payment_hash: bytes, caveats: Sequence[str]) -> str:
    """Return a macaroon such as aperture mints: version 2, identifier of 66 bytes, standard padded base64.

    ``root_key``, ``token_id`` and ``payment_hash`` are 32 bytes each; ``caveats`` are texts like ``services=weather:0``.
    """
    from pymacaroons import MACAROON_V2, Macaroon
    from pymacaroons.serializers import BinarySerializer

    identifier = _IDENTIFIER.pack(0, payment_hash, token_id)
    macaroon = Macaroon(location="lsat", identifier=identifier, key=root_key, version=MACAROON_V2)
    for caveat in caveats:
        macaroon.add_first_party_caveat(caveat)
    return base64.standard_b64encode(BinarySerializer().serialize_raw(macaroon)).decode("ascii")


def parse(token: str) -> Macaroon | None:
    """Return the macaroon in ``token``. None unless ``token`` is padded standard base64 of its one canonical encoding."""
    from pymacaroons.serializers import BinarySerializer

    try:
        raw = base64.b64decode(token, validate=True)
        macaroon = BinarySerializer().deserialize_raw(raw)
        rewritten = BinarySerializer().serialize_raw(macaroon)
    except Exception:  # noqa: BLE001 - pymacaroons raises many kinds of errors for junk
        return None
    return macaroon if rewritten == raw and base64.standard_b64encode(raw).decode("ascii") == token else None


def token_id_of(macaroon: Macaroon) -> bytes | None:
    """Return the token id (32 bytes) in the macaroon's identifier. None if the identifier isn't L402's version 0."""
    if len(macaroon.identifier_bytes) != _IDENTIFIER.size:
        return None
    version, _, token_id = _IDENTIFIER.unpack(macaroon.identifier_bytes)
    return bytes(token_id) if version == 0 else None


def caveats_of(macaroon: Macaroon) -> list[tuple[str, str]]:
    """Return the caveats as (condition, value), split at the first ``=``."""
    parts = (caveat.caveat_id_bytes.decode(errors="replace").partition("=") for caveat in macaroon.caveats)
    return [(condition, value) for condition, _, value in parts]


def is_signed(macaroon: Macaroon, root_key: bytes) -> bool:
    """Return whether the HMAC chain of ``macaroon`` starts at ``root_key``. The caveats' conditions aren't checked."""
    from pymacaroons import Verifier
    from pymacaroons.exceptions import MacaroonVerificationFailedException

    verifier = Verifier()
    verifier.satisfy_general(lambda _: True)
    try:
        return bool(verifier.verify(macaroon, root_key))
    except MacaroonVerificationFailedException:
        return False


def _mint_v1(root_key: bytes, payment_hash: bytes, caveats: Sequence[str]) -> str:
    """Return a version-1 macaroon as pymacaroons writes it: url-safe base64, the payment hash in hex as the identifier."""
    from pymacaroons import MACAROON_V1, Macaroon

    macaroon = Macaroon(location="", identifier=payment_hash.hex(), key=root_key.hex(), version=MACAROON_V1)
    for caveat in (*caveats, f"payment_hash = {payment_hash.hex()}", f"nonce = {secrets.token_hex(8)}"):
        macaroon.add_first_party_caveat(caveat)
    return str(macaroon.serialize())


def _json(payment_hash: bytes) -> str:
    claims = {"hash": payment_hash.hex(), "exp": int(time.time() + _LIFE_S) * 1000, "nonce": secrets.token_hex(4)}
    return base64.standard_b64encode(json.dumps(claims).encode()).decode("ascii")


def _jwt(payment_hash: bytes) -> str:
    claims = {"payment_hash": payment_hash.hex(), "exp": int(time.time() + _LIFE_S), "jti": secrets.token_hex(8)}
    signed = ".".join(_url_safe(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{signed}.{_url_safe(hmac.digest(secrets.token_bytes(32), signed.encode(), 'sha256'))}"


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


_OTHERS: dict[TokenKind, Callable[[bytes], str]] = {
    "json": _json,
    "uuid": lambda _: str(uuid.uuid4()),
    "jwt": _jwt,
    "hex": lambda payment_hash: payment_hash.hex() + secrets.token_hex(16),
    "opaque": lambda _: secrets.token_urlsafe(24),
}
#: All kinds of tokens.
TOKEN_KINDS: tuple[TokenKind, ...] = ("macaroon", "macaroon-urlsafe", "macaroon-v1", *_OTHERS)
