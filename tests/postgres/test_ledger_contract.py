"""The PostgreSQL ledger keeps what every ledger promises."""

from __future__ import annotations

import pytest

from tests.support.ledger_contract import LedgerContract

pytestmark = pytest.mark.slow


class TestPostgresLedger(LedgerContract):
    """The contract; its fixtures are in `conftest`."""
