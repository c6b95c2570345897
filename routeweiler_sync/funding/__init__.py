"""Wallets, and how a purchase pays through one. `routeweiler_sync.funding.lightning` has the public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lightning import Funding as Funding
else:

    def __getattr__(name: str) -> object:
        # Programs import `Funding` from here. It is loaded at its first use, because only paying needs the wallets behind it.
        if name == "Funding":
            from .lightning import Funding

            return Funding
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Funding"]
