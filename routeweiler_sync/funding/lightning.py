"""Funding over Lightning: the names that programs use. `Funding` makes a source, `LndClient` reaches the user's own lnd.

The code is in `source` (how a purchase uses a wallet), `wallet` (what a wallet must offer) and `lnd` (lnd over gRPC).
"""

from __future__ import annotations

from .lnd.client import LndClient
from .source import LightningFundingSource
from .wallet import (
    ChannelBalance,
    LightningNodeClient,
    NodeInfo,
    NodePayment,
    PaymentStatus,
    SentPayment,
    WalletClient,
)

__all__ = [
    "ChannelBalance",
    "Funding",
    "LightningFundingSource",
    "LightningNodeClient",
    "LndClient",
    "NodeInfo",
    "NodePayment",
    "PaymentStatus",
    "SentPayment",
    "WalletClient",
]


class Funding:
    """The ways to fund payments. A session takes a list of what these return, one or more for each network."""

    @staticmethod
    def lightning_lnd(
        *, client: LightningNodeClient, network: str, node_pubkey: str | None = None, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Return a source that pays through ``client``: an `LndClient`, or any object that satisfies `LightningNodeClient`.

        Asks and connects nothing. The arguments are `LightningFundingSource`'s.

        Raises: ValueError for arguments that can't be.
        """
        return LightningFundingSource(client=client, network=network, node_pubkey=node_pubkey, max_fee_msat=max_fee_msat)
