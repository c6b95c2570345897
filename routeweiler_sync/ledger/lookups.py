"""What a purchase looks up in the ledger: which payments there are for its scope, its page, its invoice and its origin.

Each question is one SELECT, written once. `Lookups.found` asks all that a purchase begins with by one statement: one look costs one
round trip to a database, and all answers are of one moment. What follows from them is left to `payments.checkout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .rows import first, payment_of
from .server_facts import REFUSED, REFUSED_AT_ONCE
from .store import Store
from .types import PaymentRow

#: The most live rows of an origin that `Lookups.live` returns: a session that meets an origin for the first time must not have to
#: read everything that was ever bought there.
MAX_LIVE = 1_000
#: The most rows that `Lookups.page_tokens` returns. A call offers fewer tokens than that.
MAX_PAGE_TOKENS = 16
#: The most charges of one request that `Lookups.owed` returns.
MAX_OWED = 256
#: So many tokens of an origin may be `UNDELIVERED`, with none ever accepted there, before nothing more is bought at the origin.
MAX_UNDELIVERED = 2

#: A SELECT of payments, and its parameters.
Question = tuple[str, tuple[object, ...]]
Rows = list[Mapping[str, Any]]

_LIVE = "SELECT * FROM payments WHERE origin = ? AND state IN ('open', 'failed', 'settled') AND single_use = 0 "
# A charge for one request that has opened nothing yet, as far as is known; and whether no call's claim to it holds.
_OWED = "SELECT * FROM payments WHERE origin = ? AND target = ? AND single_use = 1 AND state IN ('open', 'failed', 'settled') "
_UNCLAIMED = "(presenter IS NULL OR presented_until_ms <= ?)"


class Found:
    """What the ledger has for a request, at one moment: ``rows`` by the name of the question that they answer.

    A row is read when it is asked for, so that a damaged one is in the way of nothing that doesn't need it.

    Raises: LedgerError from any property if its row is damaged.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self._rows = rows

    @property
    def live(self) -> PaymentRow | None:
        """The row of the request's scope that has a live token or is unfinished."""
        return first(self._rows.get("live", []))

    @property
    def same_invoice(self) -> PaymentRow | None:
        """The payment of the very invoice that the server offers."""
        return first(self._rows.get("same_invoice", []))

    @property
    def standing(self) -> PaymentRow | None:
        """As `Lookups.standing`."""
        return first(self._rows.get("standing", []))

    @property
    def page_tokens(self) -> list[PaymentRow]:
        """As `Lookups.page_tokens`."""
        return [payment_of(row) for row in self._rows.get("page_tokens", ())]

    @property
    def owed(self) -> list[PaymentRow]:
        """As `Lookups.owed`."""
        rows = [*self._rows.get("unclaimed", ()), *self._rows.get("claimed", ())]
        return [payment_of(row) for row in rows[:MAX_OWED]]

    @property
    def undelivered(self) -> PaymentRow | None:
        """As `Lookups.undelivered`."""
        rows = self._rows.get("undelivered", ())
        if not rows or (rows[0]["failure_code"] != REFUSED and len(rows) < MAX_UNDELIVERED):
            return None
        return payment_of(rows[0])


class Lookups:
    """The part of a `Ledger` that this module's docstring is about."""

    _store: Store
    _clock: Callable[[], float]

    def found(self, *, origin: str, scope: str, resource_digest: str, payment_hash: str) -> Found:
        """Return what the ledger has for a request of ``resource_digest`` that is to be paid by the invoice of ``payment_hash``."""
        page = (origin, resource_digest)
        asked = {"live": live_of(origin, scope), "same_invoice": of_invoice(payment_hash), "undelivered": undelivered_of(origin)}
        if resource_digest:
            asked |= {"standing": standing_of(*page), "page_tokens": tokens_of(*page)}
            asked |= {"unclaimed": self._owed_of(*page, claimed=False), "claimed": self._owed_of(*page, claimed=True)}
        return Found(ask(self._store.ask, asked))

    def payment(self, payment_hash: str) -> PaymentRow | None:
        """Return the row of ``payment_hash`` (64 hex digits), or None if the ledger has no such payment."""
        return first(self._store.ask(*of_invoice(payment_hash)))

    def live(self, origin: str, scope: str | None = None, *, limit: int | None = None) -> list[PaymentRow]:
        """Return the rows of ``origin`` that have a live token or are unfinished: at most one for each scope.

        With ``scope``, return the row of that scope alone. Without it, return at most ``limit`` rows (`MAX_LIVE`), those whose
        scopes come first in alphabetical order; ask for any other by its scope.
        """
        question = (f"{_LIVE}ORDER BY scope LIMIT ?", (origin, limit or MAX_LIVE)) if scope is None else live_of(origin, scope)
        return [payment_of(row) for row in self._store.ask(*question)]

    def live_of_path(self, origin: str, path: str) -> PaymentRow | None:
        """Return the newest payment for ``path`` that has a live token or is unfinished, or None."""
        question = f"{_LIVE}AND path = ? ORDER BY created_at_ms DESC LIMIT 1", (origin, path)
        return first(self._store.ask(*question))

    def standing(self, origin: str, resource_digest: str) -> PaymentRow | None:
        """Return the payment that stands for this very page, whatever its scope, or None.

        It is unfinished, or it is paid and the server has never accepted its token. Nothing else is bought for the page.
        ``resource_digest`` is `PaymentRow.resource_digest`; None is returned for an empty one.
        """
        return first(self._store.ask(*standing_of(origin, resource_digest)))

    def page_tokens(self, origin: str, resource_digest: str) -> list[PaymentRow]:
        """Return the payments for this very page whose tokens may open it again, newest first, at most `MAX_PAGE_TOKENS`.

        ``resource_digest`` is `PaymentRow.resource_digest`. Their tokens were accepted once. The server may have refused them since
        for another page, another method or another body of the same scope, so they are worth offering before another is bought.
        """
        return [payment_of(row) for row in self._store.ask(*tokens_of(origin, resource_digest))]

    def owed(self, origin: str, resource_digest: str) -> list[PaymentRow]:
        """Return the charges for this very request that are unfinished, or paid and not delivered.

        Those that no call has claimed come first, so that many claimed ones hide none of them; of either kind, the oldest first.
        ``resource_digest`` is `PaymentRow.resource_digest`. At most `MAX_OWED`.
        """
        asked = {name: self._owed_of(origin, resource_digest, claimed=name == "claimed") for name in ("unclaimed", "claimed")}
        return Found(ask(self._store.ask, asked)).owed

    def undelivered(self, origin: str) -> PaymentRow | None:
        """Return a payment that the origin hasn't delivered anything for, if nothing more is to be bought there; else None.

        That is so while the origin has never accepted a token, and has refused one that was paid for, or answered `MAX_UNDELIVERED`
        of them with errors. A charge counts only if it was `REFUSED_AT_ONCE`. Later, it may have been used up by an answer that was
        lost, and nothing but its own request is held up.
        """
        return Found(ask(self._store.ask, {"undelivered": undelivered_of(origin)})).undelivered

    def newest_accepted(self, origin: str) -> PaymentRow | None:
        """Return the newest of the origin's live tokens that the server has accepted, or None."""
        return next(iter(self.accepted(origin, 1)), None)

    def accepted(self, origin: str, limit: int) -> list[PaymentRow]:
        """Return the origin's live tokens that the server has accepted: the newest ``limit``, newest first."""
        rows = self._store.ask(
            "SELECT * FROM payments WHERE origin = ? AND state = 'settled' AND preimage IS NOT NULL AND taken >= 1 "
            "AND single_use = 0 ORDER BY created_at_ms DESC, payment_hash DESC LIMIT ?",
            (origin, limit),
        )
        return [payment_of(row) for row in rows]

    def _owed_of(self, origin: str, resource_digest: str, *, claimed: bool) -> Question:
        """Ask for the charges of a request that calls have claimed, or for those that none has."""
        is_wanted = f"NOT {_UNCLAIMED}" if claimed else _UNCLAIMED
        return (
            f"{_OWED}AND {is_wanted} ORDER BY created_at_ms LIMIT {MAX_OWED}",
            (origin, resource_digest, int(self._clock() * 1000)),
        )


def of_invoice(payment_hash: str) -> Question:
    """Ask for the payment of an invoice."""
    return "SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)


def live_of(origin: str, scope: str) -> Question:
    """Ask for the row of a scope that has a live token or is unfinished: one at most."""
    return f"{_LIVE}AND scope = ?", (origin, scope)


def standing_of(origin: str, resource_digest: str) -> Question:
    """Ask for the row that stands for a page: one at most. See `Lookups.standing`. The condition is that of the index for it."""
    return (
        "SELECT * FROM payments WHERE origin = ? AND target = ? AND target <> '' AND single_use = 0 "
        "AND (state IN ('open', 'failed') OR (state = 'settled' AND taken = 0))",
        (origin, resource_digest),
    )


def tokens_of(origin: str, resource_digest: str) -> Question:
    """Ask for the rows that `Lookups.page_tokens` returns. The condition is that of the index for them."""
    return (
        "SELECT * FROM payments WHERE origin = ? AND target = ? AND preimage IS NOT NULL AND single_use = 0 "  # noqa: S608
        "AND state IN ('settled', 'retired') AND (taken >= 1 OR failure_code = 'abandoned') "
        f"AND COALESCE(failure_code, '') <> 'forgotten' ORDER BY created_at_ms DESC LIMIT {MAX_PAGE_TOKENS}",
        (origin, resource_digest),
    )


def newest_live_of(origin: str, resource_digest: str) -> Question:
    """Ask for the newest live token that was bought for a page. The condition is that of the index for it."""
    return (
        "SELECT * FROM payments WHERE origin = ? AND target = ? AND preimage IS NOT NULL AND single_use = 0 "
        "AND state = 'settled' ORDER BY created_at_ms DESC LIMIT 1",
        (origin, resource_digest),
    )


def free_charge_of(origin: str, resource_digest: str, now_ms: int) -> Question:
    """Ask for a charge that has to be presented, or forgotten, before another one is bought for the same request.

    No call has claimed it, or the server has refused it.
    """
    return (
        f"{_OWED}AND ({_UNCLAIMED} OR (state = 'settled' AND failure_code = 'refused')) ORDER BY created_at_ms LIMIT 1",
        (origin, resource_digest, now_ms),
    )


def undelivered_of(origin: str) -> Question:
    """Ask for the rows of which one may be the answer of `Lookups.undelivered`. The condition is that of the index for them."""
    return (
        "SELECT * FROM payments WHERE origin = ? AND state = 'settled' AND taken = 0 "  # noqa: S608
        f"AND failure_code IN ('refused', 'undelivered') AND (single_use = 0 OR failure_text = '{REFUSED_AT_ONCE}') "
        "AND NOT EXISTS (SELECT 1 FROM payments AS accepted WHERE accepted.origin = ? AND accepted.taken >= 1) "
        "AND NOT EXISTS (SELECT 1 FROM archived_sums WHERE archived_sums.origin = ? AND archived_sums.accepted > 0) "
        f"ORDER BY failure_code LIMIT {MAX_UNDELIVERED}",  # a refused one comes first, if there is one
        (origin, origin, origin),
    )


def ask(execute: Callable[[str, Sequence[object]], Rows], questions: Mapping[str, Question]) -> dict[str, Rows]:
    """Ask all ``questions`` by one statement, which ``execute`` runs. Return the rows of each question, by its name.

    The rows of a question are in the order that it asks for: no database puts the parts of a UNION ALL into another one, unless it
    runs them in parallel, and it does that for none that has a LIMIT.
    """
    statement = " UNION ALL ".join(
        f"SELECT '{name}' AS asked, {name}.* FROM ({select}) AS {name}"  # noqa: S608 - constants
        for name, (select, _) in questions.items()
    )
    answers: dict[str, Rows] = {name: [] for name in questions}
    for row in execute(statement, [each for _, parameters in questions.values() for each in parameters]):
        answer = dict(row)
        answers[answer.pop("asked")].append(answer)
    return answers


# The SQL above repeats the first. The second is in an index of a schema: other words need a new schema.
assert (REFUSED, REFUSED_AT_ONCE) == ("refused", "refused by the server when it was first presented")
