"""A testing kit for programs that pay: a fake lnd and a paywall (both are real servers), and pytest fixtures for them.

It needs the extra ``testing``. Each name is imported on first use, because pytest loads `pytest_plugin` in every run, also where
the extra isn't installed. The kit itself is in `fake_lnd` and `paywall`.
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


if not TYPE_CHECKING:  # with __getattr__ in view, a type checker would accept any misspelt name

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
