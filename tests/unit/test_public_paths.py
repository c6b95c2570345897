"""The import paths that programs may rely on. Whatever moves inside the package, these lead to the same objects."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import requests

import routeweiler_sync
from routeweiler_sync import errors

#: What each public module beside the package itself is there for.
PATHS = {
    "agents": ["FetchTool", "fetch_tool"],
    "agents.fetching": ["Fetched", "Price", "Rules", "fetch", "fetch_async"],
    "agents.pages": ["Page"],
    "agents.problems": ["Problem"],
    "agents.tool": ["FetchTool"],
    "budgets.schema": ["BudgetEnvelope"],
    "errors": [name for name in routeweiler_sync.__all__ if name.endswith("Error") and not hasattr(requests, name)],
    "funding": ["Funding", "LnbitsClient", "LndClient", "LndRestClient", "NwcClient"],
    "funding.lightning": [
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
    ],
    "l402": [
        "Challenge",
        "Invoice",
        "Macaroon",
        "authorization",
        "decode_invoice",
        "is_credential",
        "parse_challenge",
        "parse_macaroon",
        "redact",
        "scope_of",
    ],
    "policy.dsl": ["Policy", "PolicyRule", "RuleMatch"],
    "settings": ["SETTINGS", "AdapterSettings", "Default", "Settings", "Unpayable"],
    "testing": ["FakeInvoice", "FakeLnd", "FakePayment", "Faults", "PaidRequests", "Paywall", "PaywallRequest", "add_paywall"],
    "testing.fake_lnd": ["FakeLnd"],
    "testing.paywall": ["Paywall", "PaywallLogic", "add_paywall"],
    "trace.sink_sqlite": ["TraceSink"],
}
#: The modules of `requests`.
OF_REQUESTS = [
    "adapters", "api", "auth", "certs", "compat", "cookies", "exceptions", "help", "hooks", "models", "packages", "sessions",
    "status_codes", "structures", "utils",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(routeweiler_sync.__all__))
def test_a_name_of_the_package_is_there(name: str) -> None:
    """`from routeweiler_sync import …` of a program that ran yesterday ends in an ImportError."""
    value = getattr(routeweiler_sync, name)
    assert value is getattr(routeweiler_sync, name), "another object each time: `isinstance` and `except` would miss it"
    assert name in dir(routeweiler_sync)


def test_no_name_of_the_package_is_listed_twice() -> None:
    """A list that has been merged wrongly may lack another name."""
    assert len(set(routeweiler_sync.__all__)) == len(routeweiler_sync.__all__)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PATHS.items() for name in names])
def test_a_public_path_leads_to_the_packages_own_object(module: str, name: str) -> None:
    """A copy under the old path is worse than none: `except`, `isinstance` and patches would work on one of the two only."""
    value = getattr(importlib.import_module(f"routeweiler_sync.{module}"), name)
    if name in routeweiler_sync.__all__:
        assert value is getattr(routeweiler_sync, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        home = importlib.import_module(value.__module__)
        assert getattr(home, name) is value


def test_every_public_error_is_in_errors_and_in_the_package() -> None:
    """One that is left out of either can't be caught by those who import from there."""
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.RouteweilerError)}
    assert set(PATHS["errors"]) == tree


@pytest.mark.parametrize("name", OF_REQUESTS)
def test_a_module_of_requests_is_there(name: str) -> None:
    """`from routeweiler_sync.exceptions import Timeout` is what a program has that was moved over by search and replace."""
    module = importlib.import_module(f"routeweiler_sync.{name}")
    assert getattr(routeweiler_sync, name) is module
    for each in getattr(requests, name).__dict__:
        assert each.startswith("_") or hasattr(module, each), each


def test_each_public_path_can_be_the_first_import() -> None:
    """In a circle of imports a path may work only after another one: the program that begins with it dies at its first line."""
    program = """
import importlib, sys
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "routeweiler_sync"]:
        del sys.modules[name]
    try:
        importlib.import_module(path)
    except Exception as error:
        print(path, repr(error))
"""
    paths = ["routeweiler_sync", *(f"routeweiler_sync.{module}" for module in [*PATHS, *OF_REQUESTS])]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *paths], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
