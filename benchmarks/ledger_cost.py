"""Measure what a purchase costs after a million others, compared with an empty ledger, on both databases.

    python -m benchmarks.ledger_cost [--backend sqlite|postgresql] [--payments N] [--rounds N] [--check]

Two ledgers of one kind, one with past payments and one empty, take turns at the same purchase in one run (see
`benchmarks.measure` for the arithmetic): first at the ledger's part alone, method by method, then at whole purchases of a session
from a fake node over real sockets. The goal is for the ledger's whole part, and for the whole purchase.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Figure, Goal
from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync._core.money import Rate
from routeweiler_sync.ledger.envelopes import BUCKET_S, KEPT_BUCKETS, Draw, make
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.server_facts import MAX_LEARNED_PATHS
from routeweiler_sync.ledger.types import Change, Intent, PaymentState
from routeweiler_sync.testing import FakeLnd, Paywall

#: How the past payments are spread. Every ``BUSIEST``-th payment is for the measured origin, most of them for the same page.
ORIGINS, ENVELOPES, DAYS, BUSIEST = 200, 50, 400, 10
AMOUNT_MSAT, FEE_MSAT = 10_000, 1_000
#: The length of the texts in a row: that of a real invoice, and of a token with three caveats.
INVOICE_CHARS, TOKEN_CHARS = 300, 320
HOURLY, HOURLY_TARGET = "services=hourly:0", "0" * 32
BATCH_ROWS = 5_000
WARM_UP = 20
#: The rounds of whole purchases are this many times fewer, because each is ten times as slow.
SESSION_SHARE = 4
#: Past payments and rounds.
SIZES = {"full": (1_000_000, 400), "short": (100_000, 200), "tiny": (1_000, 8)}
NO_POSTGRES = "Not measured: PostgreSQL isn't installed here."
GOAL = Goal(of="ratio", most=1.2)
LIMITS = {"cap_minor_units": 10**11, "per_call_minor_units": 1_000, "per_hour_minor_units": 10**9, "per_day_minor_units": 10**10}
PAST = (
    "payment_hash, origin, scope, path, target, state, node_pubkey, network, bolt11, scheme, token, preimage, amount_msat, "
    "max_fee_msat, fee_msat, envelope_id, currency, rate_quality, reserved_micro, settled_micro, sends_ever, sends_unanswered, "
    "taken, told, failure_code, created_at_ms, settled_at_ms"
)


def envelope(number: int) -> BudgetEnvelope:
    """Return an envelope for ``number``: every limit is set, and none is near."""
    return BudgetEnvelope(f"envelope-{number % ENVELOPES}", **LIMITS)  # type: ignore[arg-type]


def past(payments: int, origin: str, now_s: float) -> Iterator[tuple[object, ...]]:
    """Yield the rows of past payments, with the columns of `PAST`. Of five rows, three are retired, one is dead, one is live.

    The retired ones were bought for the one page that each origin sells by the hour. Each live token is for a page of its own.
    """
    for n in range(payments):
        preimage = n.to_bytes(32, "big")
        state = ("retired", "retired", "settled", "retired", "dead")[n // ORIGINS % 5]
        paid, busiest = state != "dead", n % BUSIEST == 0
        made_ms = int((now_s - DAYS * 86_400 * (1 - n / payments)) * 1000)
        yield (
            hashlib.sha256(preimage).hexdigest(),
            origin if busiest else f"https://api-{n % ORIGINS}.example",
            f"services=page/{n}:0" if state == "settled" else HOURLY,
            f"/page/{n}" if state == "settled" else "/hourly",
            f"{n:032x}" if state == "settled" else HOURLY_TARGET,
            state,
            "02" * 33,
            "bitcoin-regtest",
            "l" * INVOICE_CHARS,
            "L402",
            "t" * TOKEN_CHARS,
            preimage.hex() if paid else None,
            AMOUNT_MSAT,
            FEE_MSAT,
            FEE_MSAT if paid else 0,
            f"envelope-{n % ENVELOPES}",
            "sat",
            "exact",
            0,
            (AMOUNT_MSAT + FEE_MSAT) * 1_000 if paid else 0,
            1,
            0,
            int(paid),
            int(paid),
            {"retired": "refused", "dead": "failed_for_good"}.get(state),
            made_ms,
            made_ms if paid else None,
        )


def fill(ledger: Ledger, payments: int, origin: str) -> None:
    """Write the past into ``ledger``: payments, learned paths, and envelopes with totals and as many buckets as are ever kept."""
    now_s = time.time()
    rows = past(payments, origin, now_s)
    columns = PAST.split(", ")
    insert = f"INSERT INTO payments ({PAST}) VALUES ({', '.join('?' * len(columns))})"
    each_micro = (AMOUNT_MSAT + FEE_MSAT) * 1_000
    while batch := list(islice(rows, BATCH_ROWS)):
        with ledger._store.transaction() as tx:
            _many(tx, insert, columns, batch)
    with ledger._store.transaction() as tx:
        for number in range(ENVELOPES):
            make(tx, envelope(number))
        tx.execute(
            "UPDATE envelopes SET granted_at_ms = ?, settled_micro = (SELECT CAST(COALESCE(SUM(settled_micro), 0) AS BIGINT) "
            "FROM payments WHERE envelope_id = envelopes.id)",
            (int((now_s - DAYS * 86_400) * 1000),),
        )
        last = int(now_s // BUCKET_S)
        spends = [(f"envelope-{n}", last - back, each_micro) for n in range(ENVELOPES) for back in range(KEPT_BUCKETS)]
        _many(tx, "INSERT INTO spends (envelope_id, bucket, micro) VALUES (?, ?, ?)", ["envelope_id", "bucket", "micro"], spends)
        origins = [origin, *(f"https://api-{n}.example" for n in range(1, ORIGINS // BUSIEST))]
        learned = [(each, f"/page/{n}", f"services=page/{n}:0") for each in origins for n in range(MAX_LEARNED_PATHS - 1)]
        _many(tx, "INSERT INTO learned_paths (origin, path, scope) VALUES (?, ?, ?)", ["origin", "path", "scope"], learned)


def _many(tx: Any, insert: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    connection = tx._connection
    if hasattr(connection, "executemany"):
        connection.executemany(insert, rows)
        return
    table = insert.split()[2]
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


# -- what is measured -----------------------------------------------------------------------------------------------------


def intent(n: int, origin: str) -> Intent:
    """Return the intent of one more purchase of the page that is sold by the hour."""
    return Intent(
        payment_hash=hashlib.sha256(_preimage(n)).hexdigest(),
        origin=origin,
        scope=HOURLY,
        path="/hourly",
        node_pubkey="02" * 33,
        network="bitcoin-regtest",
        bolt11="l" * INVOICE_CHARS,
        scheme="L402",
        token="t" * TOKEN_CHARS,
        amount_msat=AMOUNT_MSAT,
        fee_cap_msat=FEE_MSAT,
        resource_digest=HOURLY_TARGET,
    )


def _preimage(n: int) -> bytes:
    return (2**200 + n).to_bytes(32, "big")


def purchase(ledger: Ledger, n: int, origin: str) -> dict[str, float]:
    """Call everything that one purchase needs of the ledger, in order. Return the seconds of each call and their sum."""
    new, limits = intent(n, origin), envelope(n)
    draw = Draw(envelope=limits, rate=Rate(currency="sat"), session_started_s=0.0)
    settled = Change(state=PaymentState.SETTLED, answered=1, preimage=_preimage(n), fee_msat=FEE_MSAT)
    steps: dict[str, Callable[[], object]] = {
        "found(request)": lambda: ledger.found(
            origin=origin, scope=new.scope, resource_digest=new.resource_digest, payment_hash=new.payment_hash
        ),
        "open_payment": lambda: ledger.open_payment(new, draw),
        "change to settled": lambda: ledger.change(new.payment_hash, lambda row: settled),
        "learn": lambda: ledger.learn(origin, new.path, new.scope),
        "mark accepted": lambda: ledger.mark(new.payment_hash, accepted=True),
        "mark reported": lambda: ledger.mark(new.payment_hash, reported=True),
        "retire": lambda: ledger.retire(new.payment_hash),
    }
    took: dict[str, float] = {}
    for name, step in steps.items():
        began_s = time.perf_counter()
        step()
        took[name] = time.perf_counter() - began_s
    took["one purchase"] = sum(took.values())
    return took


def look(ledger: Ledger, origin: str) -> dict[str, float]:
    """Call what a session asks once for each origin, and what commands ask. Return the seconds of each call."""
    steps: dict[str, Callable[[], object]] = {
        "live(origin)": lambda: ledger.live(origin),
        "learned(origin)": lambda: ledger.learned(origin),
        "envelope(id)": lambda: ledger.envelope(envelope(0).id),
        "unfinished()": ledger.unfinished,
        "unreported()": ledger.unreported,
    }
    took = {}
    for name, step in steps.items():
        began_s = time.perf_counter()
        step()
        took[name] = time.perf_counter() - began_s
    return took


def in_turns(full: Callable[[int], dict[str, float]], empty: Callable[[int], dict[str, float]], rounds: int) -> list[Figure]:
    """Run both sides ``rounds`` times in turns. Return the figure of each operation."""
    sides = {"full": full, "empty": empty}
    took: dict[str, dict[str, list[float]]] = defaultdict(lambda: {side: [] for side in sides})
    with measure.settled_heap():
        for n, order in enumerate(measure.orders(list(sides), rounds + WARM_UP)):
            for side in order:
                for name, seconds in sides[side](n).items():
                    if n >= WARM_UP:
                        took[name][side].append(seconds)
    return [
        measure.compare(name, both["full"], both["empty"], against="empty ledger", goal=GOAL if "purchase" in name else None)
        for name, both in took.items()
    ]


def sessions(full: Ledger, empty: Ledger, lnd: FakeLnd, wall: Paywall, rounds: int) -> list[Figure]:
    """Measure whole purchases of a session, each of a page of its own."""
    pages = count()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(lnd.client()))
        buyers = [
            stack.enter_context(Routeweiler(funding=[lnd.funding(client=client)], ledger=ledger, budget_envelope=envelope(0)))
            for ledger in (full, empty)
        ]

        def buy(buyer: Routeweiler) -> dict[str, float]:
            url = wall.url_for(f"/bought/{next(pages)}")
            began_s = time.perf_counter()
            answer = buyer.get(url, timeout=30)
            took_s = time.perf_counter() - began_s
            assert answer.status_code == 200
            assert not answer.payment.reused  # type: ignore[attr-defined]
            return {"a session's purchase": took_s}

        return in_turns(lambda n: buy(buyers[0]), lambda n: buy(buyers[1]), rounds)


# -- databases ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ledgers(backend: str) -> Iterator[tuple[Ledger, Ledger, Callable[[], None]]]:
    """Yield two empty ledgers of one kind, and a function that does after the filling what the database does in time by itself."""
    with contextlib.ExitStack() as stack:
        if backend == "sqlite":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ledger-cost-")))
            urls = [str(folder / name) for name in ("full.db", "empty.db")]
        else:
            from tests.postgres.server import Server

            server = stack.enter_context(Server.make())
            urls = [server.url(server.new_database()) for _ in range(2)]
        full, empty = (stack.enter_context(contextlib.closing(Ledger.open(url))) for url in urls)
        empty.envelopes()

        def rest() -> None:
            if backend == "sqlite":
                with contextlib.closing(sqlite3.connect(urls[0])) as database:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                server.admin("VACUUM ANALYZE", urls[0].rpartition("/")[2].partition("?")[0])

        yield full, empty, rest


def measure_one(backend: str, payments: int, rounds: int) -> list[Figure]:
    """Return all figures of one kind of ledger."""
    with FakeLnd() as lnd, Paywall(lnd, dynamic=True) as wall, ledgers(backend) as (full, empty, rest):
        began_s = time.perf_counter()
        fill(full, payments, wall.base_url)
        rest()
        print(f"\n{backend}: {payments:,} past payments written in {time.perf_counter() - began_s:.0f} s")
        figures = in_turns(lambda n: purchase(full, n, wall.base_url), lambda n: purchase(empty, n, wall.base_url), rounds)
        figures += sessions(full, empty, lnd, wall, rounds // SESSION_SHARE)
        figures += in_turns(lambda n: look(full, wall.base_url), lambda n: look(empty, wall.base_url), rounds // SESSION_SHARE)
    return figures


def has_postgres() -> bool:
    """Return whether a server can be started here."""
    from tests.postgres.server import NotInstalledError, programs

    try:
        programs()
    except NotInstalledError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], action="append", help="default: both")
    parser.add_argument("--payments", type=int)
    parser.add_argument("--rounds", type=int)
    given = parser.parse_args(arguments)
    payments, rounds = SIZES[given.size]
    figures, notes = [], []
    for backend in given.backend or ["sqlite", "postgresql"]:
        if backend == "postgresql" and not has_postgres():
            notes.append(NO_POSTGRES)
            continue
        for figure in measure_one(backend, given.payments or payments, given.rounds or rounds):
            figures.append(replace(figure, name=f"{backend}: {figure.name}"))
    return measure.finish("ledger_cost", given, figures, notes)


if __name__ == "__main__":
    sys.exit(main())
