"""The PostgreSQL ledger keeps what every ledger promises."""

from __future__ import annotations

from tests.support.ledger_contract import LedgerContract


class TestPostgresLedger(LedgerContract):
    """The contract; its fixtures are in `conftest`."""
