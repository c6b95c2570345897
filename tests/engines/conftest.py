"""A PostgreSQL server and a shop for all engines; each engine starts once, on a ledger of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.postgres.server import NotInstalledError, Server

from .fleet import Fleet
from .pools import POOLS, Pool
from .shop import Shop

REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_ENGINES") == "1"
#: What each engine needs, besides PostgreSQL: a package, and a program.
NEEDS = {"dask": ("distributed", None), "ray": ("ray", None), "celery": ("celery", "redis-server")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start an engine: they are ``real``."""
    for item in items:
        if "tests/engines/" in item.nodeid and "fleet" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


def _skip(missing: str) -> None:
    if REQUIRED:
        pytest.fail(f"ROUTEWEILER_REQUIRE_ENGINES=1, and there is no {missing}")
    pytest.skip(f"no {missing}")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server that runs."""
    if importlib.util.find_spec("psycopg") is None:
        _skip("psycopg")
    try:
        with Server.make() as made:
            yield made
    except NotInstalledError as missing:
        _skip(str(missing))


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    with Shop.make() as made:
        yield made


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of a test file, whose ``ENGINE`` names it, or of a test. Skipped where it isn't installed."""
    name: str = getattr(request, "param", None) or request.module.ENGINE
    package, program = NEEDS[name]
    if importlib.util.find_spec(package) is None:
        _skip(f'{package} (pip install "routeweiler-sync[engines]")')
    if program is not None and shutil.which(program) is None:
        _skip(f"{program} (apt-get install {program})")
    return name


@pytest.fixture(scope="module")
def fleet(engine: str, server: Server, shop: Shop) -> Iterator[Fleet]:
    with Fleet.make(server, shop) as made:
        yield made


@pytest.fixture(scope="module")
def pool(engine: str, fleet: Fleet) -> Iterator[Pool]:
    """The engine, running. All tests of a file share it."""
    with POOLS[engine].make() as made:
        yield made
