"""What `get` passes to its session: funding within ``--max-sats`` or for a dry run, the ``confirm`` callback, and a trace sink.

Which node the environment names is left to `config.environment`; whether and what to pay, to `payments`.
"""

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
    """A trace sink that keeps the payments of this run's events in memory.

    ``onward``: the user's own trace, which gets every event too; None if the user asked for no trace.
    """

    def __init__(self, onward: TraceSink | None) -> None:
        self._onward = onward
        self.payments: list[TracePayment] = []

    @property
    def paid(self) -> list[TracePayment]:
        """The payments that this run made, without those of earlier runs whose tokens it used again."""
        return [payment for payment in self.payments if not payment.reused]

    @property
    def spent_msat(self) -> int:
        """What this run paid, in msat, routing fees included."""
        return sum(payment.amount_msat + payment.fee_msat for payment in self.paid)

    def emit(self, event: TraceEvent) -> bool:
        """Keep the payment of ``event``, and pass the event to the user's trace. Return False if that trace couldn't write it."""
        if event.payment is not None:
            self.payments.append(event.payment)
        return self._onward is None or self._onward.emit(event)

    def close(self) -> None:
        """Close the user's trace."""
        if self._onward is not None:
            self._onward.close()

    def _write(self, event_id: str, payload: object, text: str) -> None:
        raise AssertionError("emit() keeps and passes on events; this sink writes none itself")

    def _close(self) -> None:
        """Do nothing: this sink has no file."""

    def _forget_after_fork(self) -> None:
        """Do nothing: this sink has no file."""


class PriceCap:
    """The session's ``confirm`` callback: agrees to a price (without routing) of at most ``cap_msat``; None means any price.

    ``pays`` is False in a dry run: then it agrees to nothing. ``quote`` is the last quote that was asked about, ``agreed`` the
    answer to it.
    """

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
    """A funding source whose payments cost at most ``cap_msat`` each, routing fee included."""

    cap_msat: int

    def fee_cap_msat(self, amount_msat: int) -> int:
        """Return the routing fee limit of any source, lowered so that amount and fee together stay within ``cap_msat``."""
        return max(0, min(super().fee_cap_msat(amount_msat), self.cap_msat - amount_msat))


class NoWallet:
    """The node client of a dry run: a session can quote prices with it. It contacts no node.

    Money: none can move; every call that needs a node raises FundingError.
    """

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Refuse: raise FundingError."""
        raise FundingError("A dry run pays nothing.", advice="To pay, run the command without --dry-run.")

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        """Refuse: raise FundingError."""
        raise FundingError("A dry run asks no node about payments.", advice="To ask the node, run the command without --dry-run.")

    def get_node_pubkey(self) -> str:
        """Return "", which no ledger row names. Only the node that a row names continues its payment, so a dry run never does."""
        return ""


def capped_node(cap_msat: int | None) -> list[LightningFundingSource]:
    """Return the funding sources of the node that the environment names. Connects to nothing.

    ``cap_msat``: the most that one payment may cost, routing fee included; None adds no limit.

    Raises: FundingError if the environment names no node, ValueError for an unknown network, as `environment.node` does.
    """
    sources = environment.node()
    if cap_msat is None:
        return sources
    return [CappedFunding(client=each.client, network=each.network, cap_msat=cap_msat) for each in sources]


def prices_only() -> list[LightningFundingSource]:
    """Return sources that allow quotes but can't pay: one for the network that the environment names, else one for each network."""
    return [LightningFundingSource(client=NoWallet(), network=network) for network in environment.networks()]
