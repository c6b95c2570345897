"""``import routeweiler_sync as requests``: all that `requests` has is there, the same objects; what sends is ours."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest
import requests

import routeweiler_sync
from routeweiler_sync._version import VERSION

#: `requests.__all__`, which it has from 2.34 on.
PUBLIC = {
    "ConnectionError", "ConnectTimeout", "HTTPError", "JSONDecodeError", "PreparedRequest", "ReadTimeout", "Request",
    "RequestException", "Response", "Session", "Timeout", "TooManyRedirects", "URLRequired", "codes", "delete", "get", "head",
    "options", "packages", "patch", "post", "put", "request", "session", "utils",
}  # fmt: skip
#: What pays, and so is ours.
OURS = {"Session", "session", "request", "get", "options", "head", "post", "put", "patch", "delete"}
#: Ours under the name of theirs, with all that theirs have.
STAND_INS = {"sessions", "api"}
SUBMODULES = [found.name for found in pkgutil.iter_modules(requests.__path__) if not found.name.startswith("_")]
DUNDERS = [name for name in vars(importlib.import_module("requests.__version__")) if name.startswith("__") and name.endswith("__")]


@pytest.mark.parametrize("name", sorted(PUBLIC | set(getattr(requests, "__all__", ()))))
def test_a_public_name_of_requests(name: str) -> None:
    """`except requests.Timeout` of a legacy script must catch what is raised."""
    ours, theirs = getattr(routeweiler_sync, name), getattr(requests, name)
    assert name in routeweiler_sync.__all__
    if name in OURS:
        assert ours is not theirs
        assert not isinstance(theirs, type) or issubclass(ours, theirs)
    else:
        assert ours is theirs


@pytest.mark.parametrize("name", sorted(SUBMODULES))
def test_a_submodule_of_requests(name: str) -> None:
    """`from requests.adapters import HTTPAdapter` is in every second script."""
    ours, theirs = importlib.import_module(f"routeweiler_sync.{name}"), importlib.import_module(f"requests.{name}")
    if name in STAND_INS:
        for each in vars(theirs):
            if not each.startswith("__"):
                assert (getattr(ours, each) is getattr(theirs, each)) == (each not in {*OURS, "sessions"}), each
    else:
        assert ours is theirs
    assert getattr(routeweiler_sync, name) is ours


def test_what_isnt_in_all_but_used() -> None:
    """Scripts read `requests.__version__` and what happens to lie in the package."""
    assert "__version__" in DUNDERS
    for name in (*DUNDERS, *(each for each in vars(requests) if not each.startswith("_"))):
        if name in {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__builtins__"}:
            continue
        assert hasattr(routeweiler_sync, name), name
        if name not in OURS | STAND_INS:
            assert getattr(routeweiler_sync, name) is getattr(requests, name), name
    from routeweiler_sync.packages.urllib3.util.retry import Retry  # type: ignore[import-not-found]

    from routeweiler_sync.__version__ import __title__

    assert (__title__, Retry) == (requests.__title__, requests.adapters.Retry)
    assert routeweiler_sync.__version__ == requests.__version__  # a string, also after the import above
    with pytest.raises(AttributeError, match="gett"):
        routeweiler_sync.gett  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", sorted(OURS - {"Session", "session"}))
def test_a_verb_takes_what_it_takes_in_requests(name: str) -> None:
    """An argument by position would land in another."""
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (routeweiler_sync, requests))
    assert [(each.name, each.kind, each.default) for each in ours.values()] == [
        (each.name, each.kind, each.default) for each in theirs.values()
    ]


def test_a_star_import_gives_all_public_names() -> None:
    """`from requests import *`."""
    program = "from routeweiler_sync import *; print(get.__module__, Session.__module__, codes.ok, Routeweiler.__name__, install)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("routeweiler_sync.api routeweiler_sync.sessions 200 Routeweiler <function install")


def test_the_report_for_faults_names_this_package_too() -> None:
    """Else a report says which `requests` was used, and not which version of what paid."""
    told = subprocess.run([sys.executable, "-m", "routeweiler_sync.help"], capture_output=True, text=True, check=True)
    report = json.loads(told.stdout)
    assert told.stderr == ""
    assert report["routeweiler_sync"] == {"version": VERSION}
    assert report["requests"] == {"version": requests.__version__}
    assert importlib.import_module("routeweiler_sync.help").info.__module__ == "requests.help"
