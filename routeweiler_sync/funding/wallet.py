"""What a Lightning node is to us: the Protocol that a wallet of your own has to satisfy, and the values that it answers with.

Knows no transport: lnd's is in `lightning`; how a funding source uses a node is in `source`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from ..errors import FundingError
from .replies import WalletAnswer

NETWORKS = ("bitcoin", "bitcoin-testnet", "bitcoin-signet", "bitcoin-regtest")

# One hop with lnd's default fee takes 1 000 msat even for 10 sat, so a mere percentage would starve small payments.
FEE_CAP_MSAT_MIN = 10_000
FEE_CAP_PERCENT = 5


@dataclass(frozen=True, slots=True)
class PaymentStatus:
    """What a node knows about the payment of one hash. Amounts in msat; ``preimage`` is 32 bytes, there when succeeded.

    ``unknown_hash`` says that no payment of this hash has begun yet. It is no proof that none will: an order may be on its way.
    """

    state: Literal["succeeded", "failed", "in_flight", "unknown_hash"]
    preimage: bytes | None = field(default=None, repr=False)
    amount_msat: int = 0
    fee_msat: int = 0
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What GetInfo tells. ``network`` is in our words (`NETWORKS`), ``bitcoin-`` and lnd's own name for any other."""

    identity_pubkey: str
    alias: str
    version: str
    network: str
    synced_to_chain: bool
    block_height: int
    num_active_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBalance:
    """What the node's channels hold on either side, in msat. Some of ``local_msat`` is reserve that can't be spent."""

    local_msat: int
    remote_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePayment:
    """One payment of the node's own list. ``status`` is lnd's PaymentStatus; ``payment_hash`` hex; amounts in msat."""

    payment_hash: str
    status: str
    amount_msat: int
    fee_msat: int
    failure_reason: str | None
    created_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPayment:
    """A payment that succeeded: ``payment_preimage`` (32 bytes) is the proof of it. Amounts in msat.

    ``payment_error`` is always empty, for code that looks at the field of lnd's old SendResponse: a failure raises.
    """

    payment_hash: bytes
    payment_preimage: bytes = field(repr=False)
    amount_msat: int
    fee_msat: int
    payment_error: str = ""


class NotPermittedError(FundingError):
    """The macaroon is good but lacks the right to this call."""


@runtime_checkable
class LightningNodeClient(Protocol):
    """The least a wallet must offer. Sending one invoice twice must be harmless, as it is with lnd: refused or answered, not paid
    twice, whatever became of the first send.
    """

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Pay, block until the outcome is known, and return the 32-byte preimage.

        Raise `InvoicePaymentError` for "failed, nothing spent" and `FundingError` for "nothing was sent, and nothing will be".
        Any other exception means that the outcome isn't known.
        """
        ...

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        """Tell what has become of a payment, the fee among it, without blocking until it ends."""
        ...

    def get_node_pubkey(self) -> str:
        """The node's identity: 66 hex digits. Rows of the ledger name it, for it alone can tell about its payments."""
        ...


@runtime_checkable
class WalletClient(Protocol):
    """A wallet that answers in `WalletAnswer`s: the full seam between a purchase and whoever pays for it.

    `LndClient` is one. A wallet of your own that offers less is used through `LightningNodeClient`. What follows from a reply for
    the money is in `payments.wallet_rules`; a client says no more than its wallet has proved. No method raises for what the wallet
    does: errors, deadlines and broken connections are answers. An interrupt passes through.
    """

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the payment of ``bolt11``, and wait for the outcome at most ``timeout_s`` seconds.

        ``payment_hash`` is the invoice's, 32 bytes; routing may cost at most ``max_fee_msat``. REFUSED is answered only where
        nothing can have started.

        Money: the invoice's amount and the routing fee.
        """
        ...

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask about a payment, at most ``timeout_s`` seconds; ``follow`` waits for its end. Money: none moves."""
        ...

    def check_ready(self, timeout_s: float) -> None:
        """Return once the wallet takes orders. Raises: FundingError with the cause. Money: none moves."""
        ...

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the wallet's identity and network. Raises: FundingError. Money: none moves."""
        ...


def default_fee_cap_msat(amount_msat: int) -> int:
    """The most that routing may cost where nothing is configured: 5 % rounded up, and at least 10 000 msat."""
    return max(FEE_CAP_MSAT_MIN, -(-amount_msat * FEE_CAP_PERCENT // 100))


def network_of(lnd_name: str) -> str:
    """lnd's name of a chain's network (``mainnet``, ``testnet4``, …) in our words."""
    return {"mainnet": "bitcoin", "testnet4": "bitcoin-testnet"}.get(lnd_name, f"bitcoin-{lnd_name}")
