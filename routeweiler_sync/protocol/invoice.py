"""What a challenge costs: a BOLT-11 invoice, read strictly.

Knows BOLT-11's text form and what lnd needs to pay an invoice. Whether an invoice is expired, affordable and on the right network
is left to `payments.checks`. Whether its feature bits are understood is left to the node, which checks them before it starts a
payment.

The signature is left to the library bolt11. If there is an ``n`` field, the signature is verified against the key in it (a high-S
signature is refused). Otherwise the key is *recovered* from the signature, so nearly any signature gives some payee. That is
BOLT-11's design: an invoice that was altered and given a new checksum has a payee that doesn't exist, and no payment reaches it.

Checksum and fields are read here, because the library takes milliseconds for them: it makes a bit string of each character. What it
reads, and what it refuses, this module reads and refuses alike (tests compare the two). Besides, this module refuses what the
library accepts:

- mixed case, and characters that only become ASCII when lower-cased (U+212A KELVIN SIGN);
- anything after the amount in the human-readable part that isn't a word character (``lnbc10u-foo``), and leading zeros;
- fractions of a msat (``lnbc15p`` is read as 1 msat, ``lnbc1p`` as 0), an amount of 0, and an amount of any size (Decimal rounds
  beyond 28 digits);
- a repeated field: the first one counts, for the library as for lnd, and a second payment hash can only mislead;
- an expiry of any size, even one that no clock or database can hold.

And the library doesn't know blinded paths (field ``5``), with which lnd (0.18.3 and later, ``addinvoice --blind``) replaces the
payment secret: whoever receives the payment recognizes it by the path. An invoice must have one or the other.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from dataclasses import dataclass, field

from .._core.signals import came_by_signal
from ..errors import ChallengeParseError

#: lnd's own bound (zpay32, maxInvoiceLength): as much as fits into a QR code.
MAX_INVOICE_CHARS = 7089
#: All the bitcoin that there will ever be.
MAX_AMOUNT_MSAT = 21_000_000 * 100_000_000 * 1_000
#: A hundred years. lnd counts in nanoseconds and overflows after 292 years.
MAX_EXPIRY_S = 100 * 366 * 24 * 3600

_NETWORKS = {"bc": "bitcoin", "tb": "bitcoin-testnet", "tbs": "bitcoin-signet", "bcrt": "bitcoin-regtest"}
#: The networks that an invoice can be of, as this package names them.
NETWORKS = tuple(_NETWORKS.values())
_HUMAN_READABLE = re.compile(r"ln(bcrt|bc|tbs|tb)([0-9]*)([munp]?)")
# The multipliers in units of 0.1 msat. That is a pico-bitcoin, the smallest unit that BOLT-11 can write.
_PICOBITCOIN = {"": 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}
_MAX_AMOUNT_DIGITS = len(str(MAX_AMOUNT_MSAT)) + 1

_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
# The same words as digits of base 32, which Python reads a number from.
_DIGITS = str.maketrans(_BECH32, "0123456789abcdefghijklmnopqrstuv")
# BIP-173: what each value of the checksum's five top bits adds to it.
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = tuple(
    functools.reduce(lambda left, right: left ^ right, (each for bit, each in enumerate(_GENERATOR) if top >> bit & 1), 0)
    for top in range(32)
)
_TIMESTAMP_WORDS, _SIGNATURE_WORDS, _CHECKSUM_WORDS = 7, 104, 6
_BLINDED_PATH = "5"
# The fields that an invoice may have once: all but the route hints, the blinded paths and the fallback addresses.
_SINGLE_FIELDS = "psdhnxcm9"
# BOLT-11 has a reader skip these fields unless they have exactly this many words. A skipped field isn't counted.
_EFFECTIVE_WORDS = {"p": 52, "s": 52, "h": 52, "n": 53}
_EXPIRY_S_DEFAULT = 3600
#: How many invoices a process remembers. A purchase reads its own several times.
_INVOICES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """A BOLT-11 invoice that lnd could pay. Times are unix time in seconds.

    - ``bolt11``: the text to give to the node, in lower case.
    - ``payment_hash``: 32 bytes.
    - ``network``: ``bitcoin``, ``bitcoin-testnet`` (3 or 4, which the text doesn't distinguish), ``bitcoin-signet`` or
      ``bitcoin-regtest``.
    - ``description``: what the payee wrote, unchanged. It mustn't be trusted, nor printed unescaped. Empty if the invoice has only
      the hash of a description.
    - ``payee``: the payee's public key, 66 hex digits.
    """

    bolt11: str = field(repr=False)
    payment_hash: bytes
    amount_msat: int
    network: str
    created_at: int
    expires_at: int
    description: str
    payee: str


def decode_invoice(text: str) -> Invoice:
    """Return the BOLT-11 invoice in ``text``, after verifying its signature. The last ones are remembered: they are immutable.

    Raises: ChallengeParseError, and nothing else, if ``text`` isn't an invoice, or if it can't be bounded or paid: no amount,
    neither a payment secret nor a blinded path (lnd refuses to send without one), an unknown network, repeated fields. The error's
    text is a clause, to be used as the reason in a longer text.
    """
    return _decoded(text)


@functools.lru_cache(_INVOICES_MAX)
def _decoded(text: str) -> Invoice:
    """Do as `decode_invoice`, without a memory."""
    network, amount_msat, text = _read_head(text)
    head, _, data = text.rpartition("1")
    if not set(_BECH32).issuperset(data) or not _is_checksum_right(head, data):
        raise _undecodable("Bech32 string is not valid")
    signed, signature = data[: -_SIGNATURE_WORDS - _CHECKSUM_WORDS], data[-_SIGNATURE_WORDS - _CHECKSUM_WORDS : -_CHECKSUM_WORDS]
    if len(signed) < _TIMESTAMP_WORDS:
        raise _undecodable("Too short to contain signature")
    fields = _read_fields(signed[_TIMESTAMP_WORDS:])
    payee = _verified_payee(head, signed, _octets(signature), _octets(fields["n"][0]).hex() if "n" in fields else None)
    _check_fields(fields)
    try:
        description = _octets(fields["d"][0]).decode() if "d" in fields else ""
    except UnicodeDecodeError as exc:
        raise _undecodable(type(exc).__name__) from None
    created_at = _number(signed[:_TIMESTAMP_WORDS])
    expiry_s = _number(fields["x"][0]) if "x" in fields else _EXPIRY_S_DEFAULT
    if not 0 <= expiry_s <= MAX_EXPIRY_S:
        raise ChallengeParseError("the invoice's expiry is negative or above a hundred years")
    return Invoice(
        bolt11=text,
        payment_hash=_octets(fields["p"][0]),
        amount_msat=amount_msat,
        network=network,
        created_at=created_at,
        expires_at=created_at + expiry_s,
        description=description,
        payee=payee,
    )


def _read_head(text: str) -> tuple[str, int, str]:
    """Return the network, the amount in msat, and the text in lower case.

    Reads the human-readable part alone, and calculates in integers. Raises: ChallengeParseError.
    """
    if len(text) > MAX_INVOICE_CHARS:
        raise ChallengeParseError(f"the invoice is longer than {MAX_INVOICE_CHARS} characters")
    if not text.isascii() or text not in (text.lower(), text.upper()):
        raise ChallengeParseError("the invoice isn't bech32: it mixes upper and lower case, or isn't ASCII")
    text = text.lower()
    head = _HUMAN_READABLE.fullmatch(text.rpartition("1")[0])
    if head is None:
        raise ChallengeParseError("the invoice isn't BOLT-11, names a network other than bitcoin's, or its amount is malformed")
    prefix, digits, multiplier = head.groups()
    if not digits:
        raise ChallengeParseError("the invoice names no amount, so its cost can't be bounded")
    if digits.startswith("0") or len(digits) > _MAX_AMOUNT_DIGITS:
        raise ChallengeParseError("the invoice's amount is zero, oversized, or has leading zeros")
    amount_msat, rest = divmod(int(digits) * _PICOBITCOIN[multiplier], 10)
    if rest:
        raise ChallengeParseError("the invoice's amount isn't a whole number of millisatoshi")
    if amount_msat > MAX_AMOUNT_MSAT:
        raise ChallengeParseError("the invoice's amount is more than all bitcoin")
    return _NETWORKS[prefix], amount_msat, text


def _is_checksum_right(head: str, data: str) -> bool:
    """Return whether ``data`` ends with the checksum of ``head`` and itself (BIP-173, "Checksum")."""
    codes = head.encode()
    check = 1
    for value in (*(code >> 5 for code in codes), 0, *(code & 31 for code in codes), *map(_BECH32.index, data)):
        check = (check & 0x1FFFFFF) << 5 ^ value ^ _CHECKSUM[check >> 25]
    return check == 1


def _read_fields(data: str) -> dict[str, list[str]]:
    """Return the tagged fields in ``data``: for each name the contents, in bech32. What a reader must skip is left out.

    Raises: ChallengeParseError if the last field is cut off.
    """
    fields: defaultdict[str, list[str]] = defaultdict(list)
    at = 0
    while at < len(data):
        name, start = data[at], at + 3
        at = start + (_number(data[at + 1 : start]) if start <= len(data) else 0)
        if at > len(data) or start > len(data):
            raise _undecodable("its last field is cut off")
        if at - start == _EFFECTIVE_WORDS.get(name, at - start) and (at > start or name != _BLINDED_PATH):
            fields[name].append(data[start:at])
    return dict(fields)


def _check_fields(fields: dict[str, list[str]]) -> None:
    """Refuse an invoice that repeats a field or lacks what it needs.

    Raises: ChallengeParseError. With a blinded path, also for what lnd refuses then (zpay32, validateInvoice): no payment hash, no
    description, route hints.
    """
    if any(len(fields.get(name, ())) > 1 for name in _SINGLE_FIELDS) or ("d" in fields and "h" in fields):
        raise ChallengeParseError("the invoice repeats a field, or has both a description and the hash of one")
    if "p" not in fields or not ("d" in fields or "h" in fields):
        raise ChallengeParseError("the invoice has no payment hash, or neither a description nor the hash of one")
    if _BLINDED_PATH not in fields and "s" not in fields:
        raise _undecodable("Must include 'payment_secret'")
    if _BLINDED_PATH in fields and "r" in fields:
        raise ChallengeParseError("the invoice has both route hints and blinded paths")
    if any(name in fields and not fields[name][0] for name in "xcf"):
        raise _undecodable("an expiry, a final CLTV delta or a fallback address is empty")


def _verified_payee(head: str, signed: str, signature: bytes, named: str | None) -> str:
    """Return the payee's public key (hex): ``named``, if that is the key of ``signature``; without it, the one that is recovered.

    ``signed`` are the words that are signed besides ``head``.

    Raises: ChallengeParseError if the signature is wrong, or no key can be recovered from it.
    """
    import bolt11

    bits = len(signed) * 5
    try:
        signing_data = (_number(signed) << -bits % 8).to_bytes((bits + 7) // 8, "big")
        checked = bolt11.Signature.from_signature_data(hrp=head, signature_data=signature, signing_data=signing_data)
        if named is not None:
            checked.verify(named)
            return named
        return checked.recover_public_key()
    except Exception as exc:  # errors of the library, of coincurve, ValueError …
        if came_by_signal(exc):
            raise
        # Another text than the error's class could repeat a part of the invoice.
        raise _undecodable(type(exc).__name__) from exc


def _number(words: str) -> int:
    """Return the number that ``words``, bech32 and not empty, are."""
    return int(words.translate(_DIGITS), 32)


def _octets(words: str) -> bytes:
    """Return the bytes in ``words``, which are bech32. Bits beyond the last whole byte are left out."""
    bits = len(words) * 5
    return (_number(words) >> bits % 8).to_bytes(bits // 8, "big") if words else b""


def _undecodable(why: str) -> ChallengeParseError:
    return ChallengeParseError(f"the invoice can't be decoded, or its signature is wrong ({why})")
