"""PRELOAD"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from .forks import importing

_SESSION = (
    "config.env_settings",
    "config.payer",
    "paywall.recovery_report",
    "payments.block_limit",
    "ledger.ledger",
    "ledger.sqlite",
    "ledger.postgres.url",
    "trace.sink",
)
_PAYING = ("paywall.handler", "funding.lnd.channel")
#: What those import not with them, but when it is used.
_LIBRARIES = ("bolt11", "pymacaroons", "tenacity", "sqlite3")

_ROOT = __name__.partition(".")[0]
_done: set[str] = set()


def prepare_session() -> None:
    """Import what any session may need."""
    if "session" not in _done:
        _load(["netrc"])  # which requests imports in its first call
        _load(f"{_ROOT}.{name}" for name in _SESSION)
        _done.add("session")


def prepare_to_pay() -> None:
    """Import what only paying needs."""
    if "paying" not in _done:
        _load(_LIBRARIES)
        _load(f"{_ROOT}.{name}" for name in _PAYING)
        _done.add("paying")


def _load(names: Iterable[str]) -> None:
    with importing:
        for name in names:
            importlib.import_module(name)
