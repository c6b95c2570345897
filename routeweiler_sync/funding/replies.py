"""What a wallet can answer about a payment, as values that the table of wallet rules reads.

Every answer to a payment order or to a question is read into one `WalletAnswer`. What follows from it for the money is decided in
`routeweiler_sync.payments.wallet_rules`, nowhere else. How lnd's answers are read is left to `lnd.replies`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum

#: A text that the wallet wrote is cut after this many characters.
REASON_CHARS_MAX = 300


class WalletReply(str, Enum):
    """One thing that a node can say about a payment. What each reply proves is in `routeweiler_sync.payments.wallet_rules`."""

    SUCCEEDED = "succeeded"  #: settled; the answer holds the preimage
    WRONG_PREIMAGE = "wrong_preimage"  #: the node reports it settled, but the preimage doesn't hash to the payment hash
    FAILED = "failed"  #: the payment ended unpaid; lnd starts it anew when the same payment hash is sent again
    FAILED_FOR_GOOD = "failed_for_good"  #: the payment ended unpaid, and this wallet never starts it again
    #: Unpaid so far (the wallet says "failed", or knows no payment of this hash), and that isn't final: the wallet may settle it
    #: all the same, and doesn't promise to refuse a second order. The invoice is never sent again.
    FAILED_SO_FAR = "failed_so_far"
    IN_FLIGHT = "in_flight"  #: not ended yet (lnd's IN_FLIGHT and INITIATED)
    EXISTS = "exists"  #: this send was refused: its payment hash is paid, in flight or just created (lnd's ALREADY_EXISTS)
    EXPIRED = "expired"  #: this send was refused: the invoice has expired by the node's clock
    REFUSED = "refused"  #: this send started nothing: it was refused before the start, or not a byte of it left
    NOT_FOUND = "not_found"  #: the node knows no payment of this hash
    UNKNOWN = "unknown"  #: no answer, a broken stream, a deadline, or an error that proves nothing


@dataclass(frozen=True, kw_only=True)
class WalletAnswer:
    """A node's answer to a payment order or to a question about a payment. Amounts are in msat.

    ``reason`` is the wallet's reason for a failure, or an error text (for EXISTS, EXPIRED, REFUSED, UNKNOWN), free of secrets.
    ``preimage`` is set for SUCCEEDED and WRONG_PREIMAGE alone; for SUCCEEDED it is 32 bytes. ``fee_msat`` is None if the wallet
    doesn't say what routing has cost; the most that was allowed is booked then.
    """

    reply: WalletReply
    preimage: bytes | None = field(default=None, repr=False)
    amount_msat: int = 0
    fee_msat: int | None = 0
    reason: str | None = None


def preimage_fits(preimage: object, payment_hash: bytes) -> bool:
    """Return whether ``preimage`` is 32 bytes whose SHA-256 is ``payment_hash``, and so proves that the invoice was paid."""
    return isinstance(preimage, bytes) and len(preimage) == 32 and hashlib.sha256(preimage).digest() == payment_hash


def tidy(text: str) -> str:
    """Return a text from outside in a form fit for a log: one printable line of at most `REASON_CHARS_MAX` characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:REASON_CHARS_MAX].strip()
