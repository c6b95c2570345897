"""The public names for paying over Lightning: `Funding` makes a funding source, and a client for each kind of wallet reaches it.

The code is in `source` (how a purchase uses a wallet), `wallet` (what a wallet must offer), and a folder for each kind of wallet.
Only `LndClient` is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .._core.forks import importing
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
    "LnbitsClient",
    "LndClient",
    "LndRestClient",
    "NodeInfo",
    "NodePayment",
    "NwcClient",
    "PaymentStatus",
    "SentPayment",
    "WalletClient",
]

#: Public names, each with the module that is imported when the name is first used.
_LAZY = {"LnbitsClient": "lnbits.client", "LndRestClient": "lnd.rest", "NwcClient": "nwc.client"}

if TYPE_CHECKING:
    from .lnbits.client import LnbitsClient as LnbitsClient
    from .lnd.rest import LndRestClient as LndRestClient
    from .nwc.client import NwcClient as NwcClient
else:  # where type checkers look, a __getattr__ would accept any misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with importing:
            value = getattr(importlib.import_module(f"..{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class Funding:
    """The ways to fund payments. Each method returns a funding source; a session takes a list of them, one or more per network."""

    @staticmethod
    def lightning(
        *, client: LightningNodeClient | WalletClient, network: str | None = None, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Return a funding source that pays through ``client``: a client of any wallet of this package, or of your own.

        ``network`` is ``bitcoin``, ``bitcoin-testnet``, ``bitcoin-signet`` or ``bitcoin-regtest``. None: the source serves the
        network that the wallet names, and any network if the wallet names none. ``max_fee_msat`` is the most that routing one
        payment may cost; None means max(10 000 msat, 5 % of the amount). The wallet isn't asked and no connection is made.

        Raises: ValueError for an unknown network, or a ``max_fee_msat`` that isn't a whole number of msat from 0 upwards.
        """
        return LightningFundingSource(client=client, network=network, max_fee_msat=max_fee_msat)

    @staticmethod
    def lightning_lnd(
        *, client: LightningNodeClient, network: str, node_pubkey: str | None = None, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Return a funding source that pays through ``client``: an `LndClient`, or any object that satisfies `LightningNodeClient`.

        The arguments are those of `LightningFundingSource`. The node isn't asked and no connection is made.

        Raises: ValueError for an unknown network, or a ``max_fee_msat`` that isn't a whole number of msat from 0 upwards.
        """
        return LightningFundingSource(client=client, network=network, node_pubkey=node_pubkey, max_fee_msat=max_fee_msat)
