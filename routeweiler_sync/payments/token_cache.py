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
from .._core.urls import origin_at, path_of
from .first_use import in_first_use
from .token import Token

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger


log = logging.getLogger("routeweiler_sync")

#: Most origins that a session remembers; the one known for longest is forgotten (and asked of the ledger again).
MAX_ORIGINS = 1_000
#: Most paths of an origin that are remembered for not liking a guess.
MAX_REJECTING_PATHS = 1_000

#: Guards the books of all sessions, for moments only.
_lock = threading.Lock()


@in_child
def _start_over_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


class _OriginTokens:
    def __init__(self) -> None:
        self.by_scope: dict[str, Token] = {}
        self.learned: dict[str, str] = {}
        self.rejects_guesses: set[str] = set()
        self.forgotten: Container[str] = ()

    def withholds(self, token: Token) -> bool:
        """Whether ``held`` is not to go along unasked: the user has forgotten it, or its buyer is about to use it first."""
        return token.payment_hash in self.forgotten or in_first_use(token.payment_hash)


class TokenCache:
    """A session's tokens. Thread-safe; of its ledger it only reads, and only when the ledger exists."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._origins: OrderedDict[str, _OriginTokens] = OrderedDict()

    def token_for_url(self, url: str) -> tuple[Token, bool] | None:
        """`unasked` for ``url``; None as well where that isn't one of http. Quick where the origin has no token."""
        try:
            origin = origin_at(url)
            tokens_here = self._origins.get(origin) or self._load(origin)
            return self.token_for_path(origin, path_of(url)) if tokens_here.by_scope else None
        except ValueError:
            return None

    def token_for_path(self, origin: str, path: str) -> tuple[Token, bool] | None:
        """The token to send along to ``path``, and whether it is a guess; None where there is none. Never raises.

        The one whose scope was learned for this very path; else, as a guess, the origin's only live token.
        """
        tokens_here = self._origins.get(origin) or self._load(origin)
        if not tokens_here.by_scope:
            return None
        learned = tokens_here.learned.get(path)
        if learned is not None:
            token = tokens_here.by_scope.get(learned)
            return None if token is None or tokens_here.withholds(token) else (token, False)
        if path in tokens_here.rejects_guesses:
            return None
        live = (token for token in tokens_here.by_scope.values() if not tokens_here.withholds(token))
        only = next(live, None)
        return (only, True) if only is not None and next(live, None) is None else None

    def put(self, token: Token, path: str | None = None) -> None:
        """Remember ``held``; with ``path``, that the path takes tokens of its scope."""
        tokens_here = self._origins.get(token.origin) or self._load(token.origin)
        with _lock:
            tokens_here.by_scope = {**tokens_here.by_scope, token.scope: token}
            if path is not None and tokens_here.learned.get(path) != token.scope:
                tokens_here.learned = {**tokens_here.learned, path: token.scope}

    def rejects_guesses(self, origin: str, path: str) -> None:
        """Note that ``path`` didn't like a guessed token: it gets none any more."""
        tokens_here = self._origins.get(origin)
        if tokens_here is not None:
            with _lock:
                tokens_here.rejects_guesses = (
                    {path} if len(tokens_here.rejects_guesses) >= MAX_REJECTING_PATHS else tokens_here.rejects_guesses | {path}
                )

    def knows_path(self, token: Token, path: str) -> bool:
        """Whether ``path`` is known to take tokens of ``held``'s scope."""
        tokens_here = self._origins.get(token.origin)
        return tokens_here is not None and tokens_here.learned.get(path) == token.scope

    def note(self, token: Token, *, accepted: bool = False, reported: bool = False) -> Token:
        """Note that the server has taken ``held``, or that its payment has been told. ``held`` as it is now."""
        with _lock:
            tokens_here = self._origins.get(token.origin)
            kept = None if tokens_here is None else tokens_here.by_scope.get(token.scope)
            mine = kept is not None and kept.payment_hash == token.payment_hash
            base = kept if mine and kept is not None else token
            noted = replace(base, accepted=base.accepted or accepted, reported=base.reported or reported)
            if mine and tokens_here is not None:
                tokens_here.by_scope = {**tokens_here.by_scope, token.scope: noted}
        return noted

    def drop(self, token: Token) -> None:
        """Forget ``held``: it is no longer live."""
        tokens_here = self._origins.get(token.origin)
        with _lock:
            if (
                tokens_here is not None
                and token.scope in tokens_here.by_scope
                and tokens_here.by_scope[token.scope].payment_hash == token.payment_hash
            ):
                tokens_here.by_scope = {s: t for s, t in tokens_here.by_scope.items() if s != token.scope}

    def _load(self, origin: str) -> _OriginTokens:
        tokens_here = _OriginTokens()
        try:
            ledger = self._ledger()
            tokens_here.forgotten = ledger.forgotten
            if ledger.exists():
                rows = ledger.live(origin)
                tokens = [Token.of(row) for row in rows]
                tokens_here.by_scope = {token.scope: token for token in tokens if token is not None}
                tokens_here.learned = {row.path: row.scope for row in rows} | ledger.learned(origin)
        except Exception as error:  # noqa: BLE001
            # Free traffic doesn't need the ledger. A 402 will, and says what is wrong with it.
            log.debug("tokens for %s can't be looked up: %s", origin, error)
        with _lock:
            tokens_here = self._origins.setdefault(origin, known)  # another thread may have looked too, and learned more since
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return tokens_here
