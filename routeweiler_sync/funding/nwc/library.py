"""The libraries behind wallets of NWC, imported at first use: nostr-sdk for events and their secrecy, websockets for its protocol.

Base installations don't have them (the extra ``nwc``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..._core.forks import importing
from ...errors import FundingError


def nostr() -> Any:
    """Return the module nostr_sdk. Raises: FundingError if the extra isn't installed."""
    return _load("nostr_sdk")


def websocket() -> tuple[Any, ModuleType]:
    """Return websockets' protocol without I/O, and its module of frames. Raises: FundingError if the extra isn't installed."""
    return _load("websockets.client"), _load("websockets.frames")


def _load(name: str) -> Any:
    import importlib
    import sys

    if (module := sys.modules.get(name)) is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        return module
    try:
        with importing:
            return importlib.import_module(name)
    except ImportError as error:
        what = "" if isinstance(error, ModuleNotFoundError) else f" ({type(error).__name__}: {error})"
        raise FundingError(
            f"A library that wallets of NWC need, {name.partition('.')[0]}, isn't installed{what}.",
            advice="Install it: pip install 'routeweiler_sync[nwc]'.",
        ) from None
