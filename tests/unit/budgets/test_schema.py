"""What a `BudgetEnvelope` may be called, and whose it is: texts that every ledger can keep as they are."""

from __future__ import annotations

from typing import Any

import pytest

from routeweiler_sync import BudgetEnvelope
from routeweiler_sync.budgets.schema import MAX_ID_BYTES


@pytest.mark.parametrize("id", ["", "a\0b", "\ud800", "x" * (MAX_ID_BYTES + 1), "ü" * (MAX_ID_BYTES // 2 + 1), 5, None, b"b"])
def test_an_id_that_no_ledger_can_keep_is_refused_at_once(id: Any) -> None:
    """Else the budget is found to be unusable at the first payment, and on one kind of database only."""
    with pytest.raises(ValueError, match="a budget envelope's id is a string of"):
        BudgetEnvelope(id)


@pytest.mark.parametrize("id", ["x", "x" * MAX_ID_BYTES, "ü" * (MAX_ID_BYTES // 2), "team 7/ümläut 'quoted' %s ?"])
def test_any_other_text_is_an_id(id: str) -> None:
    """Else budgets that are in use would be refused."""
    assert BudgetEnvelope(id).id == id


@pytest.mark.parametrize("owner", [5, b"me", ["me"], object()])
def test_an_owner_is_text_or_nobody(owner: Any) -> None:
    """Else the purchase fails when the limits are written down, with an error that isn't ours."""
    with pytest.raises(ValueError, match="owner_agent_id"):
        BudgetEnvelope("e", owner_agent_id=owner)
