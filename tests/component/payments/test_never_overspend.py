"""Never overspend: whatever prices, fees, rates, failures, crashes, clocks, changed limits and races come together.

Sessions buy over real sockets from a fake node. An outsider (`spending_oracle`) reads the ledger's tables meanwhile, counts anew
from the payments, and in the end holds them against the node's own record. ROUTEWEILER_DEEP_TESTS=1 looks further: see `EXAMPLES`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, event, given, settings, strategies as st

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    Funding,
    Routeweiler,
)
from routeweiler_sync._core.preload import prepare_to_pay
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.postgres.conftest import server as server
from tests.support.budget_races import PRICES_MSAT, Race, Stable, races, run as run_race
from tests.support.crash_points import hurry
from tests.support.ledger_builders import die, draw, intent, settle
from tests.support.spending_oracle import SHARED, WINDOWS_S, Reader, Sight, micro_of, watching
from tests.support.spending_walk import MAX_CALLS, START_S, Deed, Walk, agree_with_node, deeds

DEEP = os.environ.get("ROUTEWEILER_DEEP_TESTS") == "1"
#: How often each test is tried. PostgreSQL takes ten times as long. Here it must show that its SQL counts and locks alike: what is
#: decided by it is the same code, and the contract of the ledgers (`nested_walk`) walks on both.
EXAMPLES = {
    "sqlite": {"walks": 120, "moments": 3_000, "races": 150} if DEEP else {"walks": 20, "moments": 500, "races": 6},
    "postgresql": {"walks": 120, "moments": 300, "races": 150} if DEEP else {"walks": 4, "moments": 12, "races": 3},
}
DEEDS = 40 if DEEP else 20
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

pytestmark = [pytest.mark.timeout(4 * 3600 if DEEP else 600), pytest.mark.model]
quickly = pytest.fixture(autouse=True, scope="module")(hurry)


@pytest.fixture(scope="module")
def node() -> Iterator[FakeLnd]:
    prepare_to_pay()
    with FakeLnd() as made:
        yield made


@pytest.fixture(scope="module")
def walls(node: FakeLnd) -> Iterator[list[Paywall]]:
    with Paywall(node, dynamic=True) as one, Paywall(node, dynamic=True) as other:
        yield [one, other]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def new_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Names a ledger that isn't there yet, each time another."""
    numbers = count()
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("ledgers")
        return lambda: str(folder / f"{next(numbers)}.db")
    postgres = request.getfixturevalue("server")
    database = postgres.new_database()

    def schema() -> str:
        name = f"w{next(numbers)}"
        postgres.admin(f"CREATE SCHEMA {name}", database)
        return f"{postgres.url(database)}&options=-csearch_path%3D{name}"

    return schema


def often(new_url: Callable[[], str], what: str) -> settings:
    """As often as `EXAMPLES` says for the database that ``new_url`` names."""
    kind = new_url().partition("://")
    return settings(max_examples=EXAMPLES[kind[0] if kind[1] else "sqlite"][what], suppress_health_check=QUIET)


@pytest.fixture(scope="module")
def shop(node: FakeLnd) -> Iterator[Paywall]:
    """Sells ``/msat/anything`` at that price, each page by itself."""
    with Paywall(node, dynamic=True) as wall:
        for price_msat in PRICES_MSAT:
            wall.add_service(f"/{price_msat}", name=f"s{price_msat}", price_msat=price_msat, dynamic=True)
        yield wall


@pytest.fixture(scope="module")
def stable(node: FakeLnd) -> Iterator[Stable]:
    with contextlib.closing(Stable(node)) as made:
        yield made


# -- one deed after another ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_walk_passes_a_limit_and_the_node_agrees(node: FakeLnd, walls: list[Paywall], new_url: Callable[[], str]) -> None:
    """Else some order of prices, fees, failures and changed limits that nobody thought of spends more than was allowed."""

    @often(new_url, "walks")
    @given(walk=st.lists(deeds, min_size=DEEDS // 2, max_size=DEEDS), policy_sats=st.sampled_from([30, 60]))
    def walks(walk: list[Deed], policy_sats: int) -> None:
        with Walk(node=node, walls=walls, url=new_url(), policy_sats=policy_sats) as world:
            for deed in walk:
                world.do(deed)
            world.end()

    walks()


#: Seconds that bring a spend to the edge of a window, or of one of the ledger's buckets.
edges_s = st.sampled_from([window_s + by_s for window_s in (300, *WINDOWS_S.values()) for by_s in (-300, -299, -1, -0.001, 0)])
moments = st.tuples(
    st.one_of(st.floats(0, 400), edges_s, edges_s),
    st.one_of(st.integers(1, 10_000), st.sampled_from([4_000, 5_999, 6_000])),
    st.sampled_from([settle, settle, settle, die, None]),
)


one_limit = [st.fixed_dictionaries({name: st.integers(6, 11)}) for name in SHARED]


@pytest.mark.slow
def test_no_hour_no_day_and_no_grant_is_ever_passed(new_url: Callable[[], str]) -> None:
    """Else what was spent just within the window, or is still reserved from the grant before, would be free to be spent again."""

    @often(new_url, "moments")
    @given(
        walk=st.lists(moments, min_size=2, max_size=8),
        first_s=st.floats(0, 400),
        limits_sats=st.one_of(*one_limit, st.fixed_dictionaries(dict.fromkeys(SHARED, st.integers(6, 20)))),
        ttl_s=st.sampled_from([None, None, 300, 3_300]),
    )
    def walks(walk: list[Any], first_s: float, limits_sats: dict[str, int], ttl_s: int | None) -> None:
        now_s, url = START_S + first_s, new_url()
        envelope = BudgetEnvelope("e", ttl_seconds=ttl_s, **limits_sats)  # type: ignore[arg-type]
        with contextlib.closing(Ledger(Ledger.open(url)._store, clock=lambda: now_s)) as ledger:
            ledger.unfinished()  # makes the tables
            with contextlib.closing(Reader(url)) as reader:
                for n, (later_s, amount_msat, end) in enumerate(walk):
                    now_s += later_s
                    try:
                        ledger.open_payment(intent(n, amount_msat=amount_msat), draw(envelope, session_started_s=now_s))
                    except BudgetExceededError:
                        event("refused")
                        continue
                    if end is not None:
                        end(ledger, n)
                    sight = reader.look()
                    for name, limit_sats in limits_sats.items():
                        used = sight.used_micro("e", name, now_s, sight.envelopes["e"]["granted_at_ms"])
                        assert used <= limit_sats * 10**6, f"{name} is passed"

    walks()


# -- all at once -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_race_passes_a_limit_and_the_node_agrees(
    node: FakeLnd, shop: Paywall, new_url: Callable[[], str], stable: Stable
) -> None:
    """Else threads and processes that look at the same time would each find room for the last sat."""

    @often(new_url, "races")
    @given(race=races())
    def raced(race: Race) -> None:
        run_and_judge(race, node, shop, new_url(), stable)

    raced()


def run_and_judge(race: Race, node: FakeLnd, shop: Paywall, url: str, stable: Stable) -> None:
    """Have ``race`` on the new ledger ``url``, and hold it against the limits and the node."""
    paid_before = len(node.payments)
    with contextlib.closing(Ledger.open(url)) as ledger:
        ledger.unfinished()  # makes the tables

    def below(sight: Sight) -> None:
        sight.check()
        for id, envelope in sight.envelopes.items():
            total = envelope["reserved_micro"] + envelope["settled_micro"]
            for name in SHARED:  # a race is over long before a window has moved on
                most = race.most_micro(id, name)
                assert most is None or total <= most, f"{name} of {id} is passed"

    with contextlib.closing(Reader(url)) as reader:
        reader.watch_growth()
        with watching(url, below):
            event(f"died: {run_race(race, node, shop.base_url, url, stable)}")
        for limits, total in reader.growths():
            assert all(total <= limit for name in SHARED if (limit := limits[name]) is not None), f"{total} of {limits}"
        sight = reader.look()
        for row in sight.payments.values():
            reserved = micro_of(row["amount_msat"] + row["max_fee_msat"], row["currency"], row["btc_price"])
            for id in sight.chain(row["envelope_id"]):
                most = race.most_micro(id, "per_call_minor_units")
                assert most is None or reserved <= most, "the limit of a call is passed"
        finish_race(node, shop, url, reader)
        agree_with_node(reader.look(), node, paid_before)


def finish_race(node: FakeLnd, shop: Paywall, url: str, reader: Reader) -> None:
    """Who comes next carries to its end what the dead have left."""
    node.clear_faults()
    node.fee_msat = 0
    with (
        contextlib.closing(node.client()) as client,
        Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
            ledger=url,
            budget_envelope=BudgetEnvelope("shared"),
        ) as session,
    ):
        for _ in range(MAX_CALLS):
            session.recover()
            for row in Ledger.open(url).unfinished():
                with contextlib.suppress(requests.RequestException):
                    session.get(row.origin + row.path, timeout=30)


def test_the_oracle_notices_a_forged_total_limit_or_spend(node: FakeLnd, shop: Paywall, new_url: Callable[[], str]) -> None:
    """Else the two tests above might be blind: here a total, a limit and a spend are forged, and each must be seen."""
    url, paid_before = new_url(), len(node.payments)
    node.clear_faults()
    node.fee_msat = 1
    with (
        contextlib.closing(node.client()) as client,
        Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
            ledger=url,
            budget_envelope=BudgetEnvelope("shared", cap_minor_units=30),
        ) as session,
        contextlib.closing(Reader(url)) as reader,
        contextlib.closing(Ledger.open(url)) as ledger,
    ):
        ledger.unfinished()  # makes the tables
        reader.watch_growth()
        session.get(f"{shop.base_url}/10000/1")
        agree_with_node(reader.look(), node, paid_before)
        assert [(limits["cap_minor_units"], total) for limits, total in reader.growths()] == [(30_000_000, 20_000_000)]
        forge: Any = ledger._store
        for sql in (
            "UPDATE envelopes SET settled_micro = settled_micro - 1",
            "UPDATE payments SET fee_msat = 0",
            "UPDATE payments SET settled_at_ms = NULL, state = 'dead'",
        ):
            with pytest.raises(AssertionError), forge.transaction() as tx:
                tx.execute(sql)
                payments, envelopes = tx.execute("SELECT * FROM payments"), tx.execute("SELECT * FROM envelopes")
                forged = Sight(payments={row["payment_hash"]: row for row in payments}, envelopes={"shared": envelopes[0]})
                agree_with_node(forged, node, paid_before)  # and what was forged is rolled back
