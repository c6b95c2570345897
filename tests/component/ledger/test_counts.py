"""What one purchase asks of its ledger, counted on the real thing by `benchmarks.purchase_counts`. See
`docs/how-to/large-ledgers.md`.

If a count goes down, lower it here and in that page.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from benchmarks.purchase_counts import Counts, count
from tests.postgres.conftest import server as server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: The bytes that a server logs are mostly a purchase's, and some of its own; the rest is exact.
MOST: dict[str, dict[str, float]] = {
    "sqlite": {"reads": 1, "writes": 3, "durable_writes": 2, "statements": 14, "bytes": 120_000},
    "postgresql": {
        "reads": 1, "writes": 3, "durable_writes": 2, "statements": 20, "round_trips": 13, "locked_trips": 5, "bytes": 20_000,
    },
}  # fmt: skip


def held(backend: str) -> None:
    counts: Counts = count(backend, 4)
    found = {field.name: getattr(counts, field.name) for field in fields(counts) if field.name in MOST[backend]}
    assert all(found[name] <= most for name, most in MOST[backend].items()), found
    assert counts.reads >= 1, "what the ledger has for the page"
    assert counts.durable_writes >= 2, "the intent before the order leaves, and what was paid"
    assert counts.locked_trips >= 2, "each limit is checked, and each spend is booked, while the envelope is locked"
    assert all(each > 0 for each in counts.locked_s)


def test_a_purchase_asks_no_more_of_sqlite_than_is_said() -> None:
    """Else a fleet would be planned with figures that are wrong, or a change make each purchase dearer with nobody the wiser."""
    held("sqlite")


@pytest.mark.real
def test_a_purchase_asks_no_more_of_postgresql_than_is_said(server: Any) -> None:
    """As before; here each statement is a way to the server and back."""
    held("postgresql")
