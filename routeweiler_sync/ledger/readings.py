"""What a ledger tells: its payments, envelopes and sums, for users and commands, and what `recover` asks about. Nothing is written.

What a purchase looks up is left to `lookups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta

from .._core.deadline import patience
from .._core.display import facts_table
from .._core.money import sats
from ..budgets.schema import BudgetEnvelope
from ..errors import LedgerError
from . import archive, envelopes, snapshot, spending, statement
from .archive import Archived
from .rows import payment_of
from .snapshot import LedgerSnapshot
from .spending import Spending
from .statement import StatementLine
from .store import Store
from .types import EnvelopeRow, PaymentRow, PaymentState

#: Rows read at a time by `Ledger.payments`.
PAGE_ROWS = 500
#: Later than any time in a ledger, in milliseconds since 1970, also than an impossible one in a damaged row.
MAX_MS = 2**63 - 1
#: For how many days after its beginning a payment that ended without a final word of its wallet (wallet_rules: OUTLIVED) is asked
#: about by ``recover()``. No payment is under way for longer: its parts end after 2 016 blocks at most.
OUTLIVED_DAYS = 15
#: For how long a notebook that shows a ledger waits for its database.
SHOWN_WAIT_S = 3.0


class Readings:
    """The part of a `Ledger` that this module's docstring is about."""

    _store: Store
    _clock: Callable[[], float]

    @property
    def url(self) -> str:
        """The ledger's URL without passwords. The same for every `Ledger` of one database on this machine."""
        return self._store.url

    def __repr__(self) -> str:
        return f"Ledger({self.url!r})"

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [("place", self.url)]
        try:
            with patience(SHOWN_WAIT_S):
                if self.exists():
                    facts += self._facts()
                else:
                    facts.append(("spent", "nothing yet: it is created by the first purchase"))
        except LedgerError as error:
            facts.append(("can't be read", error.brief))
        return facts_table("Ledger", facts)

    def _facts(self) -> list[tuple[str, object]]:
        """Return what a notebook shows of a ledger that exists."""
        spent, unfinished = self.spending(), len(self.unfinished())
        facts: list[tuple[str, object]] = [
            ("spent", sats(spent.total_msat)),
            ("fees in it", sats(spent.fees_msat)),
            ("payments", spent.payments),
            ("servers", len(spent.by_origin)),
            ("outcome not known yet", unfinished),
        ]
        return [*facts, *((f"budget {row.id}", f"{row!r}".partition(": ")[2][:-1]) for row in self.envelopes())]

    def exists(self) -> bool:
        """Return whether the ledger's database exists already. Creates nothing."""
        return self._store.exists()

    def is_archive(self) -> bool:
        """Return whether the file is an archive, which `archive` has made: it is only read. Creates and migrates nothing."""
        return self._store.is_archive()

    def schema_version(self) -> int:
        """Return the schema version of the ledger that is there, 0 if there is none. Creates and migrates nothing."""
        return self._store.version()

    def payments(
        self,
        *,
        state: PaymentState | str | None = None,
        origin: str | None = None,
        since: datetime | date | timedelta | None = None,
        until: datetime | date | timedelta | None = None,
        newest_first: bool = False,
    ) -> Iterator[PaymentRow]:
        """Yield all payments, oldest first, or only those in one ``state`` or of one ``origin`` (``scheme://host[:port]``).

        ``since``: only those that were begun then or later; ``until``: only those that were begun before. Both in a form that
        `spending` takes. Rows are read in pages of `PAGE_ROWS`, so that a long ledger never fills the memory. A payment that is
        opened or changes its state during the iteration may or may not be included. A ledger that doesn't exist yet has none, and
        isn't created.
        """
        wanted = None if state is None else PaymentState(state).value
        span = spending.span_of(since, until, int(self._clock() * 1000))
        since_ms = -1 if span.since_ms is None else span.since_ms
        until_ms = MAX_MS if span.until_ms is None else span.until_ms
        if not self.exists():
            return
        order, after = ("DESC", (until_ms, "")) if newest_first else ("ASC", (since_ms, ""))
        beyond = "<" if newest_first else ">"
        while True:
            with self._store.read() as tx:
                rows = tx.execute(
                    f"SELECT * FROM payments WHERE (created_at_ms, payment_hash) {beyond} (?, ?) "  # noqa: S608  (constants)
                    "AND created_at_ms >= ? AND created_at_ms < ? AND state = COALESCE(?, state) AND origin = COALESCE(?, origin) "
                    f"ORDER BY created_at_ms {order}, payment_hash {order} LIMIT ?",
                    (*after, since_ms, until_ms, wanted, origin, PAGE_ROWS),
                )
            for row in rows:
                yield payment_of(row)
            if len(rows) < PAGE_ROWS:
                return
            after = (rows[-1]["created_at_ms"], rows[-1]["payment_hash"])

    def payments_named(self, beginning: str, limit: int) -> list[PaymentRow]:
        """Return the payments whose hash begins with ``beginning``, hex digits in lower case: the first ``limit`` by hash."""
        with self._store.read() as tx:
            rows = tx.execute(
                "SELECT * FROM payments WHERE payment_hash >= ? AND payment_hash < ? ORDER BY payment_hash LIMIT ?",
                (beginning, beginning + "g", limit),  # g sorts after every hex digit
            )
        return [payment_of(row) for row in rows]

    def envelopes(self) -> Iterator[EnvelopeRow]:
        """Return all envelopes, sorted by id. A ledger that doesn't exist yet has none, and isn't created."""
        if not self.exists():
            return iter(())
        with self._store.read() as tx:
            return iter(envelopes.all_rows(tx, self._clock()))

    def envelope(self, id: str) -> EnvelopeRow:
        """Return the envelope ``id``.

        Raises: EnvelopeNotFoundError if the ledger has no such envelope.
        """
        with self._store.read() as tx:
            return envelopes.one_row(tx, id, self._clock())

    def spending(
        self,
        *,
        since: datetime | date | timedelta | None = None,
        until: datetime | date | timedelta | None = None,
        origin: str | None = None,
    ) -> Spending:
        """Return what all programs that share this ledger have spent, by origin, routing fees included.

        ``since``: only payments that were settled at that time or later; ``until``: only those that were settled before. A
        `datetime` with a time zone is that moment; one without is in the local time of this machine. A `date` is the local midnight
        at which it begins. A `timedelta` is how long ago. (Times on the command line are UTC.)
        ``origin``: only payments to that server, named by ``scheme://host[:port]`` or any URL of it.

        The database does the sums, from an index. A ledger that doesn't exist yet has spent nothing, and isn't created. What was
        moved to an archive counts too, but only in all: a time before the last payment of it is refused.

        Raises: ValueError for a ``since``, ``until`` or ``origin`` that is none, or an ``until`` before ``since``; LedgerError.
        """
        span, of_origin = spending.span_of(since, until, int(self._clock() * 1000)), spending.origin_in(origin)
        if not self.exists():
            return Spending()
        with self._store.read() as tx:
            return spending.read(tx, span, of_origin)

    def spending_by_agent(
        self,
        *,
        since: datetime | date | timedelta | None = None,
        until: datetime | date | timedelta | None = None,
        envelope: str | None = None,
    ) -> dict[str | None, Spending]:
        """Return what each agent has spent, by ``agent_id``, the highest first. None stands for sessions without one.

        ``since`` and ``until`` as in `spending`. ``envelope``: only what counts in the envelope of this id, or in one that lies in
        it. A payment is its agent's whose session began it, also if another's call waited for it and uses the token.

        Raises: ValueError as `spending`; EnvelopeNotFoundError; LedgerError as `spending`.
        """
        span = spending.span_of(since, until, int(self._clock() * 1000))
        if not self.exists():
            return {}
        with self._store.read() as tx:
            if envelope is not None:
                envelopes.one_row(tx, envelope, self._clock())
            return spending.read_by_agent(tx, span, envelope)

    def in_force(self, envelope: BudgetEnvelope | str, *, session_started_s: float) -> EnvelopeRow:
        """Return what counts against ``envelope``, or the envelope of that id, as a purchase of a session would find it now.

        ``session_started_s`` is the time when the session was made, in unix seconds. A ledger that doesn't exist isn't created.

        Raises: EnvelopeNotFoundError for an id that the ledger doesn't have; BudgetError if the ledger's envelope of that id counts
        in another currency; LedgerError.
        """
        if not self.exists():
            return envelopes.unused(envelope)
        with self._store.read() as tx:
            return envelopes.in_force(tx, envelope, session_started_s, self._clock())

    def snapshot(self, archives: Sequence[Readings] = ()) -> LedgerSnapshot:
        """Return every amount in the ledger at one moment, for `routeweiler_sync.audit`. All in memory; without tokens.

        What was moved to ``archives`` is in it too. They are read first: what is moved meanwhile counts as moved elsewhere.
        """
        moved: dict[str, snapshot.BookedPayment] = {}
        for each in archives:
            for name, row in snapshot.read_payments(each._store).items():
                if row.settled_at_ms is not None or name not in moved:  # a copy of before it was paid may be in another archive
                    moved[name] = row
        with self._store.read(long=True) as tx:
            taken = snapshot.read(tx)
        return taken.with_archived(moved) if archives else taken

    def statement(self) -> Iterator[StatementLine]:
        """Yield all payments as plain lines without tokens, oldest first, for `routeweiler_sync.report`. Never all in memory."""
        return statement.read(self._store)

    def moved(self) -> Archived:
        """Return what was moved to archives so far, in all. A ledger that doesn't exist yet isn't created."""
        if not self.exists():
            return Archived()
        with self._store.read() as tx:
            return archive.moved(tx)

    def archived(self, beginning: str) -> int:
        """Return how many payments were moved to an archive whose hash begins with ``beginning``, hex digits in lower case."""
        with self._store.read() as tx:
            rows = tx.execute(
                "SELECT COUNT(*) AS payments FROM archived_payments WHERE hash_begin BETWEEN ? AND ?", archive.keys_from(beginning)
            )
        return int(rows[0]["payments"])

    def unfinished(self) -> list[PaymentRow]:
        """Return all payments whose outcome isn't known yet, oldest first."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM payments WHERE state IN ('open', 'failed') ORDER BY created_at_ms, payment_hash")
        return [payment_of(row) for row in rows]

    def abandoned(self) -> list[PaymentRow]:
        """Return the payments that the user ended by ``forget(…, abandon=True)``, oldest first.

        Payments of the last `OUTLIVED_DAYS` that ended without a final word of the wallet are among them. The wallet may pay one of
        them after all; that is a spend which has to be recorded.
        """
        outlived_after_ms = int((self._clock() - OUTLIVED_DAYS * 86_400) * 1000)
        with self._store.read() as tx:
            rows = [
                *tx.execute("SELECT * FROM payments WHERE state = 'dead' AND failure_code = 'abandoned'"),
                *tx.execute(
                    "SELECT * FROM payments WHERE state = 'dead' AND failure_code = 'outlived' AND created_at_ms >= ?",
                    (outlived_after_ms,),
                ),
            ]
        return sorted(map(payment_of, rows), key=lambda row: (row.created_at, row.payment_hash))

    def unreported(self) -> list[PaymentRow]:
        """Return the paid payments that no trace has reported, oldest first: their calls ended in a crash."""
        with self._store.read() as tx:
            rows = tx.execute(
                "SELECT * FROM payments WHERE told = 0 AND settled_at_ms IS NOT NULL ORDER BY created_at_ms, payment_hash"
            )
        return [payment_of(row) for row in rows]
