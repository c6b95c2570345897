"""The relays of one wallet: what is open to them in this process, and the questions that are asked over one after the other.

Knows which relay is tried when, which connections are idle and still work, and what the wallet must say before it is used. Nothing
here moves money, so all of it may be repeated over another relay. The order of a payment is left to `order`, one request over one
connection to `talk`, what an answer means to `replies`, and threads and the time limits of callers to `client`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from ..._core.deadline import monotonic_s
from ...errors import FundingError
from ..replies import WalletAnswer
from . import replies, rights
from .events import Keyring, WalletNotes
from .link import Link, LinkError
from .talk import NoAnswerError, RelayRefusedError, ask, wallet_notes

_Result = TypeVar("_Result")
#: Is passed each connection before it is used, and returns it. So the caller can break it off.
Use: TypeAlias = Callable[[Link], Link]

#: A wallet that has answered over a connection this short a time ago isn't asked again before an order, in seconds.
READY_S = 10.0
#: How long a wallet may take to say that it is there, in seconds. Its service is down if it doesn't.
HELLO_S_MAX = 20.0
#: How long one question about a payment may take, in seconds; more are asked while there is time.
QUESTION_S_MAX = 20.0
#: A connection that was idle for longer isn't used again, in seconds; relays drop them about then.
IDLE_S_MAX = 50.0
#: A connection that was idle for longer must answer a ping first, in seconds. So must one on which anything has come: its end, too.
PING_AFTER_S = 1.0
#: How many idle connections are kept.
IDLE_LINKS_MAX = 8
_METHODS_MAX = 64


class _StaleError(LinkError):
    """A connection that was idle has ended meanwhile. A new one may work."""


class UnreachableError(Exception):
    """The wallet answers over no relay."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__()
        self.reasons = reasons


class _Forked:
    """What a pool has open, for one process: idle connections, by relay, and the keys that nostr-sdk holds."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.idle: deque[Link] = deque()
        self.keyring: Keyring | None = None
        #: The relay over which the wallet has answered last.
        self.preferred: str | None = None
        #: Whether the wallet has said that it reads NIP-44. A relay that hides its info event can't talk it out of that.
        self.nip44 = False


class RelayPool:
    """The connections of one client to its wallet's relays. Safe to share between threads and forked processes.

    ``urls`` are the relays, ``secret`` and ``wallet_key`` the keys of the connection, 64 hex digits each. What asks is called in
    worker threads, with a deadline on the monotonic clock. A pickle drops the secret, and the connections.
    """

    def __init__(self, urls: tuple[str, ...], *, wallet_key: str, secret: str) -> None:
        self._urls = urls
        self._wallet_key = wallet_key
        self._secret: str | None = secret
        self._open: _Forked | None = None

    @property
    def has_secret(self) -> bool:
        """Whether the wallet can be asked at all: not once this pool has been unpickled."""
        return self._secret is not None

    # Asking: none of these methods can move money

    def look_up(self, payment_hash: bytes, deadline: float, use: Use) -> WalletAnswer:
        """Return what the wallet says of the payment with this hash (32 bytes). Raises: UnreachableError."""
        response = self.ask_any("lookup_invoice", {"payment_hash": payment_hash.hex()}, deadline, use)
        return replies.read_lookup(response, payment_hash)

    def ready_link(self, deadline: float, use: Use, *, asks: bool = False, without: set[str] | None = None) -> Link:
        """Return a connection over which the wallet has just answered. ``asks``: it is asked now, even if it has lately.

        ``without`` are relays that aren't tried.

        Raises: UnreachableError. FundingError if the wallet answers, and can't be used.
        """
        deadline = min(deadline, monotonic_s() + HELLO_S_MAX)

        def hello(link: Link, until: float) -> Link:
            heard_at = link.notes.get("heard_at")
            if asks or heard_at is None or monotonic_s() - heard_at > READY_S:
                self._hello(link, until)
            return link

        return self._over_relays(hello, deadline, use, without or set())

    def ask_any(self, method: str, params: dict[str, Any], deadline: float, use: Use) -> dict[str, Any]:
        """Ask the wallet a question, over one relay after the other, and return its answer. Raises: UnreachableError."""

        def question(link: Link, until: float) -> dict[str, Any]:
            response = self.ask(link, method, params, until)
            link.notes["heard_at"] = monotonic_s()
            self.put_back(link)
            return response

        return self._over_relays(question, deadline, use, set())

    def ask(self, link: Link, method: str, params: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Ask the wallet a question over ``link``, once, and return its answer.

        Raises: LinkError. RelayRefusedError. NoAnswerError.
        """
        wallet_notes(link, self.keyring(), deadline)
        lives_s = max(deadline - monotonic_s(), 1.0)
        request = self.keyring().request(method, params, nip44=self.speaks_nip44(link), lives_s=lives_s)
        return ask(link, self.keyring(), request, deadline)

    def speaks_nip44(self, link: Link) -> bool:
        """Return whether the wallet reads NIP-44, as far as it has said over ``link`` or before."""
        notes, state = link.notes.get("wallet"), self._state()
        if isinstance(notes, WalletNotes) and notes.found:
            state.nip44 = notes.nip44
        return state.nip44

    def keyring(self) -> Keyring:
        """Return the keys of the connection, of this process."""
        state = self._state()
        if state.keyring is None:
            assert self._secret is not None  # see has_secret
            state.keyring = Keyring(self._secret, self._wallet_key)
        return state.keyring

    # Connections

    def take(self, url: str, deadline: float) -> Link:
        """Return an idle connection to the relay that still works, or a new one. Raises: LinkError."""
        idle = self._state().idle
        for _ in range(len(idle)):
            try:
                link = idle.pop()
            except IndexError:
                break
            idle_s = monotonic_s() - link.heard_at
            if link.url != url:
                idle.appendleft(link)
            elif idle_s <= IDLE_S_MAX and ((idle_s <= PING_AFTER_S and not link.has_news()) or link.is_alive(deadline)):
                return link
            else:
                link.abandon()
        return Link(url, deadline)

    def put_back(self, link: Link) -> None:
        """Keep a connection that works for the next one who takes it."""
        idle, link.is_used = self._state().idle, True
        idle.append(link)
        while len(idle) > IDLE_LINKS_MAX:
            with suppress(IndexError):
                idle.popleft().close()

    def close(self) -> None:
        """Close the idle connections. May be called twice; a later call connects anew."""
        opened, self._open = self._open, None
        if opened is not None and opened.pid == os.getpid():
            while opened.idle:
                with suppress(IndexError):
                    opened.idle.popleft().close()

    # One relay after the other

    def _over_relays(self, do: Callable[[Link, float], _Result], deadline: float, use: Use, without: set[str]) -> _Result:
        """Do something that is harmless to repeat over one relay after the other, until it succeeds. The time is shared among them.

        Raises: UnreachableError. FundingError.
        """
        state, reasons = self._state(), list[str]()
        urls = [url for url in self._urls if url not in without]
        urls.sort(key=lambda url: url != state.preferred)
        for place, url in enumerate(urls):
            now = monotonic_s()
            until = now + (deadline - now) / (len(urls) - place)
            try:
                try:
                    result = self._over(use(self.take(url, until)), do, until)
                except _StaleError:
                    result = self._over(use(Link(url, until)), do, until)
            except (LinkError, RelayRefusedError, NoAnswerError) as error:
                reasons.append(error.reason)
                continue
            state.preferred = url
            return result
        raise UnreachableError(reasons)

    def _over(self, link: Link, do: Callable[[Link, float], _Result], deadline: float) -> _Result:
        """Do something over ``link``, and close it if that fails. Raises: _StaleError if it was idle, and has ended meanwhile."""
        try:
            return do(link, deadline)
        except LinkError as error:
            link.abandon()
            if link.is_used:
                raise _StaleError(error.reason) from None
            raise
        except BaseException:
            link.close()
            raise

    def _hello(self, link: Link, deadline: float) -> None:
        """Ask the wallet what it can do. Raises: as `ask`. FundingError if it can't be used."""
        notes = wallet_notes(link, self.keyring(), deadline)
        response = self.ask(link, "get_info", {}, deadline)
        error = replies.error_of(response)
        methods: frozenset[str] = notes.methods
        if error is None:
            link.notes["info"] = result = response["result"]
            told = result.get("methods")
            if isinstance(told, list):
                methods = frozenset(each for each in told[:_METHODS_MAX] if isinstance(each, str))
        elif error[0] == "UNAUTHORIZED" or error[0] not in replies.NOT_PERMITTED:
            raise FundingError(
                f"The wallet doesn't say what this connection may do ({replies.reason_of(error)}).",
                advice="Look in the wallet whether the connection still exists and hasn't expired, or make a new one.",
            )
        missing = [name for name in rights.NEEDED if name not in methods]
        if missing:
            what = " and ".join(missing)
            raise FundingError(
                f"The wallet doesn't permit {what} over this connection, which paying needs.",
                advice=f"Make a connection in the wallet that permits {' and '.join(rights.NEEDED)}.",
            )
        link.notes["methods"], link.notes["heard_at"] = methods, monotonic_s()

    def _state(self) -> _Forked:
        """What is open in this process. A forked child begins anew: the connections are its parent's."""
        state = self._open
        if state is None or state.pid != os.getpid():
            state = self._open = _Forked()
        return state

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_secret": None, "_open": None}
