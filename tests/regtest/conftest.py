"""The real world as a fixture: one for the whole test session, whole again before each test, its logs in each failure.

Linux only. Where Go is missing (or Node.js, for the servers that others wrote) the tests are skipped and say so. With
ROUTEWEILER_REQUIRE_REGTEST=1, as in CI, they fail instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from .build import GoMissingError, Report, binaries
from .installs import InstallError
from .lnbits_builds import lnbits_python
from .nwc_builds import nwc_runtime
from .server_builds import Runtimes, runtimes as install_runtimes
from .world import World, start_world

T = TypeVar("T")

REQUIRE = "ROUTEWEILER_REQUIRE_REGTEST"
TEST_TIMEOUT_S = 300


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def _installed(install: Callable[[Report], T], config: pytest.Config) -> T:
    """Return what ``install`` returns. Where it can't install anything, the tests that need it are skipped or fail."""
    try:
        return install(_reporter(config))
    except InstallError as error:
        _unavailable(str(error))


@pytest.fixture(scope="session")
def world(pytestconfig: pytest.Config) -> Iterator[World]:
    """btcd, three lnds, aperture and a service behind it, up and payable; see `World`."""
    if sys.platform != "linux":
        _unavailable("the world of real programs runs on Linux only")
    report = _reporter(pytestconfig)
    try:
        programs = binaries(report)
    except GoMissingError as error:
        _unavailable(str(error))
    with start_world(programs, report=report) as world:
        yield world


@pytest.fixture(scope="session")
def runtimes(pytestconfig: pytest.Config) -> Runtimes:
    """What the servers of `servers/` are run with, installed if need be."""
    if sys.platform != "linux":
        _unavailable("the servers are run on Linux only")
    return _installed(install_runtimes, pytestconfig)


@pytest.fixture(scope="session")
def lnbits_installed(pytestconfig: pytest.Config) -> None:
    """LNbits is there to be run, installed if need be."""
    _installed(lnbits_python, pytestconfig)


@pytest.fixture(scope="session")
def nwc_installed(pytestconfig: pytest.Config) -> None:
    """Alby's SDK is there to be run, installed if need be."""
    _installed(nwc_runtime, pytestconfig)


@pytest.fixture(autouse=True)
def _lnbits_if_wanted(request: pytest.FixtureRequest) -> None:
    """A test whose parameter is this wallet is skipped where it can't be installed."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "lnbits" in [value for value in callspec.params.values() if isinstance(value, str)]:
        request.getfixturevalue("lnbits_installed")


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test has frozen, stopped or killed runs again before the next one, whatever became of the test."""
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").mend()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests: all are ``real``, and have time for it."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.real)
        if item.get_closest_marker("timeout") is None:
            # The first test's setup builds the binaries, which takes minutes; the builder and the world bound themselves.
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and isinstance(world, World):
        report.sections.append(("logs of the world", world.logs()))
    return report


def _reporter(config: pytest.Config) -> Report:
    """Prints past pytest's capture, for a build of minutes must not look like a hang."""
    capture = config.pluginmanager.getplugin("capturemanager")

    def report(line: str) -> None:
        if capture is None:
            print(line, flush=True)
        else:
            with capture.global_and_fixture_disabled():
                print(f"\n{line}", end="", flush=True)

    return report
