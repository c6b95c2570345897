"""A paid token as a value in memory, made from its ledger row.

Which token is sent with which request is left to `token_cache`, how it becomes a header to `protocol.schemes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from .._core.money import minor_units

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow


@dataclass(frozen=True, kw_only=True)
class Token:
    """A paid token and what is known of it.

    ``payment_hash`` is hex, ``preimage`` the 32 bytes that prove the payment, ``valid_until`` in unix seconds.
    ``amount_minor_units`` is what was booked in the envelope, in minor units of ``currency``, routing fee included; None without an
    envelope. ``rate_quality`` is the quality of the exchange rate of that amount, as its provider names it. ``accepted``: the
    server has accepted the token before, ``accepted_again``: twice or more. ``reported``: a trace has reported its payment.
    ``bought_at_s`` is the time when its purchase began, in unix seconds. ``single_use``: it is a charge, whose credential opens one
    request, that of ``resource_digest``, and no other. ``settled_at_s`` is the time when it was paid.
    """

    payment_hash: str
    origin: str
    scope: str
    scheme: str
    token: str = field(repr=False)
    preimage: bytes = field(repr=False)
    amount_msat: int
    fee_msat: int
    node_pubkey: str
    amount_minor_units: Decimal | None
    currency: str | None
    rate_quality: str | None
    valid_until: int | None
    accepted: bool
    reported: bool
    accepted_again: bool = False
    bought_at_s: float = 0.0
    single_use: bool = False
    resource_digest: str = ""
    settled_at_s: float | None = None

    @classmethod
    def of(cls, row: PaymentRow) -> Token | None:
        """Return the token of ``row``, or None if the row has no preimage, and so no token."""
        return None if row.preimage is None else cls._from_row(row, bytes.fromhex(row.preimage))

    @classmethod
    def unproved(cls, row: PaymentRow) -> Token:
        """Return what is known of a payment that was booked without a preimage, to report it. The result can't be sent."""
        return cls._from_row(row, b"")

    @classmethod
    def _from_row(cls, row: PaymentRow, preimage: bytes) -> Token:
        return cls(
            payment_hash=row.payment_hash,
            origin=row.origin,
            scope=row.scope,
            scheme=row.scheme,
            token=row.token,
            preimage=preimage,
            amount_msat=row.amount_msat,
            fee_msat=row.fee_msat,
            node_pubkey=row.node_pubkey,
            amount_minor_units=None if row.currency is None else minor_units(row.settled_micro),
            currency=row.currency,
            rate_quality=row.rate_quality,
            valid_until=row.valid_until,
            accepted=row.accepted,
            reported=row.reported,
            accepted_again=row.accepted_again,
            bought_at_s=row.created_at.timestamp(),
            single_use=row.single_use,
            resource_digest=row.resource_digest,
            settled_at_s=None if row.settled_at is None else row.settled_at.timestamp(),
        )
