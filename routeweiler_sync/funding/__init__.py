"""Wallets, and how a purchase pays through one. `routeweiler_sync.funding.lightning` has the public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lightning import (
        Funding as Funding,
        LnbitsClient as LnbitsClient,
        LndClient as LndClient,
        LndRestClient as LndRestClient,
        NwcClient as NwcClient,
    )
else:

    def __getattr__(name: str) -> object:
        # Programs import these names from here. They are loaded at their first use, because only paying needs the wallets.
        if name in __all__:
            from . import lightning

            return getattr(lightning, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Funding", "LnbitsClient", "LndClient", "LndRestClient", "NwcClient"]
