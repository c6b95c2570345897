"""`doctor` on a PostgreSQL ledger: a worker of a fleet asks whether it may start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from routeweiler_sync.doctor.checkup import examine
from routeweiler_sync.doctor.findings import Verdict
from routeweiler_sync.ledger.ledger import Ledger
from tests.support.ledger_builders import intent


def test_a_look_creates_no_tables(url: str, make_ledger: Callable[..., Ledger]) -> None:
    """The first worker makes them, with the rights of its own user."""
    found = {each.check: each for each in examine(funding=[], ledger=url)}
    assert found["ledger"].verdict is Verdict.OK
    assert "the database answers" in found["ledger"].what
    assert not make_ledger().exists()


def test_what_is_unfinished_is_found_whoever_ordered_it(url: str) -> None:
    """A worker that died leaves a payment that any other can end."""
    with closing(Ledger.open(url)) as ledger:
        ledger.open_payment(intent(1), None)
    found = {each.check: each for each in examine(funding=[], ledger=url)}
    assert found["ledger"].verdict is Verdict.OK
    assert found["ledger"].what.endswith("readable and writable")
    assert found["payments"].verdict is Verdict.WARNING
    assert "10 sat to https://api.example" in found["payments"].what
    assert found["budget"].verdict is Verdict.OK
