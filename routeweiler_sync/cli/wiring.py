"""What `get` passes to its session: the limit of ``--max-sats``, funding for a dry run, the ``confirm`` callback, and a trace sink.

Which node the environment names is left to `config.environment`; whether and what to pay, to `payments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.money import MAX_MINOR_UNITS
from ..config import environment
from ..errors import FundingError
from ..funding.lightning import LightningFundingSource
from ..funding.wallet import PaymentStatus
from ..payments import block_limit
from ..trace.schema import TraceEvent, TracePayment
from ..trace.sink import TraceSink

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..payments.types import Quote
    from ..transport.session import Routeweiler


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

    def reports(self, payment_hash: str) -> bool:
        """Return whether the user's trace reports the payment already."""
        return self._onward is not None and self._onward.reports(payment_hash)

    @property
    def keeps_events(self) -> bool:
        """Whether the user has a trace."""
        return self._onward is not None

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


class Confirm:
    """The session's ``confirm`` callback. ``quote`` is the last quote that was asked about; None if there was none.

    It agrees to every price, since the limits are checked elsewhere.
    """

    def __init__(self) -> None:
        self.quote: Quote | None = None

    def __call__(self, quote: Quote) -> bool:
        """Return True: pay."""
        self.quote = quote
        return True


def limit_of(session: Routeweiler, max_sats: int) -> AbstractContextManager[block_limit.SpendingLimit]:
    """Return the context manager in whose block ``session`` spends at most ``max_sats``, over all redirects, with routing."""
    return block_limit.Block(session._payer, min(max_sats, MAX_MINOR_UNITS), option=f"--max-sats {max_sats}")


#: In the form of a node's public key. No key begins with 00 (SEC 1: a compressed point begins with 02 or 03).
NO_NODE_KEY = "00" * 33


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
        """Return a key that no node has. Only the node that a row names continues its payment, so a dry run never does."""
        return NO_NODE_KEY


def prices_only() -> list[LightningFundingSource]:
    """Return sources that allow quotes but can't pay: one for the network that the environment names, else one for each network."""
    return [LightningFundingSource(client=NoWallet(), network=network) for network in environment.networks()]
