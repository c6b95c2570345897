"""Life with other libraries: the real ones, on real sockets where they have any.

Sessions come from the fixture `paying`: `Routeweiler`'s family, or with ROUTEWEILER_COMPAT_NAIVE one of the naive ways that these
tests must fail (`naive_sessions`). Where a library isn't installed
its tests are skipped, unless ROUTEWEILER_REQUIRE_COMPAT=1.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import routeweiler_sync
from routeweiler_sync import Routeweiler, TraceSink
from routeweiler_sync.testing import FakeLnd
from tests.support import naive_sessions as naive

from ..component import conftest as component

REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_COMPAT") == "1"
NAIVE = os.environ.get(naive.VARIABLE)

#: Hex digits.
PREIMAGE_CHARS = 64

lnd = component.lnd
paywall = component.paywall


def library(name: str, extra: str = "compat") -> Any:
    """The module ``name``. Where it isn't installed, the file's tests are skipped; with ROUTEWEILER_REQUIRE_COMPAT=1 they fail."""
    if REQUIRED:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} isn't installed: pip install 'routeweiler-sync[{extra}]'")


def documented(name: str, **names: Any) -> dict[str, Any]:
    """What the code ``name`` of docs/reference/compatibility.md defines, given ``names``: users copy it from there, so tests do."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")
    code = page.partition(f"<!-- code: {name} -->\n```python\n")[2].partition("```")[0]
    assert code, f"no code {name!r} in docs/reference/compatibility.md"
    exec(code, names)
    return names


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under a naive way: the tests of this folder that ask for what pays, without those that needn't run."""
    if NAIVE:
        here, without = Path(__file__).parent, naive.left_out()
        chosen = [
            item
            for item in items
            if here not in item.path.parents
            or ("paying" in getattr(item, "fixturenames", ()) and f"{item.path.stem}::{item.name}" not in without)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


class Books(component.Books):
    """The accounts of one test, and what may be written nowhere."""

    def once(self) -> None:
        """One payment has been made, and all accounts agree."""
        assert len(self.lnd.payments) == 1, f"{len(self.lnd.payments)} payments"
        self.check()

    @property
    def secrets(self) -> list[str]:
        """Tokens and preimages so far."""
        return [secret for row in self.rows for secret in (row.token, row.preimage) if secret]

    def assert_no_secret_in(self, *places: Path | bytes | str, of: int | None = None) -> None:
        """No token and no preimage in these files, all files of these folders, these texts. ``of``: none of so many characters."""
        secrets = [secret for secret in self.secrets if of in (None, len(secret))]
        assert secrets, "nothing was paid: nothing is looked for"
        looked_at = 0
        for place in places:
            for name, data in _contents(place):
                looked_at += len(data)
                found = [index for index, secret in enumerate(secrets) if secret.encode() in data]
                assert not found, f"a secret lies in {name}"
        assert looked_at, "nothing was looked at"


def _contents(place: Path | bytes | str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file; a second time without what a format breaks a long line with."""
    if isinstance(place, Path):
        files = sorted(each for each in place.rglob("*") if each.is_file()) if place.is_dir() else [place]
        contents = [(each.name, each.read_bytes()) for each in files]
    else:
        contents = [("the text", place.encode() if isinstance(place, str) else place)]
    for name, data in contents:
        yield name, data
        yield name, b"".join(data.replace(b"\\", b"").split())


class NaiveBooks(Books):
    """The accounts of a naive way: the node's, and what it told."""

    @property
    def wallet(self) -> naive.Wallet:
        return naive.Wallet.at(self.ledger_path)

    @property
    def rows(self) -> list[Any]:
        return []

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.wallet.lines

    @property
    def secrets(self) -> list[str]:
        return self.wallet.secrets

    def check(self, *, finished: bool = True) -> None:
        paid = {p.payment_hash for p in self.lnd.payments if p.status == "SUCCEEDED"}
        told = {p["paymentHash"] for line in self.lines if (p := line["payment"]) and not p["reused"]}
        assert not finished or told == paid, "trace and node differ on what was paid"


class Paying:
    """What pays in a test. Called, it gives a session on the test's node, ledger and trace, closed at the end.

    ``Session`` is the class, for those who inherit from it; ``kwargs`` are what its instances are given.
    """

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self.kwargs = kwargs
        self.Session: type[requests.Session] = naive.SESSIONS[NAIVE] if NAIVE else Routeweiler
        self._made: list[Any] = []

    def __call__(self, **kwargs: Any) -> Any:
        return self.closing(self.Session(**self.kwargs | kwargs))

    def closing(self, session: Any) -> Any:
        """``session``, which the test's end closes."""
        self._made.append(session)
        return session

    def adapter(self, **kwargs: Any) -> requests.adapters.BaseAdapter:
        """An adapter to mount on a plain session; HTTPAdapter's arguments may be given as well."""
        made = naive.NaiveAdapter if NAIVE else routeweiler_sync.PaywallAdapter
        return made(**self.kwargs | kwargs)  # type: ignore[no-any-return]

    def wrap(self, session: requests.Session, **kwargs: Any) -> Any:
        """A paying session that shares ``session``'s parts."""
        return self.closing(self.Session.wrap(session, **self.kwargs | kwargs))  # type: ignore[attr-defined]

    def install(self, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
        """Make `requests` itself pay, until the test ends."""
        given = self.kwargs | kwargs
        if NAIVE is None:
            routeweiler_sync.install(**given)  # type: ignore[attr-defined]
            self._made.append(_Installed())
            return
        base = self.Session

        class Installed(base):  # type: ignore[valid-type, misc]
            def __init__(self) -> None:
                super().__init__(**given)

        for module in (requests, requests.sessions):
            monkeypatch.setattr(module, "Session", Installed)

    def close(self) -> None:
        for each in reversed(self._made):
            each.close()


class _Installed:
    def close(self) -> None:
        routeweiler_sync.uninstall()  # type: ignore[attr-defined]


@pytest.fixture
def books(tmp_path: Path, lnd: FakeLnd) -> Books:
    return (NaiveBooks if NAIVE else Books)(tmp_path, lnd)


@pytest.fixture
def paying(books: Books, lnd: FakeLnd) -> Iterator[Paying]:
    naive.Wallet.shared.clear()
    kwargs = {"funding": [lnd.funding()], "ledger": books.ledger_path, "trace_sink": TraceSink.jsonl(books.trace_path)}
    made = Paying(kwargs)
    yield made
    made.close()


@pytest.fixture
def session(paying: Callable[..., requests.Session]) -> requests.Session:
    return paying()
