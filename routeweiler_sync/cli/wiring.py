"""A session made of what the environment says, for the commands: its wallet, and a witness of what it did with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import environment
from ..errors import FundingError
from ..funding.lightning import LightningFundingSource
from ..funding.wallet import PaymentStatus
from ..trace.schema import TraceEvent, TracePayment
from ..trace.sink import TraceSink

if TYPE_CHECKING:
    from ..payments.types import Quote


class PaymentObserver(TraceSink):
    """Keeps the events of this run, and hands them on to the trace that the user has asked for, if any."""

    def __init__(self, onward: TraceSink | None) -> None:
        self._onward = onward
        self.payments: list[TracePayment] = []

    @property
    def paid(self) -> list[TracePayment]:
        """The payments that were made, not those of earlier runs whose tokens were used again."""
        return [payment for payment in self.payments if not payment.reused]

    @property
    def spent_msat(self) -> int:
        """What was paid, routing included."""
        return sum(payment.amount_msat + payment.fee_msat for payment in self.paid)

    def emit(self, event: TraceEvent) -> bool:
        """Keep ``event``, and hand it on."""
        if event.payment is not None:
            self.payments.append(event.payment)
        return self._onward is None or self._onward.emit(event)

    def close(self) -> None:
        """Close the user's trace."""
        if self._onward is not None:
            self._onward.close()

    def _write(self, event_id: str, payload: object, text: str) -> None:
        raise AssertionError("events are kept and handed on, never written here")

    def _close(self) -> None:
        """There is no file."""

    def _forget_after_fork(self) -> None:
        """There is no file."""


class PriceCap:
    """Asked before each payment (``confirm``): says yes to what costs at most ``cap_msat``, if it ``pays`` at all."""

    def __init__(self, *, cap_msat: int | None, pays: bool) -> None:
        self._cap_msat = cap_msat
        self._pays = pays
        self.quote: Quote | None = None
        self.agreed = False

    def __call__(self, quote: Quote) -> bool:
        self.quote = quote
        self.agreed = self._pays and (self._cap_msat is None or quote.amount_msat <= self._cap_msat)
        return self.agreed


@dataclass(eq=False, kw_only=True)
class CappedFunding(LightningFundingSource):
    """Lets routing cost no more than ``cap_msat`` leaves above the amount."""

    cap_msat: int

    def fee_cap_msat(self, amount_msat: int) -> int:
        """As of any source, but amount and fee together stay within the cap."""
        return max(0, min(super().fee_cap_msat(amount_msat), self.cap_msat - amount_msat))


class NoWallet:
    """A node client for learning prices: it pays nothing, and nobody is asked anything."""

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Refuse."""
        raise FundingError("a dry run pays nothing.", advice="")

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        """Refuse."""
        raise FundingError("a dry run asks no node.", advice="")

    def get_node_pubkey(self) -> str:
        """None: no row of the ledger names it, so no row is ever carried on by it."""
        return ""


def capped_node(cap_msat: int | None) -> list[LightningFundingSource]:
    """The node that the environment names, for payments of at most ``cap_msat`` with their routing. As `environment.node`."""
    sources = environment.node()
    if cap_msat is None:
        return sources
    return [CappedFunding(client=each.client, network=each.network, cap_msat=cap_msat) for each in sources]


def prices_only() -> list[LightningFundingSource]:
    """Funding that can be quoted for and can't pay."""
    return [LightningFundingSource(client=NoWallet(), network=network) for network in environment.networks()]
