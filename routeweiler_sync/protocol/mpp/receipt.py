"""Read ``Payment-Receipt``, by which a server says that a charge is used up.

A receipt is no proof: servers make them from anything. So it is read tolerantly, and an answer never fails over it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEADER = "Payment-Receipt"
#: No receipt is longer. A longer header isn't read.
MAX_RECEIPT_CHARS = 16 * 1024
#: The most characters of each text in it.
MAX_FIELD_CHARS = 256

_RECEIPT = re.compile(r"[A-Za-z0-9_+/-]+={0,2}")
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a server says about a credential that it took. Each text is the server's own, and None if it isn't given.

    ``status`` is ``success`` by the drafts. ``reference`` is the payment hash in hex at all servers known; empty for sessions.
    """

    status: str | None = None
    method: str | None = None
    reference: str | None = None
    timestamp: str | None = None
    challenge_id: str | None = None

    def is_for(self, payment_hash: bytes) -> bool:
        """Return whether the receipt names the payment of this hash (32 bytes)."""
        return self.reference is not None and self.reference.lower() == payment_hash.hex()


def receipt_of(headers: Mapping[str, str] | None) -> Receipt | None:
    """Return the receipt in the headers of an answer; None if there is none that can be read. Never raises.

    Of several, the first that can be read is returned.
    """
    value = next((value for name, value in (headers or {}).items() if _text(name).lower() == HEADER.lower()), None)
    text = "" if value is None else _text(value)
    if len(text) > MAX_RECEIPT_CHARS:
        return None
    for each in text.split(","):
        receipt = _receipt(each.strip(' \t"'))
        if receipt is not None:
            return receipt
    return None


def _receipt(text: str) -> Receipt | None:
    if not _RECEIPT.fullmatch(text):
        return None
    digits = text.rstrip("=").translate(_URL_SAFE_TO_STANDARD)
    try:
        said: Any = json.loads(base64.b64decode(digits + "=" * (-len(digits) % 4)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    texts = {name: value for name, value in said.items() if isinstance(value, str) and len(value) <= MAX_FIELD_CHARS}
    return Receipt(
        status=texts.get("status"),
        method=texts.get("method"),
        reference=texts.get("reference"),
        timestamp=texts.get("timestamp"),
        challenge_id=texts.get("challengeId"),
    )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
