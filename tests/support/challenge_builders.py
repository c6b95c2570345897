"""Challenges to test with: invoices signed with a known key, macaroons written byte by byte. Good, or bad in a chosen way.

Written against BOLT-11 and libmacaroons' format, not with the libraries that the code under test reads them with: those can't write
what they would not.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from bech32 import CHARSET, bech32_decode, bech32_encode
from coincurve import PrivateKey

KEY = PrivateKey(b"\x11" * 32)
PAYEE = KEY.public_key.format().hex()
PAYMENT_HASH = hashlib.sha256(b"\x07" * 32).digest()
PAYMENT_SECRET = b"\x33" * 32
CREATED_AT = 1_700_000_000

Words = list[int]
Fields = Sequence[tuple[str, Words]]


def words(data: bytes) -> Words:
    """The bits of ``data`` in groups of five, zero-padded."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    return [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]


def number(value: int, count: int) -> Words:
    """``value`` as ``count`` groups of five bits."""
    return [value >> 5 * at & 31 for at in reversed(range(count))]


P = ("p", words(PAYMENT_HASH))
S = ("s", words(PAYMENT_SECRET))
D = ("d", words(b"a page"))


def invoice(
    head: str = "lnbcrt100n", fields: Fields = (P, S, D), *, created_at: int = CREATED_AT, key: PrivateKey = KEY, loose: Words = ()
) -> str:
    """A BOLT-11 invoice with a right checksum and signature, whatever it says. ``loose``: words behind the fields, of no field."""
    data = number(created_at, 7)
    for name, value in fields:
        data += [CHARSET.index(name), *number(len(value), 2), *value]
    data += loose
    bits = "".join(f"{word:05b}" for word in data)
    bits += "0" * (-len(bits) % 8)
    signed = head.encode() + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return bech32_encode(head, data + words(key.sign_recoverable(signed)))


def remade(head: str, data: Iterable[int]) -> str:
    """Bech32 with a right checksum."""
    return bech32_encode(head, list(data))


def taken_apart(text: str) -> tuple[str, Words]:
    head, data = bech32_decode(text)
    assert head is not None
    assert data is not None
    return head, data


def identifier(payment_hash: bytes = PAYMENT_HASH, *, version: int = 0) -> bytes:
    return version.to_bytes(2, "big") + payment_hash + b"\x44" * 32


def macaroon(
    ident: bytes | None = None,
    caveats: Sequence[str | bytes] = ("services=pages:0", "pages_capabilities="),
    *,
    location: str | None = "lsat",
    signature: bytes = b"\x55" * 32,
    third_party: bytes | None = None,
) -> bytes:
    """A version-2 macaroon: its binary form."""

    def packet(kind: int, data: bytes) -> bytes:
        length = len(data)
        size = bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
        return bytes([kind]) + size + data

    out = b"\x02"
    if location is not None:
        out += packet(1, location.encode())
    out += packet(2, identifier() if ident is None else ident) + b"\0"
    for caveat in caveats:
        out += packet(2, caveat if isinstance(caveat, bytes) else caveat.encode()) + b"\0"
    if third_party is not None:
        out += packet(1, b"elsewhere") + packet(2, third_party) + packet(4, b"\x66" * 48) + b"\0"
    return out + b"\0" + packet(6, signature)


def token(raw: bytes | None = None) -> str:
    """As aperture encodes it: padded standard base64."""
    return base64.b64encode(macaroon() if raw is None else raw).decode()


INVOICE = invoice()
TOKEN = token()
L402 = f'L402 version="0", token="{TOKEN}", macaroon="{TOKEN}", invoice="{INVOICE}"'
LSAT = f'LSAT macaroon="{TOKEN}", invoice="{INVOICE}"'
#: A challenge of the Payment scheme that isn't for Lightning.
PAYMENT = (
    'Payment id="x9", realm="pages.example", method="tempo", intent="charge", '
    'request="eyJpbnZvaWNlIjoibG5iYzEifQ", expires="2026-01-01T00:00:00Z"'
)
