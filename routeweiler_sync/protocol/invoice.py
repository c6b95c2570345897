"""What a challenge costs: a BOLT-11 invoice, read strictly.

Knows BOLT-11's text form and what lnd needs to pay one. Leaves to checkout whether it is expired, affordable, on the right network.

The library bolt11 (2.1.1 and 2.2.0 decode alike) checks the bech32 checksum and the signature, and reads the tagged fields. With an
``n`` field the signature is verified against that key (a high-S one is refused); without, the key is *recovered* from it, so nearly
any signature gives some payee. That is BOLT-11's design: who alters an invoice, checksum remade, makes one of a payee that doesn't
exist, and no payment reaches it. What the library lets pass, so that it is checked here on the text itself:

- mixed case, and characters that only become ASCII when lower-cased (U+212A KELVIN SIGN);
- anything behind the amount in the human-readable part that isn't a word character (``lnbc10u-foo``), and leading zeros;
- fractions of a msat (``lnbc15p`` is read as 1 msat, ``lnbc1p`` as 0), an amount of 0, and an amount of any size (Decimal rounds
  beyond 28 digits);
- a field given twice: the first one counts, for the library as for lnd. A second payment hash serves only to mislead;
- an expiry of any size, beyond what a clock or a database holds.

Which feature bits it understands is the node's to say, before it starts a payment.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from ..errors import ChallengeParseError

#: lnd's own bound (zpay32, maxInvoiceLength): what fits into a QR code.
MAX_INVOICE_CHARS = 7089
#: All the bitcoin there will ever be.
MAX_AMOUNT_MSAT = 21_000_000 * 100_000_000 * 1_000
#: A hundred years. lnd counts in nanoseconds and overflows at 292.
MAX_EXPIRY_S = 100 * 366 * 24 * 3600

_NETWORKS = {"bc": "bitcoin", "tb": "bitcoin-testnet", "tbs": "bitcoin-signet", "bcrt": "bitcoin-regtest"}
_HUMAN_READABLE = re.compile(r"ln(bcrt|bc|tbs|tb)([0-9]*)([munp]?)")
# In units of 0.1 msat, the least that BOLT-11 can write: a pico-bitcoin.
_PICOBITCOIN = {"": 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}
_MAX_AMOUNT_DIGITS = len(str(MAX_AMOUNT_MSAT)) + 1

_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_TIMESTAMP_WORDS = 7
_SIGNATURE_AND_CHECKSUM_WORDS = 104 + 6
# Every field but the route hints and fallback addresses may stand once. Those that BOLT-11 has a reader skip unless they are of
# this many words count only if they are.
_SINGLE_FIELDS = "psdhnxcm9"
_EFFECTIVE_WORDS = {"p": 52, "s": 52, "h": 52, "n": 53}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """A BOLT-11 invoice that lnd could pay. Times are unix seconds; ``payment_hash`` is 32 bytes; ``payee`` is 66 hex digits.

    ``bolt11`` is the text to give to the node, in lower case. ``network`` is ``bitcoin``, ``bitcoin-testnet`` (3 or 4: the text
    doesn't tell), ``bitcoin-signet`` or ``bitcoin-regtest``. ``description`` is the payee's word, as it came: not to be trusted,
    nor printed unescaped; empty where the invoice has only the hash of one.
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
    """Reads a BOLT-11 invoice and verifies its signature. Takes some milliseconds; no money moves.

    Raises ChallengeParseError, and nothing else, where it isn't one, or is one that can't be bounded or paid: no amount, no payment
    secret (lnd refuses to send without), unknown network, doubled fields.
    """
    network, amount_msat, text = _read_head(text)

    import bolt11

    try:
        decoded = bolt11.decode(text)
        created_at, expiry_s = decoded.date, decoded.expiry
        payment_hash, payee = bytes.fromhex(decoded.payment_hash), decoded.payee
        description, library_amount_msat = decoded.description or "", decoded.amount_msat
        assert payee is not None  # the library recovers it where it isn't given
    except Exception as exc:  # the library's own, bitstring's, coincurve's, ValueError, UnicodeDecodeError …
        why = exc if isinstance(exc, bolt11.Bolt11Exception) else type(exc).__name__  # only its own texts are fixed ones
        raise ChallengeParseError(f"the invoice can't be decoded, or its signature is wrong ({why})") from exc

    _check_fields(text)
    if library_amount_msat != amount_msat:
        raise ChallengeParseError("the invoice's amount can be read in two ways")
    if not 0 <= expiry_s <= MAX_EXPIRY_S:
        raise ChallengeParseError("the invoice's expiry is beyond any sense")
    return Invoice(
        bolt11=text,
        payment_hash=payment_hash,
        amount_msat=amount_msat,
        network=network,
        created_at=created_at,
        expires_at=created_at + expiry_s,
        description=description,
        payee=payee,
    )


def _read_head(text: str) -> tuple[str, int, str]:
    """Network, amount in msat and the text in lower case, from the human-readable part alone, in integers."""
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
        raise ChallengeParseError("the invoice names no amount, so what it costs can't be bounded")
    if digits.startswith("0") or len(digits) > _MAX_AMOUNT_DIGITS:
        raise ChallengeParseError("the invoice's amount is zero, oversized, or has leading zeros")
    amount_msat, rest = divmod(int(digits) * _PICOBITCOIN[multiplier], 10)
    if rest:
        raise ChallengeParseError("the invoice's amount isn't a whole number of millisatoshi")
    if amount_msat > MAX_AMOUNT_MSAT:
        raise ChallengeParseError("the invoice's amount is more than all bitcoin")
    return _NETWORKS[prefix], amount_msat, text


def _check_fields(text: str) -> None:
    """Refuses what the library passed over. Its decode went through, so characters and lengths are known to be sound."""
    data = text.rpartition("1")[2][_TIMESTAMP_WORDS:-_SIGNATURE_AND_CHECKSUM_WORDS]
    counts: Counter[str] = Counter()
    at = 0
    while at < len(data):
        name, length = data[at], _BECH32.index(data[at + 1]) * 32 + _BECH32.index(data[at + 2])
        counts[name] += length == _EFFECTIVE_WORDS.get(name, length)
        at += 3 + length
    if any(counts[name] > 1 for name in _SINGLE_FIELDS) or (counts["d"] and counts["h"]):
        raise ChallengeParseError("the invoice gives a field twice that may stand once")
