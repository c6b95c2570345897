"""What all tests share: hypothesis profiles, readable assertions in the helpers, and Ctrl-C for the processes that tests start."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from routeweiler_sync.budgets import fmv
from routeweiler_sync.budgets.coingecko import CoinGecko

# The helpers that assert: a failure there shows the values, as in a test. (`purchase_model` is left out: it is a hot loop.)
pytest.register_assert_rewrite(
    "tests.support.accounts",
    "tests.support.ledger_builders",
    "tests.support.ledger_charges_contract",
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


#: Folders whose tests share one server. One worker runs all of them.
SHARED = ("tests/postgres/", "tests/regtest/", "tests/engines/")
#: What takes longest. It is begun first: begun last, it would keep one worker busy for minutes after the others have ended.
FIRST = (
    "tests/regtest/",
    "tests/compat/test_requests_suite.py",
    "tests/compat/test_naive_sessions_fail.py",
    "tests/postgres/",
    "tests/engines/",
    "tests/component/payments/test_each_wallet.py",
    "tests/component/funding/test_connection_sweep.py",
    "tests/component/payments/test_charge_crash_points.py",
    "tests/component/payments/test_crash_points.py",
    "tests/component/payments/test_reentry.py",
    "tests/component/payments/test_never_overspend.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """With ``-n auto``, start one worker more than there are cores: real nodes and databases are mostly waited for."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, keep the tests of a file on one worker: some share what is slow to make. Else each worker would make it."""
    if config.getoption("dist") not in ("load", "loadfile"):
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = [folder for folder in SHARED if nodeid.startswith(folder)]
            return shared[0] if shared else super()._split_scope(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            first = [scope for scope in FIRST if scope in self.workqueue]
            if first:
                self.workqueue.move_to_end(first[0], last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores SIGINT, what nohup starts ignores SIGHUP, and their children inherit that: those that tests
    # interrupt would sleep on.
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
