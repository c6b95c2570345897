"""Who pays: wallets, and how a purchase uses one. `routeweiler_sync.funding.lightning` has the public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lightning import Funding as Funding
else:

    def __getattr__(name: str) -> object:
        if name == "Funding":  # imported from here by programs, and not at once: the wallets behind it are only needed to pay
            from .lightning import Funding

            return Funding
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Funding"]
