"""What all tests share: hypothesis profiles, readable assertions in the helpers, and Ctrl-C for the processes that tests start."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hypothesis import HealthCheck, settings

from routeweiler_sync.budgets import fmv
from routeweiler_sync.budgets.coingecko import CoinGecko

# The helpers that assert: a failure there shows the values, as in a test. (`purchase_model` is left out: it is a hot loop.)
pytest.register_assert_rewrite(
    "tests.support.accounts",
    "tests.support.ledger_builders",
    "tests.support.ledger_contract",
    "tests.support.ledger_limits_contract",
    "tests.support.node_contract",
    "tests.support.node_replies_contract",
)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def no_price_from_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget in dollars without a provider asks CoinGecko. In tests it asks an address where nobody listens."""
    monkeypatch.setattr(fmv, "_default", CoinGecko(base_url="http://127.0.0.1:1", timeout_s=1))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): tests that one pytest-xdist worker runs (--dist loadgroup)")
    # A shell's background job ignores SIGINT, and its children inherit that: those that tests interrupt would sleep on.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
