"""Modules of ours that stand for modules of requests: what a program's tests patch in them is patched where it counts."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import requests

import routeweiler_sync
from routeweiler_sync._core.module_alias import alias_module


@pytest.mark.parametrize("name", ["get_netrc_auth", "merge_setting", "preferred_clock"])
def test_what_is_patched_in_our_sessions_is_patched_in_requests(name: str) -> None:
    """A program's tests, with nothing but the import line changed, would patch a name that nobody reads, and fail."""
    original = getattr(requests.sessions, name)
    with mock.patch(f"routeweiler_sync.sessions.{name}") as patched:
        assert getattr(requests.sessions, name) is patched
        assert getattr(routeweiler_sync.sessions, name) is patched
    assert getattr(requests.sessions, name) is original
    assert getattr(routeweiler_sync.sessions, name) is original


def test_the_session_that_pays_is_patched_alone() -> None:
    """Patching ours would take the session from all those that use requests itself, and a patch of ours be lost on our verbs."""
    theirs, ours = requests.sessions.Session, routeweiler_sync.sessions.Session
    with mock.patch("routeweiler_sync.sessions.Session") as patched:
        assert requests.sessions.Session is theirs
        routeweiler_sync.get("http://127.0.0.1:1")
        assert patched.called
    assert routeweiler_sync.sessions.Session is ours


@pytest.mark.parametrize("name", ["sessions", "api"])
def test_a_stand_in_tells_all_names(name: str) -> None:
    """Completion, and ``from requests.sessions import *`` in an old program, know what requests has."""
    theirs = importlib.import_module(f"requests.{name}")
    ours = importlib.import_module(f"routeweiler_sync.{name}")
    assert set(dir(theirs)) <= set(dir(ours))
    there: dict[str, Any] = {}
    here: dict[str, Any] = {}
    exec(f"from requests.{name} import *", there)
    exec(f"from routeweiler_sync.{name} import *", here)
    assert there.keys() <= here.keys()


def test_the_version_is_a_module_and_a_name() -> None:
    """As in requests: ``from requests.__version__ import __version__`` is in programs that tell what they run with."""
    from routeweiler_sync.__version__ import __version__

    assert __version__ == requests.__version__ == routeweiler_sync.__version__
    assert importlib.import_module("routeweiler_sync.__version__") is importlib.import_module("requests.__version__")
    assert isinstance(routeweiler_sync.__version__, str)


def test_names_are_taken_away_and_put_back_where_they_are() -> None:
    """mock deletes a name that it has set and sets it again: in the wrong module, it would hide theirs for good."""
    ours, theirs = ModuleType("ours"), ModuleType("theirs")
    ours.mine, theirs.mine, theirs.other = "ours", "theirs", 1  # type: ignore[attr-defined]
    alias_module(ours, theirs)
    del ours.other
    assert not hasattr(theirs, "other")
    assert not hasattr(ours, "other")
    ours.other = 2  # type: ignore[attr-defined]
    assert "other" not in vars(ours)
    assert theirs.other == 2  # type: ignore[attr-defined]
    ours.mine = 3  # type: ignore[attr-defined]
    assert theirs.mine == "theirs"  # type: ignore[attr-defined]
    ours.new = 4  # type: ignore[attr-defined]
    assert not hasattr(theirs, "new")
    assert ours.__name__ == "ours"


def test_a_name_that_is_in_neither_is_missing() -> None:
    """A program that asks what this version of requests has (`hasattr`) would be told wrong."""
    assert not hasattr(routeweiler_sync.sessions, "no_such_name")
    with pytest.raises(ImportError):
        from routeweiler_sync.api import no_such_name  # type: ignore[attr-defined]  # noqa: F401
