"""What a wallet must offer: the Protocols `LightningNodeClient` and `WalletClient`, and the values that a wallet returns.

Knows no transport: lnd's is in `lnd.client`. How a purchase uses a wallet is left to `source`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from ..errors import FundingError
from .replies import WalletAnswer

#: The networks of invoices and nodes, as this package names them.
NETWORKS = ("bitcoin", "bitcoin-testnet", "bitcoin-signet", "bitcoin-regtest")

# One hop with lnd's default fee takes 1 000 msat even for 10 sat, so with a percentage alone small payments would find no route.
FEE_CAP_MSAT_MIN = 10_000
FEE_CAP_PERCENT = 5

#: How an identity begins that isn't a node's key. A compressed public key begins with 02 or 03.
_DERIVED = "00"


@dataclass(frozen=True, slots=True)
class PaymentStatus:
    """What a node knows about the payment of one hash. Amounts are in msat. ``preimage`` (32 bytes) is set if it succeeded.

    ``unknown_hash`` means that no payment of this hash has begun yet. It doesn't prove that none will: a payment order may still be
    on its way to the node.
    """

    state: Literal["succeeded", "failed", "in_flight", "unknown_hash"]
    preimage: bytes | None = field(default=None, repr=False)
    amount_msat: int = 0
    fee_msat: int = 0
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A wallet's identity and state, for a node as lnd's GetInfo reports them.

    ``identity_pubkey`` is 66 hex digits: a node's public key, or what `derived_identity` returns for a wallet that isn't a node.
    ``network`` is one of `NETWORKS`; for any other network it is ``bitcoin-`` and lnd's own name, and it is empty if the wallet
    names none. The other fields are there for nodes; a wallet that doesn't know them has the defaults.
    """

    identity_pubkey: str
    alias: str = ""
    version: str = ""
    network: str = ""
    synced_to_chain: bool = True
    block_height: int = 0
    num_active_channels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBalance:
    """What the node's channels hold on each side, in msat. Part of ``local_msat`` is the channel reserve, which can't be spent."""

    local_msat: int
    remote_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePayment:
    """One payment in the wallet's own list. Amounts are in msat.

    ``payment_hash`` is 64 hex digits. ``status`` is the name of lnd's PaymentStatus (``SUCCEEDED``, ``FAILED``, ``IN_FLIGHT``).
    ``fee_msat`` is None if the wallet doesn't say what the payment cost. ``created_at_ns`` is unix time in nanoseconds.
    """

    payment_hash: str
    status: str
    amount_msat: int
    fee_msat: int | None
    failure_reason: str | None
    created_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPayment:
    """A payment that succeeded. ``payment_preimage`` (32 bytes) is the proof of it. Amounts are in msat.

    ``payment_error`` is always empty, because a failed payment raises. It is there for code that reads this field of lnd's old
    SendResponse.
    """

    payment_hash: bytes
    payment_preimage: bytes = field(repr=False)
    amount_msat: int
    fee_msat: int
    payment_error: str = ""


class NotPermittedError(FundingError):
    """The macaroon is valid but doesn't permit this call."""


@runtime_checkable
class LightningNodeClient(Protocol):
    """The least that a wallet of your own must offer.

    Sending one invoice twice must be harmless, as it is with lnd: whatever became of the first send, the second one is refused or
    answered with the outcome, and the invoice isn't paid twice.
    """

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Pay ``bolt11``, wait until the outcome is known, and return the 32-byte preimage.

        ``max_fee_msat`` is the most that routing may cost.

        Raises: `InvoicePaymentError` for "failed, nothing spent". `FundingError` for "nothing was sent, and nothing will be". Any
        other exception means that the outcome isn't known.
        Money: the invoice's amount and the routing fee.
        """
        ...

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        """Return what has become of the payment with this hash (32 bytes), with its routing fee. Don't wait for it to end."""
        ...

    def get_node_pubkey(self) -> str:
        """Return the node's public key, 66 hex digits. Ledger rows name it: this node alone can be asked about its payments."""
        ...


@runtime_checkable
class WalletClient(Protocol):
    """A wallet that answers in `WalletAnswer`s: the whole interface between a purchase and the wallet that pays for it.

    `LndClient` is one. A wallet of your own that offers less is used through `LightningNodeClient`. What follows from a reply for
    the money is decided in `payments.wallet_rules`, so a client must report no more than its wallet has proved. `send` and `track`
    don't raise for what the wallet does: errors, deadlines and broken connections are answers. An interrupt passes through.

    A wallet that offers more may have the methods of `FixedFeeWallet`, `BalanceWallet` and `ListingWallet` too.
    """

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Order the payment of ``bolt11``, and wait at most ``timeout_s`` seconds for the outcome.

        ``payment_hash`` is the invoice's (32 bytes). Routing may cost at most ``max_fee_msat``. The reply is REFUSED only if
        nothing can have started.

        Money: the invoice's amount and the routing fee.
        """
        ...

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask about the payment with this hash (32 bytes), and return the answer within ``timeout_s`` seconds.

        ``follow`` waits that long for the payment's end; otherwise the answer is what the wallet knows now.

        Money: none moves.
        """
        ...

    def check_ready(self, timeout_s: float) -> None:
        """Return once the wallet accepts payment orders. Wait for at most ``timeout_s`` seconds.

        Raises: FundingError with the cause if it accepts none.
        Money: none moves.
        """
        ...

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the wallet's identity and network.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        ...


@runtime_checkable
class FixedFeeWallet(Protocol):
    """A wallet whose fees are bounded by the wallet itself, so that no order can lower the bound."""

    def own_fee_cap_msat(self, bolt11: str, *, timeout_s: float) -> int | None:
        """Return the most that the wallet lets the payment of ``bolt11`` cost beside its amount, in msat.

        It is asked before anything is reserved. If it doesn't fit under the session's own limits, nothing is paid; otherwise that
        much is reserved. None: the ``max_fee_msat`` of an order holds, as with lnd.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        ...


@runtime_checkable
class BalanceWallet(Protocol):
    """A wallet that tells what it could spend."""

    def spendable_msat(self, *, timeout_s: float) -> int | None:
        """Return the most that the wallet could pay now, in msat; None if it doesn't say, or the key may not ask.

        It is asked where a session has several wallets of one network.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        ...


@runtime_checkable
class ListingWallet(Protocol):
    """A wallet that has a list of its payments. ``budget audit`` compares the ledger with it."""

    def list_payments(self) -> Iterator[NodePayment]:
        """Yield all outgoing payments that the wallet knows, failed and unfinished ones too, in any order.

        Raises: FundingError if the wallet can't be asked.
        Money: none moves.
        """
        ...


def derived_identity(kind: str, name: str) -> str:
    """Return the identity of a wallet that isn't a node, for `NodeInfo.identity_pubkey`: 66 hex digits.

    ``kind`` names the sort of wallet (``lnbits``), ``name`` the one wallet among all of its kind, for ever. No node has such a key.
    """
    return _DERIVED + hashlib.sha256(f"{kind}:{name}".encode("utf-8", "surrogatepass")).hexdigest()


def is_derived(identity: str) -> bool:
    """Return whether ``identity`` is one of `derived_identity`, and so not a node's key."""
    return identity.startswith(_DERIVED)


def default_fee_cap_msat(amount_msat: int) -> int:
    """Return the most that routing may cost if nothing is configured: 5 % of the amount, rounded up, but at least 10 000 msat."""
    return max(FEE_CAP_MSAT_MIN, -(-amount_msat * FEE_CAP_PERCENT // 100))


def network_of(lnd_name: str) -> str:
    """Return this package's name for a network that lnd calls ``lnd_name`` (``mainnet``, ``testnet4``, …).

    A network that isn't in `NETWORKS` is called ``bitcoin-`` and lnd's name.
    """
    return {"mainnet": "bitcoin", "testnet4": "bitcoin-testnet"}.get(lnd_name, f"bitcoin-{lnd_name}")
