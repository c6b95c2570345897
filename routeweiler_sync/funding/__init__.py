"""Who pays. `Funding` names the ways; `routeweiler_sync.funding.lightning` has lnd's client and the funding source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.forks import importing

if TYPE_CHECKING:
    from .lightning import LightningFundingSource
    from .wallet import LightningNodeClient


class Funding:
    """The ways to fund payments. A session takes one of these, or several for different networks."""

    @staticmethod
    def lightning_lnd(
        *, client: LightningNodeClient, network: str, node_pubkey: str | None = None, max_fee_msat: int | None = None
    ) -> LightningFundingSource:
        """Pay L402 invoices through ``client``: an `LndClient`, or anything that satisfies `LightningNodeClient`.

        Asks and connects nothing. ``network``, ``node_pubkey`` and ``max_fee_msat`` are told at `LightningFundingSource`.
        Raises ValueError.
        """
        with importing:
            from .lightning import LightningFundingSource

        return LightningFundingSource(client=client, network=network, node_pubkey=node_pubkey, max_fee_msat=max_fee_msat)


__all__ = ["Funding"]
