"""A testing kit for programs that pay: a fake lnd and a paywall, both real servers, and fixtures. Needs the extra ``testing``.

Imported on first use: pytest loads the plugin in every run, also in those without the extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fake_lnd import FakeInvoice, FakeLnd, FakePayment
    from .paywall import Faults, Paywall, PaywallRequest, add_paywall

__all__ = ["FakeInvoice", "FakeLnd", "FakePayment", "Faults", "Paywall", "PaywallRequest", "add_paywall"]

_HOME = dict.fromkeys(("FakeInvoice", "FakeLnd", "FakePayment"), "fake_lnd") | dict.fromkeys(
    ("Faults", "Paywall", "PaywallRequest", "add_paywall"), "paywall"
)


if not TYPE_CHECKING:  # a checker would take any misspelt name for one of those

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
