"""Read the ``request`` of a charge: what it says of itself, and whether that fits the invoice in it.

The price is the invoice's, which is signed. What the request says besides must agree with it: a payer that trusted a false amount
would pass its own limits.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from ...errors import ChallengeMismatchError, ChallengeParseError
from ..invoice import Invoice, decode_invoice

#: The most characters of a request that are decoded.
MAX_REQUEST_CHARS = 48 * 1024
#: The names of the unit. All mean whole satoshi: examples of the drafts say BTC, and the amount shows what they mean.
CURRENCIES = ("sat", "BTC")
#: The names of networks, as this package names them. A request without one is for mainnet.
NETWORKS = {
    "mainnet": "bitcoin",
    "testnet": "bitcoin-testnet",
    "testnet3": "bitcoin-testnet",
    "testnet4": "bitcoin-testnet",
    "signet": "bitcoin-signet",
    "regtest": "bitcoin-regtest",
}
MSAT_PER_SAT = 1_000

_BASE64 = re.compile(r"([A-Za-z0-9_+/-]+)={0,2}")
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")
_AMOUNT = re.compile(r"[1-9][0-9]{0,15}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class _RepeatedNameError(ValueError):
    """An object in the JSON has a name twice, so that two readers could read two values."""


def invoice_of(request: str) -> Invoice:
    """Return the invoice in ``request``, after comparing it with what the request says. Takes some milliseconds.

    Raises: ChallengeParseError if the request can't be read; ChallengeMismatchError if it contradicts its invoice. The texts are
    clauses, to be used as the reason in a longer text.
    """
    said = _decoded(request)
    amount, currency, details = said.get("amount"), said.get("currency"), said.get("methodDetails")
    if not isinstance(amount, str) or not _AMOUNT.fullmatch(amount):
        raise ChallengeParseError("its amount isn't a text of 1 to 16 digits, above zero")
    if currency not in CURRENCIES:
        raise ChallengeParseError("its currency isn't sat")
    bolt11 = details.get("invoice") if isinstance(details, dict) else None
    if not isinstance(details, dict) or not isinstance(bolt11, str) or not bolt11:
        raise ChallengeParseError("it has no invoice")
    payment_hash, network = details.get("paymentHash"), details.get("network")
    if payment_hash is not None and not (isinstance(payment_hash, str) and _HASH.fullmatch(payment_hash)):
        raise ChallengeParseError("its payment hash isn't 64 hex digits")
    named = "mainnet" if network is None else network
    if not isinstance(named, str) or named.lower() not in NETWORKS:
        raise ChallengeParseError("its network is none of bitcoin's")

    invoice = decode_invoice(bolt11)
    if int(amount) * MSAT_PER_SAT != invoice.amount_msat:
        raise ChallengeMismatchError(f"it says {amount} sat, and its invoice says {invoice.amount_msat} msat")
    if payment_hash is not None and payment_hash.lower() != invoice.payment_hash.hex():
        raise ChallengeMismatchError(
            f"it is for payment hash {payment_hash.lower()}, and its invoice is for {invoice.payment_hash.hex()}"
        )
    if NETWORKS[named.lower()] != invoice.network:
        raise ChallengeMismatchError(f"it is for {NETWORKS[named.lower()]}, and its invoice is for {invoice.network}")
    return invoice


def _decoded(request: str) -> dict[str, Any]:
    """Return the JSON object in ``request`` (base64url, padded or not, or standard base64). Raises: ChallengeParseError."""
    matched = _BASE64.fullmatch(request) if len(request) <= MAX_REQUEST_CHARS else None
    if matched is None:
        raise ChallengeParseError(f"its request isn't base64, or is above {MAX_REQUEST_CHARS} characters")
    digits = matched[1].translate(_URL_SAFE_TO_STANDARD)
    try:
        text = base64.b64decode(digits + "=" * (-len(digits) % 4)).decode()
        # Numbers are of no use here, and Python takes long over an integer of many digits.
        said = json.loads(text, parse_int=float, object_pairs_hook=_object)
    except _RepeatedNameError:
        raise ChallengeParseError("its request has a name twice") from None
    except (ValueError, RecursionError):  # their texts could repeat a part of the request
        raise ChallengeParseError("its request isn't JSON") from None
    if not isinstance(said, dict):
        raise ChallengeParseError("its request isn't a JSON object")
    return said


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedNameError
    return found
