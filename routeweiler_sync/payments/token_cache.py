"""Which token a request carries before any 402 asks for one: a session's memory of the ledger's live tokens, by origin.

The ledger is read once for each origin. After that, a request costs a look into a dict. Of an origin with many tokens or known
paths, that first look reads only a few, and the ledger is then asked for each path: a process that makes a call or two mustn't read
all that was ever bought there. After `MAX_PATHS_ASKED` paths, all is read, since a dict is quicker than a database.

Tokens that other processes buy later aren't in this memory: `checkout` finds them in the ledger when a request without a token is
answered with 402, before anything is paid. So a ledger that can't be read holds up no free page: it is waited for only for a
moment, then left alone for a while. What a server's answer means for a token is left to `paywall`.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from .._core.deadline import Deadline, patience
from .._core.forks import in_child
from .._core.log import log
from .._core.urls import origin_at, path_of
from . import single_use
from .first_use import in_first_use
from .token import Token

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow

_T = TypeVar("_T")
#: What reads something about an origin from a ledger into an entry.
_Reading = Callable[..., None]

#: The most origins that a session remembers. Beyond that, the oldest entry is dropped, and read from the ledger again when needed.
MAX_ORIGINS = 1_000
#: The most tokens that are remembered as not serving a path. Beyond that, the memory of them starts anew.
MAX_USELESS_TOKENS = 64
#: At an origin where so many tokens were offered for further paths, and none has served there, no more are: it sells by path.
MAX_VAIN_TRIALS = 2
#: After a path has answered a token with a 5xx, and was asked without it, it isn't asked so again for this long.
ERRORS_APART_S = 60.0
#: An error that met a token which was bought because of it counts as the application's own for this long. Then a token may be
#: doubted for it once more: the server may refuse tokens in the same way.
OWN_ERRORS_S = 3_600.0
#: The tokens of an origin are read from the ledger again, because of what another process may have bought, at most this often.
REFRESHED_APART_S = 10.0

#: The most tokens, and the most known paths, that the first look at an origin reads. If there are more, it hasn't read all.
FEW = 8
#: Of an origin that wasn't wholly read, the ledger is asked for so many paths. Then all is read.
MAX_PATHS_ASKED = 8
#: The most of the newest tokens of an origin that are read to be offered for a path that sells none: more than are ever remembered
#: as useless there.
MAX_OFFERED = MAX_USELESS_TOKENS + 8

#: The most scopes, and the most paths, that are remembered for an origin. Beyond that, the oldest are dropped: `checkout` finds
#: their tokens in the ledger when the server asks for one.
MAX_SCOPES = MAX_PATHS = 2_000
#: How long the tokens of an origin are waited for, if the ledger doesn't answer.
LOOKUP_WAIT_S = 1.0
#: A ledger that couldn't be read isn't asked for tokens again for this long.
LEAVE_ALONE_S = 10.0
#: The most ledgers that are left alone at a time.
MAX_SILENT = 100

#: Guards the caches of all sessions. Never kept over a wait. Reentrant, so that a signal handler or finalizer in the middle of it
#: can't wait for its own thread. At worst such a handler's note is lost, and the ledger is asked.
_lock = threading.RLock()
#: By URL of a ledger that couldn't be read: until when it is left alone.
_silent: dict[str, Deadline] = {}


@in_child
def _start_over_after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _silent.clear()


class _Entry:
    """What the cache holds of one origin."""

    def __init__(self) -> None:
        #: The live tokens, by scope.
        self.by_scope: dict[str, Token] = {}
        #: For each path that is known to accept tokens of a scope: that scope.
        self.learned: dict[str, str] = {}
        #: For each path: the payment hashes of tokens that were offered there though nothing said that it accepts them, in vain.
        self.useless: dict[str, frozenset[str]] = {}
        #: How many tokens were offered in vain for a path that they weren't bought for, and whether one has served there. None: the
        #: ledger has to be asked.
        self.vain_trials = 0
        self.trial_served: bool | None = None
        #: How many tokens in a row have served once and were then refused. See `single_use`.
        self.used_up_in_a_row = 0
        #: For each path whose errors were taken for refusals: until when the next one isn't.
        self.errors_until: dict[str, Deadline] = {}
        #: For each status that met a token which was bought because of it: until when it counts as the application's own.
        self.own_errors: dict[int, Deadline] = {}
        #: Until when the ledger isn't read again for other processes' tokens.
        self.refreshed: Deadline | None = None
        #: The payment hashes of tokens that were forgotten in this process by `Ledger.forget`.
        self.forgotten: Container[str] = ()
        #: Whether the ledger was read. If it couldn't be, it is asked again later.
        self.is_read = False
        #: Whether all the origin's tokens were read, and all its known paths.
        self.has_all_tokens = self.has_all_paths = False
        #: The paths that the ledger was asked about one by one, or need not be.
        self.asked: frozenset[str] = frozenset()
        #: Of an entry that was just read: whether `used_up_in_a_row` was read; and whether paths that are known may have changed.
        self.has_facts = self.is_anew = False

    def add(self, rows: Iterable[PaymentRow]) -> None:
        """Add the tokens of ``rows``."""
        tokens = [Token.of(row) for row in rows]
        self.by_scope |= {token.scope: token for token in tokens if token is not None}

    def add_paths(self, rows: Iterable[PaymentRow], learned: Mapping[str, str]) -> None:
        """Add all paths of the origin: those of ``rows``, which are all its live ones, and the ``learned`` ones."""
        by_age = sorted(rows, key=lambda row: row.created_at)
        self.learned = {row.path: row.scope for row in by_age} | dict(learned)
        self.trial_served = _serves_further_paths(learned)
        self.has_all_paths = True

    def take(self, read: _Entry) -> None:
        """Take over what was ``read`` from the ledger, unless it is known better here."""
        asked = frozenset[str]() if read.is_anew else self.asked
        self.by_scope = {**read.by_scope, **self.by_scope}
        self.learned = {**{path: scope for path, scope in read.learned.items() if path not in asked}, **self.learned}
        self.own_errors = {**read.own_errors, **self.own_errors}
        if read.has_facts:
            self.used_up_in_a_row = read.used_up_in_a_row
        if read.trial_served is not None:
            self.trial_served = self.trial_served or read.trial_served
        self.has_all_tokens = read.has_all_tokens or (self.has_all_tokens and not read.is_anew)
        self.has_all_paths = read.has_all_paths or (self.has_all_paths and not read.is_anew)
        self.asked = asked | read.asked
        self.forgotten = read.forgotten

    @property
    def may_have_token(self) -> bool:
        """Whether there is a live token, or may be."""
        return bool(self.by_scope) or not self.has_all_tokens

    def first_two(self) -> list[Token]:
        """Return two of the live tokens that aren't withheld, or all if there are fewer."""
        return list(islice((token for token in self.by_scope.values() if not self.withholds(token)), 2))

    def withholds(self, token: Token) -> bool:
        """Return whether ``token`` is kept back: the user has forgotten it, or its buyer is about to use it first."""
        return token.payment_hash in self.forgotten or in_first_use(token.payment_hash)

    def is_worth_sending(self, token: Token, path: str) -> bool:
        """Return whether ``token``, of which nothing says that ``path`` accepts it, may open it."""
        return not (self.withholds(token) or self.is_used_up(token) or token.payment_hash in self.useless.get(path, ()))

    def is_used_up(self, token: Token) -> bool:
        """Return whether ``token`` has served, at an origin whose tokens serve once."""
        return token.accepted and not token.accepted_again and single_use.is_single_use(self.used_up_in_a_row)


class TokenCache:
    """The tokens that a session knows of. Thread-safe. It only reads its ledger, and only if the ledger exists."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._origins: OrderedDict[str, _Entry] = OrderedDict()

    def token_for_url(self, url: str) -> tuple[Token, bool] | None:
        """Return `token_for_path` for the origin and path of ``url``. None too if ``url`` isn't an http URL.

        Quick if the origin has no token.
        """
        try:
            origin = origin_at(url)
            return self.token_for_path(origin, path_of(url)) if self._entry(origin).may_have_token else None
        except ValueError:
            return None

    def token_for_path(self, origin: str, path: str) -> tuple[Token, bool] | None:
        """Return the token to send with a request for ``path``, and whether it is a guess; None if there is none. Never raises.

        It is the token of the scope that was learned for this very path. Else it is the origin's only live token, as a guess,
        unless that was offered for the path before, in vain.
        """
        entry = self._entry(origin)
        if not entry.may_have_token:
            return None
        if not entry.has_all_paths and path not in entry.learned and path not in entry.asked:
            entry = self._ask_for(origin, path)
        learned = entry.learned.get(path)
        if learned is not None:
            token = entry.by_scope.get(learned)
            return None if token is None or entry.withholds(token) or entry.is_used_up(token) else (token, False)
        live = entry.first_two()
        if len(live) < 2 and not entry.has_all_tokens:
            live = self._load(origin, _read_all).first_two()
        return (live[0], True) if len(live) == 1 and entry.is_worth_sending(live[0], path) else None

    def others(self, origin: str, path: str) -> list[Token]:
        """Return the live tokens of ``origin`` that may open ``path``, the newest first. Never raises.

        The ledger is read again if it wasn't for a while: another process may have bought one.
        """
        entry = self._entry(origin)
        if entry.refreshed is None or entry.refreshed.passed:
            entry = self._load(origin, _read_newest)
            entry.refreshed = Deadline(REFRESHED_APART_S)
        tokens = [token for token in entry.by_scope.values() if entry.is_worth_sending(token, path)]
        return sorted(tokens, key=lambda token: token.bought_at_s, reverse=True)

    def has_others(self, url: str) -> bool:
        """Return whether `others` finds a token for ``url``. False too if that isn't an http URL."""
        try:
            return bool(self.others(origin_at(url), path_of(url)))
        except ValueError:
            return False

    def put(self, token: Token, path: str | None = None) -> None:
        """Remember ``token``. With ``path``, remember also that the path accepts tokens of its scope."""
        entry = self._entry(token.origin)
        with _lock:
            entry.by_scope = _bounded({**entry.by_scope, token.scope: token}, MAX_SCOPES)
            if path is not None and entry.learned.get(path) != token.scope:
                entry.learned = _bounded({**entry.learned, path: token.scope}, MAX_PATHS)

    def is_useless(self, token: Token | PaymentRow, path: str) -> bool:
        """Return whether ``token`` was offered for ``path`` in vain, by `note_useless`."""
        entry = self._origins.get(token.origin)
        return entry is not None and token.payment_hash in entry.useless.get(path, ())

    def note_useless(self, token: Token, path: str) -> None:
        """Remember that ``token``, of which nothing said that ``path`` accepts it, was offered there in vain."""
        entry = self._entry(token.origin)
        with _lock:
            known = entry.useless.get(path, frozenset())
            known = frozenset() if len(known) >= MAX_USELESS_TOKENS else known
            entry.useless = _bounded({**entry.useless, path: known | {token.payment_hash}}, MAX_PATHS)

    def note_vain_trials(self, origin: str, count: int) -> None:
        """Remember that a token had to be bought for a path of ``origin`` after ``count`` others were offered there."""
        self._entry(origin).vain_trials += count

    def has_served_others(self, origin: str) -> bool:
        """Return whether a token of ``origin`` has opened a path that it wasn't bought for."""
        entry = self._entry(origin)
        if entry.trial_served is None:
            entry = self._load(origin, _read_trial_served)
        return bool(entry.trial_served)

    def note_trial_served(self, origin: str) -> None:
        """Remember that a token of ``origin`` has opened a path that it wasn't bought for."""
        self._entry(origin).trial_served = True

    def sells_by_path(self, origin: str) -> bool:
        """Return whether the tokens of ``origin`` open only the path that they were bought for, as far as is known."""
        return self._entry(origin).vain_trials >= MAX_VAIN_TRIALS and not self.has_served_others(origin)

    def used_up_in_a_row(self, origin: str) -> int:
        """Return how many tokens of ``origin`` in a row have served once and were then refused."""
        return self._entry(origin).used_up_in_a_row

    def note_used_up(self, origin: str) -> None:
        """Remember one more such token."""
        self._entry(origin).used_up_in_a_row += 1

    def takes_error_for_refusal(self, origin: str, path: str, status: int) -> bool:
        """Return whether an error of HTTP status ``status`` for ``path`` may be about the token."""
        entry = self._entry(origin)
        until = entry.errors_until.get(path)
        is_own = self.is_own_error(origin, status) and entry.used_up_in_a_row == 0
        return not is_own and (status < 500 or until is None or until.passed)

    def note_error_asked_about(self, origin: str, path: str) -> None:
        """Remember that ``path`` was asked without a token, because of a 5xx."""
        entry = self._entry(origin)
        with _lock:
            entry.errors_until = _bounded({**entry.errors_until, path: Deadline(ERRORS_APART_S)}, MAX_PATHS)

    def is_own_error(self, origin: str, status: int) -> bool:
        """Return whether an error of HTTP status ``status`` is the application's own at ``origin``, as far as is known."""
        until = self._entry(origin).own_errors.get(status)
        return until is not None and not until.passed

    def note_own_error(self, origin: str, status: int, *, is_own: bool) -> None:
        """Remember what a token that was bought because of an error of ``status`` has shown.

        It met the same (``is_own``), so that wasn't about tokens, and isn't taken for a refusal for `OWN_ERRORS_S`. Or it opened
        the page.
        """
        entry = self._entry(origin)
        with _lock:
            others = {each: until for each, until in entry.own_errors.items() if each != status}
            entry.own_errors = {**others, status: Deadline(OWN_ERRORS_S)} if is_own else others

    def unlearn(self, origin: str, path: str) -> None:
        """Forget which scope ``path`` needs."""
        entry = self._entry(origin)
        with _lock:
            entry.learned = {each: scope for each, scope in entry.learned.items() if each != path}
            entry.asked |= {path}  # the ledger's answer would be another for a moment yet

    def note_served(self, token: Token) -> None:
        """Remember that ``token`` has opened a page. A token that serves twice shows that the origin's tokens do."""
        entry = self._entry(token.origin)
        if token.accepted:
            entry.used_up_in_a_row = 0

    def knows_path(self, token: Token, path: str) -> bool:
        """Return whether ``path`` is known to accept tokens of the scope of ``token``."""
        entry = self._origins.get(token.origin)
        return entry is not None and entry.learned.get(path) == token.scope

    def note(self, token: Token, *, accepted: bool = False, reported: bool = False) -> Token:
        """Note that the server has accepted ``token``, or that its payment is reported. Return the token with the notes on it.

        A token that isn't in the cache (any more) isn't put into it.
        """
        return self._noted(token, accepted=accepted, reported=reported)[1]

    def note_again(self, token: Token) -> bool:
        """Note that the server has accepted ``token`` again. Return whether that is news: False to all threads but the first."""
        before, _ = self._noted(token, again=True)
        return not before.accepted_again

    def _noted(self, token: Token, *, accepted: bool = False, again: bool = False, reported: bool = False) -> tuple[Token, Token]:
        """Add the notes that are true to ``token``. Return it as the cache had it before, and as it is now."""
        with _lock:
            entry = self._origins.get(token.origin)
            cached = None if entry is None else entry.by_scope.get(token.scope)
            is_cached = cached is not None and cached.payment_hash == token.payment_hash
            before = cached if is_cached and cached is not None else token
            noted = replace(
                before,
                accepted=before.accepted or accepted,
                accepted_again=before.accepted_again or again,
                reported=before.reported or reported,
            )
            if is_cached and entry is not None:
                entry.by_scope = {**entry.by_scope, token.scope: noted}
        return before, noted

    def drop(self, token: Token) -> None:
        """Remove ``token`` from the cache, since it is no longer live. Another token of its scope stays."""
        entry = self._origins.get(token.origin)
        with _lock:
            if (
                entry is not None
                and token.scope in entry.by_scope
                and entry.by_scope[token.scope].payment_hash == token.payment_hash
            ):
                entry.by_scope = {s: t for s, t in entry.by_scope.items() if s != token.scope}

    def _entry(self, origin: str) -> _Entry:
        """Return what is known of ``origin``, from the ledger if that wasn't read yet. Raises nothing."""
        entry = self._origins.get(origin)
        return entry if entry is not None and entry.is_read else self._load(origin, _read_first)

    def _ask_for(self, origin: str, path: str) -> _Entry:
        """Read from the ledger what ``path`` needs, or, after `MAX_PATHS_ASKED` paths, all of ``origin``. Raises nothing."""
        if len(self._entry(origin).asked) >= MAX_PATHS_ASKED:
            return self._load(origin, _read_all)
        return self._load(origin, functools.partial(_read_path, path=path))

    def _load(self, origin: str, read_into: _Reading) -> _Entry:
        """Read from the ledger about ``origin``, by ``read_into``, and return its entry, which knows it too. Raises nothing.

        What the cache knew already stays as it is. If the ledger can't be read, it is left alone for `LEAVE_ALONE_S`.
        """
        read = self._read(origin, read_into)
        with _lock:
            entry = self._origins.setdefault(origin, _Entry())  # another thread may have loaded it meanwhile, and noted more
            if read is not None and not (read_into is _read_first and entry.is_read):
                entry.take(read)
                entry.is_read = entry.is_read or read_into is _read_first
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return entry

    def _read(self, origin: str, read_into: _Reading) -> _Entry | None:
        """Return what ``read_into`` reads from the ledger; None if it can't be read, or couldn't a moment ago."""
        entry, url = _Entry(), ""
        try:
            ledger = self._ledger()
            url = ledger.url
            left_alone = _silent.get(url)
            if left_alone is not None and not left_alone.passed:
                return None
            entry.forgotten = ledger.forgotten
            with patience(LOOKUP_WAIT_S):
                if ledger.exists():
                    read_into(ledger, origin, entry)
                else:
                    entry.has_all_tokens = entry.has_all_paths = True
        except Exception as error:  # noqa: BLE001
            # Free traffic doesn't need the ledger. When a 402 comes, it is read again, and its error is raised then.
            log.debug("tokens for %s can't be looked up: %s", origin, error)
            with _lock:
                if len(_silent) >= MAX_SILENT:
                    _silent.clear()
                _silent[url] = Deadline(LEAVE_ALONE_S)
            return None
        with _lock:
            _silent.pop(url, None)
        return entry


# -- what is read from the ledger ------------------------------------------------------------------------------------------


def _read_first(ledger: Ledger, origin: str, entry: _Entry) -> None:
    """Read all about ``origin``, or what there is of it beside its tokens and paths, if those are many."""
    rows, learned = ledger.live(origin, limit=FEW + 1), ledger.learned(origin, limit=FEW + 1)
    entry.add(rows)
    entry.has_all_tokens = len(rows) <= FEW
    if entry.has_all_tokens and len(learned) <= FEW:
        entry.add_paths(rows, learned)
    _read_facts(ledger, origin, entry)


def _read_path(ledger: Ledger, origin: str, entry: _Entry, *, path: str) -> None:
    """Read which token ``path`` needs: that of the scope that was learned for it, else the newest that was bought for it."""
    scope = ledger.learned_scope(origin, path)
    row = ledger.live_of_path(origin, path) if scope is None else next(iter(ledger.live(origin, scope)), None)
    entry.add([] if row is None else [row])
    scope = scope if row is None else row.scope
    entry.learned = {} if scope is None else {path: scope}
    entry.asked = frozenset({path})


def _read_all(ledger: Ledger, origin: str, entry: _Entry) -> None:
    """Read all tokens and paths of ``origin``."""
    rows = ledger.live(origin)
    entry.add(rows)
    entry.has_all_tokens = True
    entry.add_paths(rows, ledger.learned(origin))


def _read_newest(ledger: Ledger, origin: str, entry: _Entry) -> None:
    """Read what another process may have noted since: the newest tokens that serve, and some that never have."""
    rows = ledger.live(origin, limit=MAX_OFFERED)
    entry.has_all_tokens = len(rows) < MAX_OFFERED
    entry.add(rows if entry.has_all_tokens else [*rows, *ledger.accepted(origin, MAX_OFFERED)])
    entry.is_anew = True
    _read_facts(ledger, origin, entry)


def _read_trial_served(ledger: Ledger, origin: str, entry: _Entry) -> None:
    """Read whether a token has opened a path that it wasn't bought for."""
    entry.trial_served = _serves_further_paths(ledger.learned(origin))


def _read_facts(ledger: Ledger, origin: str, entry: _Entry) -> None:
    """Read what the answers of ``origin`` have shown."""
    noted = ledger.own_errors(origin).items()
    entry.own_errors = {status: Deadline(OWN_ERRORS_S - ago_s) for status, ago_s in noted if ago_s < OWN_ERRORS_S}
    entry.used_up_in_a_row = ledger.used_up_in_a_row(origin)
    entry.has_facts = True


def _serves_further_paths(learned: Mapping[str, str]) -> bool:
    """Return whether a scope is a path, that of a token which doesn't say what it opens, and was learned for another path."""
    return any(scope.startswith("/") and scope != path for path, scope in learned.items())


def _bounded(entries: dict[str, _T], most: int) -> dict[str, _T]:
    """Return ``entries`` without the oldest, if there are more than ``most``."""
    while len(entries) > most:
        del entries[next(iter(entries))]
    return entries
