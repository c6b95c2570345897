"""``with install():``: what is put in place for a block is undone at its end, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import requests.sessions

from routeweiler_sync import install, payment_of, uninstall
from routeweiler_sync.testing import FakeLnd, Paywall

PLAIN = requests.Session


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    yield
    uninstall()
    assert requests.Session is requests.sessions.Session is PLAIN


@pytest.fixture
def settings(lnd: FakeLnd, tmp_path: Path) -> dict[str, Any]:
    return {"funding": [lnd.funding()], "ledger": tmp_path / "ledger.db"}


def pays(paywall: Paywall) -> bool:
    return payment_of(requests.get(paywall.url, timeout=30)) is not None


@pytest.mark.filterwarnings("ignore:.*402:RuntimeWarning")
def test_a_block_pays_and_is_undone(settings: dict[str, Any], paywall: Paywall, lnd: FakeLnd) -> None:
    """Else a test or a notebook that installs for one cell would go on paying for ever."""
    assert not pays(paywall)
    with install(**settings) as installed:
        assert pays(paywall)
        with requests.Session() as session:
            session.get(paywall.url)
        assert (installed.spent_msat, installed.spending().payments, installed.spending().calls) == (10_000, 1, 2)
        assert "10 sat spent" in repr(installed)
    assert requests.Session is PLAIN
    assert not pays(paywall)
    assert installed.spent_msat == 10_000 == lnd.spent_msat
    assert "undone" in repr(installed)


def test_a_block_is_undone_after_an_error(settings: dict[str, Any]) -> None:
    """Else the error of one cell would let the following ones pay."""
    with pytest.raises(ZeroDivisionError), install(**settings):
        assert requests.Session is not PLAIN
        _ = 1 / 0
    assert requests.Session is PLAIN


def test_an_inner_block_gives_back_to_the_outer_one(
    settings: dict[str, Any], paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else a library that installs for a moment would end, or change, what the program has installed."""
    with install(**settings) as outer:
        assert pays(paywall)
        with install(**{**settings, "ledger": tmp_path / "inner.db"}) as inner:
            assert pays(paywall)
        assert pays(paywall)
        assert (inner.spent_msat, outer.spent_msat, outer.spending().calls) == (10_000, 10_000, 2)
    assert requests.Session is PLAIN


def test_a_block_gives_back_to_a_plain_call(settings: dict[str, Any], paywall: Paywall, tmp_path: Path) -> None:
    """Else ``install()`` at a program's beginning would end with the first block anywhere in it."""
    plain = install(**settings)
    with install(**{**settings, "ledger": tmp_path / "inner.db"}):
        assert pays(paywall)
    assert pays(paywall)
    assert plain.spent_msat == 10_000
    uninstall()
    assert requests.Session is PLAIN


def test_a_second_plain_call_changes_the_settings(settings: dict[str, Any], paywall: Paywall, tmp_path: Path) -> None:
    """As it always did: a program that calls it often must not have to undo it as often, nor keep all that it ever installed."""
    made = [install(**{**settings, "ledger": tmp_path / f"{n}.db"}) for n in range(5)]
    assert pays(paywall)
    assert [each.spent_msat for each in made] == [0, 0, 0, 0, 10_000]
    assert [repr(each).count("undone") for each in made] == [1, 1, 1, 0, 0]
    uninstall()
    assert requests.Session is PLAIN


def test_uninstall_in_a_block_undoes_all(settings: dict[str, Any]) -> None:
    """Else a program couldn't be sure that nothing pays any more."""
    with install(**settings), install(**settings):
        uninstall()
        assert requests.Session is PLAIN
        again = install(**settings)
    assert "in force" in repr(again)
    assert requests.Session is not PLAIN


def test_blocks_may_end_in_any_order(settings: dict[str, Any], paywall: Paywall, tmp_path: Path) -> None:
    """Generators and fixtures end when they are done with, not the last one first."""
    with ExitStack() as first, ExitStack() as second:
        outer = first.enter_context(install(**settings))
        inner = second.enter_context(install(**{**settings, "ledger": tmp_path / "inner.db"}))
        first.close()
        assert pays(paywall)
        assert (outer.spent_msat, inner.spent_msat) == (0, 10_000)
    assert requests.Session is PLAIN


def test_an_installation_serves_for_one_block(settings: dict[str, Any]) -> None:
    """Else its second block would pay with what was closed, or not at all."""
    installed = install(**settings)
    with installed, pytest.raises(RuntimeError), installed:
        pass
    with pytest.raises(RuntimeError), installed:
        pass


def test_a_wrong_argument_changes_nothing(settings: dict[str, Any]) -> None:
    """Else a typing mistake would leave the program half installed."""
    with pytest.raises(ValueError, match="payment_timeout"), install(**{**settings, "payment_timeout": -1}):
        pass
    assert requests.Session is PLAIN
