"""What the answers of servers have shown: what a path needs, how often tokens serve, which errors mean what.

It is kept so that other sessions and processes know it too. Nothing here moves money: most writes aren't forced to disk, and what
is lost by a power cut is learned anew. What follows from it is left to `paywall` and `payments`.
"""

from __future__ import annotations

from collections.abc import Callable

from .store import Store, Transaction

#: Failure code of a token that the server has refused: a retired one, or one that it has never accepted, and has refused for as
#: long as a settlement may lag.
REFUSED = "refused"
#: Failure text of a charge that the server has refused when it was first presented, so that no answer can have used it up.
REFUSED_AT_ONCE = "refused by the server when it was first presented"
#: The most paths remembered for one origin.
MAX_LEARNED_PATHS = 1_000
#: Failure code of a live token that the server has never accepted: it got an error from the server in place of the page. (If the
#: server has refused it in so many words, for as long as a settlement may lag, the code is `REFUSED`.)
UNDELIVERED = "undelivered"
#: Failure text of a retired token that was counted by `Ledger.note_used_up`.
USED_UP = "refused by the server after it had served once"


class ServerFacts:
    """The part of a `Ledger` that this module's docstring is about."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    def note_undelivered(self, payment_hash: str, *, refused: bool, why: str | None = None) -> None:
        """Record that a paid token, which the server has never accepted, got an error or a refusal (``refused``) for the page.

        ``why`` is the text that is kept with it. Changes nothing for a token that was accepted, or isn't live.
        """
        code, text = (REFUSED, "refused by the server") if refused else (UNDELIVERED, "answered with an error by the server")
        text = why or text
        self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET failure_code = ?, failure_text = ? WHERE payment_hash = ? AND state = 'settled' AND taken = 0 "
                "AND (failure_code IS NULL OR failure_code = 'undelivered')",
                (code, text, payment_hash),
            )
        )

    def note_used_up(self, origin: str, payment_hash: str | None = None) -> None:
        """Record that a token of ``origin`` was bought in place of one that had served once, that of ``payment_hash``.

        That one was refused at once for the page that it had been bought for. It is counted once, however often it is refused. A
        token that serves twice starts the count anew. What follows from the count is left to `payments.single_use`.
        """

        def work(tx: Transaction) -> None:
            if payment_hash is not None and not tx.execute(
                "UPDATE payments SET failure_text = ? WHERE payment_hash = ? AND state = 'retired' "
                "AND COALESCE(failure_text, '') <> ? RETURNING payment_hash",
                (USED_UP, payment_hash, USED_UP),
            ):
                return
            tx.execute(
                "INSERT INTO origins (origin, used_up_in_a_row) VALUES (?, 1) "
                "ON CONFLICT (origin) DO UPDATE SET used_up_in_a_row = origins.used_up_in_a_row + 1",
                (origin,),
            )

        self._store.run(work, durable=False)

    def used_up_in_a_row(self, origin: str) -> int:
        """Return how often in a row `note_used_up` was called for ``origin``."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT used_up_in_a_row FROM origins WHERE origin = ?", (origin,))
        return int(rows[0]["used_up_in_a_row"]) if rows else 0

    def note_own_error(self, origin: str, status: int, *, is_own: bool) -> None:
        """Record whether an error of HTTP status ``status`` is the origin's own (``is_own``), or the way it refuses tokens.

        It is its own if a token that was bought because of it met it as well. It refuses tokens if that one opened the page.
        """
        if not is_own:
            self._store.run(
                lambda tx: tx.execute("DELETE FROM own_errors WHERE origin = ? AND status = ?", (origin, status)), durable=False
            )
            return
        self._store.run(
            lambda tx: tx.execute(
                "INSERT INTO own_errors (origin, status, noted_at_ms) VALUES (?, ?, ?) "
                "ON CONFLICT (origin, status) DO UPDATE SET noted_at_ms = excluded.noted_at_ms",
                (origin, status, int(self._clock() * 1000)),
            ),
            durable=False,
        )

    def own_errors(self, origin: str) -> dict[int, float]:
        """Return how many seconds ago each status of ``origin`` was last noted by `note_own_error`."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT status, noted_at_ms FROM own_errors WHERE origin = ?", (origin,))
        now_s = self._clock()
        return {int(row["status"]): max(0.0, now_s - row["noted_at_ms"] / 1000) for row in rows}

    def learn(self, origin: str, path: str, scope: str) -> None:
        """Remember that ``path`` of ``origin`` needs a token of ``scope``. Cheap: the write isn't forced to disk.

        An origin with `MAX_LEARNED_PATHS` paths starts over: all its earlier paths are dropped.
        """

        def work(tx: Transaction) -> None:
            known = tx.execute("SELECT count(*) AS paths FROM learned_paths WHERE origin = ?", (origin,))[0]["paths"]
            if known >= MAX_LEARNED_PATHS:
                tx.execute("DELETE FROM learned_paths WHERE origin = ?", (origin,))
            tx.execute(
                "INSERT INTO learned_paths (origin, path, scope) VALUES (?, ?, ?) "
                "ON CONFLICT (origin, path) DO UPDATE SET scope = excluded.scope",
                (origin, path, scope),
            )

        self._store.run(work, durable=False)

    def unlearn(self, origin: str, path: str) -> None:
        """Forget which scope ``path`` of ``origin`` needs. Cheap: the write isn't forced to disk."""
        self._store.run(
            lambda tx: tx.execute("DELETE FROM learned_paths WHERE origin = ? AND path = ?", (origin, path)), durable=False
        )

    def learned(self, origin: str, *, limit: int | None = None) -> dict[str, str]:
        """Return the scope for each path of ``origin`` that was remembered by `learn`, of ``limit`` paths at most."""
        bound = "" if limit is None else f" LIMIT {limit}"
        rows = self._store.ask(f"SELECT path, scope FROM learned_paths WHERE origin = ?{bound}", (origin,))  # noqa: S608 - a number
        return {row["path"]: row["scope"] for row in rows}

    def learned_scope(self, origin: str, path: str) -> str | None:
        """Return the scope that was remembered by `learn` for this very path, or None."""
        rows = self._store.ask("SELECT scope FROM learned_paths WHERE origin = ? AND path = ?", (origin, path))
        return rows[0]["scope"] if rows else None
