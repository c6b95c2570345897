"""What a challenge costs: a BOLT-11 invoice, read strictly.

Knows BOLT-11's text form and what lnd needs to pay an invoice. Whether an invoice is expired, affordable and on the right network
is left to `payments.checks`. Whether its feature bits are understood is left to the node, which checks them before it starts a
payment.

The library bolt11 (2.1.1 and 2.2.0 decode alike) checks the bech32 checksum and the signature, and reads the tagged fields. If
there is an ``n`` field, the signature is verified against the key in it (a high-S signature is refused). Otherwise the key is
*recovered* from the signature, so nearly any signature gives some payee. That is BOLT-11's design: an invoice that was altered and
given a new checksum has a payee that doesn't exist, and no payment reaches it.

The library accepts the following, so this module checks the text itself:

- mixed case, and characters that only become ASCII when lower-cased (U+212A KELVIN SIGN);
- anything after the amount in the human-readable part that isn't a word character (``lnbc10u-foo``), and leading zeros;
- fractions of a msat (``lnbc15p`` is read as 1 msat, ``lnbc1p`` as 0), an amount of 0, and an amount of any size (Decimal rounds
  beyond 28 digits);
- a repeated field: the first one counts, for the library as for lnd, and a second payment hash can only mislead;
- an expiry of any size, even one that no clock or database can hold.

It calculates the amount in the decimal context of the thread, so it is called in a context of this package's. And it doesn't know
blinded paths (field ``5``), with which lnd (0.18.3 and later, ``addinvoice --blind``) replaces the payment secret: whoever receives
the payment recognizes it by the path. So this module checks for itself that an invoice has one or the other.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import localcontext

from .._core.money import EXACT
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
_TIMESTAMP_WORDS = 7
_SIGNATURE_AND_CHECKSUM_WORDS = 104 + 6
_BLINDED_PATH = "5"
# The fields that an invoice may have once: all but the route hints, the blinded paths and the fallback addresses.
_SINGLE_FIELDS = "psdhnxcm9"
# BOLT-11 has a reader skip these fields unless they have exactly this many words. A skipped field isn't counted.
_EFFECTIVE_WORDS = {"p": 52, "s": 52, "h": 52, "n": 53}


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
    """Return the BOLT-11 invoice in ``text``, after verifying its signature. Takes some milliseconds.

    Raises: ChallengeParseError, and nothing else, if ``text`` isn't an invoice, or if it can't be bounded or paid: no amount,
    neither a payment secret nor a blinded path (lnd refuses to send without one), an unknown network, repeated fields. The error's
    text is a clause, to be used as the reason in a longer text.
    """
    network, amount_msat, text = _read_head(text)

    import bolt11

    try:
        with localcontext(EXACT):
            # What it ignores is missing fields, which are looked for below. Checksum and signature are checked.
            decoded = bolt11.decode(text, ignore_exceptions=True)
        if not _check_fields(text):
            decoded.validate()
        created_at, expiry_s = decoded.date, decoded.expiry
        payment_hash, payee = bytes.fromhex(decoded.payment_hash), decoded.payee
        description, library_amount_msat = decoded.description or "", decoded.amount_msat
        assert payee is not None  # the library recovers the key if the invoice doesn't name it
    except ChallengeParseError:
        raise
    except Exception as exc:  # errors of the library, of bitstring, of coincurve, ValueError, UnicodeDecodeError …
        # Only the library's own errors have fixed texts. Another error's text could repeat a part of the invoice.
        why = exc if isinstance(exc, bolt11.Bolt11Exception) else type(exc).__name__
        raise ChallengeParseError(f"the invoice can't be decoded, or its signature is wrong ({why})") from exc

    if library_amount_msat != amount_msat:
        raise ChallengeParseError("the invoice's amount can be read in two ways")
    if not 0 <= expiry_s <= MAX_EXPIRY_S:
        raise ChallengeParseError("the invoice's expiry is negative or above a hundred years")
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


def _check_fields(text: str) -> bool:
    """Refuse fields that the library accepts. Return whether the invoice has a blinded path.

    ``text`` is one that the library has decoded, so its characters and lengths are known to be valid.

    Raises: ChallengeParseError for a repeated field, or a description together with the hash of one. With a blinded path, also for
    what lnd refuses then (zpay32, validateInvoice): no payment hash, no description, route hints.
    """
    data = text.rpartition("1")[2][_TIMESTAMP_WORDS:-_SIGNATURE_AND_CHECKSUM_WORDS]
    counts: Counter[str] = Counter()
    at = 0
    while at < len(data):
        name, length = data[at], _BECH32.index(data[at + 1]) * 32 + _BECH32.index(data[at + 2])
        counts[name] += length == _EFFECTIVE_WORDS.get(name, length) and (length > 0 or name != _BLINDED_PATH)
        at += 3 + length
    if any(counts[name] > 1 for name in _SINGLE_FIELDS) or (counts["d"] and counts["h"]):
        raise ChallengeParseError("the invoice repeats a field, or has both a description and the hash of one")
    if not counts[_BLINDED_PATH]:
        return False
    if not counts["p"] or not (counts["d"] or counts["h"]):
        raise ChallengeParseError("the invoice has no payment hash, or neither a description nor the hash of one")
    if counts["r"]:
        raise ChallengeParseError("the invoice has both route hints and blinded paths")
    return True
