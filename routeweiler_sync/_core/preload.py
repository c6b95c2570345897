"""What is imported when a session is made, and what before its first payment: two lists of modules, named as strings.

`import routeweiler_sync` stays cheap, because most modules are imported only when they are needed. They are imported in these
steps, under `forks.importing`, rather than one by one: a fork during an import would leave the child with a half-made module. After
the steps a function may import a name where it uses it, since the module is there. If you move a module, change the lists.

What only one wallet needs comes after that, in a step of its own: lnd's connection imports grpc. What only one backend or scheme
needs is left to the modules that use it.
"""

from __future__ import annotations

import importlib
import threading
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
    "protocol.token_search",
)
_PAYING = ("paywall.handler",)
#: Libraries that the modules of `_PAYING` import only when they use them.
_LIBRARIES = ("bolt11", "pymacaroons", "tenacity", "sqlite3")

#: What a wallet's libraries import only in their first call, in whatever thread that is.
_LATE = {"funding.lnd.channel": ("grpc._channel", "_strptime"), "funding.lnd.rest_channel": ("_strptime",)}

_ROOT = __name__.partition(".")[0]
_done: set[str] = set()


def prepare_session() -> None:
    """Import what a session may need, before a fork can come in between. Only the first call does anything."""
    if "session" not in _done:
        _load(["netrc"])  # `requests` imports it in its first call
        _load(f"{_ROOT}.{name}" for name in _SESSION)
        _done.add("session")


class HalfImportedError(RuntimeError):
    """This very thread is importing what paying needs: a signal handler or finalizer has interrupted it."""


#: The id of the thread that is importing what paying needs.
_importer: int | None = None


def prepare_to_pay(wallet_module: str | None = None) -> None:
    """Import what only paying needs, and ``wallet_module`` of this package. Only the first call for each does anything.

    Raises: HalfImportedError in a signal handler or finalizer that has interrupted this function. It would find half of a module.
    """
    global _importer
    step = wallet_module or "paying"
    if step in _done:
        return
    if _importer == threading.get_ident():
        raise HalfImportedError("this same thread is importing what paying needs")
    with importing:
        try:
            _importer = threading.get_ident()
            if "paying" not in _done:
                _load(_LIBRARIES)
                _load(f"{_ROOT}.{name}" for name in _PAYING)
                _done.add("paying")
            if wallet_module is not None:
                _load([f"{_ROOT}.{wallet_module}", *_LATE.get(wallet_module, ())])
                _done.add(wallet_module)
        finally:
            _importer = None


def _load(names: Iterable[str]) -> None:
    with importing:
        for name in names:
            importlib.import_module(name)
