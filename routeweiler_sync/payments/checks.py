"""CHECKS"""

from __future__ import annotations

import time

from ..errors import (
    ChallengeExpiredError,
    ChallengeMismatchError,
)
from ..protocol.challenge import Challenge

#: An invoice that expires sooner than this isn't begun: the payment would race its expiry.
MIN_INVOICE_LIFE_S = 2
#: A token whose own time ends sooner isn't bought: the payment alone takes as long. (Servers do sell tokens that live for seconds.)
MIN_TOKEN_LIFE_S = 1


def check_challenge(challenge: Challenge) -> None:
    """Refuse what could only be paid in vain: token and invoice that don't belong together, or an expired one. Nothing spent."""
    named, invoice, now_s = challenge.names_payment_hash, challenge.invoice, time.time()
    if named is not None and named != invoice.payment_hash:
        raise ChallengeMismatchError(
            f"The token is for payment hash {named.hex()}, the invoice for {invoice.payment_hash.hex()}: paying "
            "would buy nothing. Nothing was spent. Tell the server's operator."
        )
    if now_s + MIN_INVOICE_LIFE_S >= invoice.expires_at:
        raise ChallengeExpiredError(
            f"The invoice {invoice.payment_hash.hex()} has expired, or is about to (at {invoice.expires_at}; it is {int(now_s)} by "
            f"this machine's clock). Nothing was spent. Call again for a new one; if it repeats, check the clock."
        )
    if challenge.valid_until is not None and now_s + MIN_TOKEN_LIFE_S >= challenge.valid_until:
        raise ChallengeExpiredError(
            f"The token offered is past its own valid_until, or is about to be (at {challenge.valid_until}; it is {int(now_s)} by "
            "this machine's clock): paying would buy nothing. Nothing was spent. Call again for a new one; if it repeats, check "
            "the clock."
        )
