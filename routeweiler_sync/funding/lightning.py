"""The public names for paying over Lightning: `Funding` makes a funding source, `LndClient` reaches the user's own lnd.

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
    """The ways to fund payments. Each method returns a funding source; a session takes a list of them, one or more per network."""

    @staticmethod
    def lightning_lnd(
        *, client: LightningNodeClient, network: str, node_pubkey: str | None = None, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Return a funding source that pays through ``client``: an `LndClient`, or any object that satisfies `LightningNodeClient`.

        The arguments are those of `LightningFundingSource`. The node isn't asked and no connection is made.

        Raises: ValueError for an unknown network, or a ``max_fee_msat`` that isn't a whole number of msat from 0 upwards.
        """
        return LightningFundingSource(client=client, network=network, node_pubkey=node_pubkey, max_fee_msat=max_fee_msat)
