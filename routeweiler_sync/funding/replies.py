"""What a node can say about a payment, in words that the purchase table reads.

Everything that lnd answers to an order or a question is read into one `WalletAnswer`; what follows from it for the money is decided
in `routeweiler_sync.payments.wallet_rules`, nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

#: A wallet's own text is cut at this length.
REASON_CHARS_MAX = 300


class WalletReply(str, Enum):
    """One thing that a node can say of a payment. What each proves is told in `routeweiler_sync.payments.wallet_rules`."""

    SUCCEEDED = "succeeded"  #: settled; the preimage comes with it
    WRONG_PREIMAGE = "wrong_preimage"  #: settled, says the node, but the preimage doesn't hash to the payment hash
    FAILED = "failed"  #: the payment ended without being made; lnd starts it anew when the same hash is sent again
    IN_FLIGHT = "in_flight"  #: under way (lnd's IN_FLIGHT and INITIATED)
    EXISTS = "exists"  #: this send was refused because the hash is paid, in flight or just made (ALREADY_EXISTS)
    EXPIRED = "expired"  #: this send was refused because the invoice has expired by the node's clock
    REFUSED = "refused"  #: this send started nothing: refused before the start, or not a byte of it left
    NOT_FOUND = "not_found"  #: the node knows no payment of this hash
    UNKNOWN = "unknown"  #: no answer, a broken stream, a deadline, or an error that proves nothing


@dataclass(frozen=True, kw_only=True)
class WalletAnswer:
    """A node's answer to a send or a track. Amounts in msat.

    ``reason`` is lnd's failure reason (FAILED) or its error text (REFUSED, EXPIRED, UNKNOWN), free of secrets.
    ``preimage`` is 32 bytes and belongs to SUCCEEDED and WRONG_PREIMAGE alone.
    """

    reply: WalletReply
    preimage: bytes | None = field(default=None, repr=False)
    amount_msat: int = 0
    fee_msat: int = 0
    reason: str | None = None


def tidy(text: str) -> str:
    """A foreign text made fit for a log line: printable, one line, bounded."""
    return "".join(c if c.isprintable() else " " for c in text)[:REASON_CHARS_MAX].strip()
