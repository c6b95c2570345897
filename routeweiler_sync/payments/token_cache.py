"""Which token goes along unasked: a session's memory of the ledger's live tokens, by origin.

The ledger is asked once for each origin; after that a request costs a look into a dict. What other processes buy later is found
on the 402 that follows, before anything is paid.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import replace
from typing import TYPE_CHECKING

from .._core.forks import in_child
from .._core.urls import path_of
from .first_use import in_first_use

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger

from .._core.urls import origin_at
from .token import HeldToken

log = logging.getLogger("routeweiler_sync")

#: Most origins that a session remembers; the one known for longest is forgotten (and asked of the ledger again).
MAX_ORIGINS = 1_000
#: Most paths of an origin that are remembered for not liking a guess.
MAX_UNWELCOME = 1_000

#: Guards the books of all sessions, for moments only.
_lock = threading.Lock()


@in_child
def _start_over_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


class _Origin:
    def __init__(self) -> None:
        self.by_scope: dict[str, HeldToken] = {}
        self.learned: dict[str, str] = {}
        self.unwelcome: set[str] = set()
        self.forgotten: Container[str] = ()

    def withholds(self, held: HeldToken) -> bool:
        """Whether ``held`` is not to go along unasked: the user has forgotten it, or its buyer is about to use it first."""
        return held.payment_hash in self.forgotten or in_first_use(held.payment_hash)


class TokenBook:
    """A session's tokens. Thread-safe; of its ledger it only reads, and only when the ledger exists."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    def along(self, url: str) -> tuple[HeldToken, bool] | None:
        """`unasked` for ``url``; None as well where that isn't one of http. Quick where the origin has no token."""
        try:
            origin = origin_at(url)
            known = self._origins.get(origin) or self._load(origin)
            return self.unasked(origin, path_of(url)) if known.by_scope else None
        except ValueError:
            return None

    def unasked(self, origin: str, path: str) -> tuple[HeldToken, bool] | None:
        """The token to send along to ``path``, and whether it is a guess; None where there is none. Never raises.

        The one whose scope was learned for this very path; else, as a guess, the origin's only live token.
        """
        known = self._origins.get(origin) or self._load(origin)
        if not known.by_scope:
            return None
        learned = known.learned.get(path)
        if learned is not None:
            held = known.by_scope.get(learned)
            return None if held is None or known.withholds(held) else (held, False)
        if path in known.unwelcome:
            return None
        live = (held for held in known.by_scope.values() if not known.withholds(held))
        only = next(live, None)
        return (only, True) if only is not None and next(live, None) is None else None

    def put(self, held: HeldToken, path: str | None = None) -> None:
        """Remember ``held``; with ``path``, that the path takes tokens of its scope."""
        known = self._origins.get(held.origin) or self._load(held.origin)
        with _lock:
            known.by_scope = {**known.by_scope, held.scope: held}
            if path is not None and known.learned.get(path) != held.scope:
                known.learned = {**known.learned, path: held.scope}

    def unwelcome(self, origin: str, path: str) -> None:
        """Note that ``path`` didn't like a guessed token: it gets none any more."""
        known = self._origins.get(origin)
        if known is not None:
            with _lock:
                known.unwelcome = {path} if len(known.unwelcome) >= MAX_UNWELCOME else known.unwelcome | {path}

    def knows_path(self, held: HeldToken, path: str) -> bool:
        """Whether ``path`` is known to take tokens of ``held``'s scope."""
        known = self._origins.get(held.origin)
        return known is not None and known.learned.get(path) == held.scope

    def note(self, held: HeldToken, *, taken: bool = False, told: bool = False) -> HeldToken:
        """Note that the server has taken ``held``, or that its payment has been told. ``held`` as it is now."""
        with _lock:
            known = self._origins.get(held.origin)
            kept = None if known is None else known.by_scope.get(held.scope)
            mine = kept is not None and kept.payment_hash == held.payment_hash
            base = kept if mine and kept is not None else held
            noted = replace(base, taken=base.taken or taken, told=base.told or told)
            if mine and known is not None:
                known.by_scope = {**known.by_scope, held.scope: noted}
        return noted

    def drop(self, held: HeldToken) -> None:
        """Forget ``held``: it is no longer live."""
        known = self._origins.get(held.origin)
        with _lock:
            if known is not None and held.scope in known.by_scope and known.by_scope[held.scope].payment_hash == held.payment_hash:
                known.by_scope = {s: t for s, t in known.by_scope.items() if s != held.scope}

    def _load(self, origin: str) -> _Origin:
        known = _Origin()
        try:
            ledger = self._ledger()
            known.forgotten = ledger.forgotten
            if ledger.exists():
                rows = ledger.live(origin)
                tokens = [HeldToken.of(row) for row in rows]
                known.by_scope = {held.scope: held for held in tokens if held is not None}
                known.learned = {row.path: row.scope for row in rows} | ledger.learned(origin)
        except Exception as error:  # noqa: BLE001
            # Free traffic doesn't need the ledger. A 402 will, and says what is wrong with it.
            log.debug("tokens for %s can't be looked up: %s", origin, error)
        with _lock:
            known = self._origins.setdefault(origin, known)  # another thread may have looked too, and learned more since
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return known
