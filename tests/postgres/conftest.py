"""One server for the whole test session, a database for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from routeweiler_sync.ledger.ledger import Ledger

from .server import NotInstalledError, Server

REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_POSTGRES") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests: those that use the server are ``real``."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server that runs. Where none is installed the tests are skipped, unless ROUTEWEILER_REQUIRE_POSTGRES=1."""
    try:
        import psycopg  # noqa: F401

        with Server.make() as made:
            yield made
    except (NotInstalledError, ImportError) as missing:
        if REQUIRED:
            raise
        pytest.skip(f"no PostgreSQL: {missing}")


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of an empty database."""
    name = server.new_database()
    yield name
    server.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(server: Server, database: str) -> str:
    """Names a ledger that isn't there yet."""
    return server.url(database)


@pytest.fixture
def make_ledger(url: str) -> Iterator[Callable[..., Ledger]]:
    """Further connections to the test's ledger; arguments are Ledger's."""
    from routeweiler_sync.ledger.postgres.store import PostgresStore

    made: list[Ledger] = []

    def make(clock: Callable[[], float] | None = None, *, at: str = url) -> Ledger:
        made.append(Ledger(PostgresStore(at)) if clock is None else Ledger(PostgresStore(at), clock=clock))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    return make_ledger()
