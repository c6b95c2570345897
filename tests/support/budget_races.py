"""Buyers who race one another for one budget: threads of this process, and processes of their own that may die at any step.

What is raced for is drawn by hypothesis; whether a limit was passed is judged by the test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import cycle
from typing import Any

import requests
from hypothesis import strategies as st

from routeweiler_sync import BudgetEnvelope, Funding, LndClient, Routeweiler
from routeweiler_sync.testing import FakeLnd

from .crash_points import DIED, Steps, die_truly, stepping
from .ledger_builders import at_once
from .spending_oracle import LIMITS, micro_of

THREADS, PROCESSES = 4, 2
PATIENCE_S = 120
#: Prices of the pages ``/msat/anything``; a thousand msat and routing on top make up a limit of some of them together.
PRICES_MSAT = (1, 999, 1_000, 7_777, 10_000, 25_000)
MAX_FEE_MSAT = 2_000
CURRENCIES = {"shared": "sat", "cents": "usd", "scout": "sat", "writer": "sat", "dime": "usd"}
#: The envelope that an envelope lies in. Buyers bring it with the inner one.
PARENTS = {"scout": "shared", "writer": "shared", "dime": "cents"}
SPAWN = multiprocessing.get_context("spawn")


class Moving:
    """A price of bitcoin that is another each time it is asked for."""

    quality = "moving"

    def __init__(self, prices: Sequence[Decimal]) -> None:
        self._next = cycle(prices)

    def btc_price(self, currency: str) -> Decimal:
        """The next price, whatever the currency."""
        return next(self._next)


@dataclass(frozen=True, kw_only=True)
class Buyer:
    """What one buyer does: pages (envelope, path) in this order, under its own idea of the limits, until it dies."""

    envelopes: Mapping[str, BudgetEnvelope]
    calls: Sequence[tuple[str, str]]
    prices: Sequence[Decimal]
    dies_at: int | None = None

    def buy(self, base_url: str, ledger: str, client: LndClient) -> None:
        """All of it. What is refused or fails is an end like any other."""
        funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest", max_fee_msat=MAX_FEE_MSAT)
        with contextlib.ExitStack() as stack:
            sessions = {
                id: stack.enter_context(
                    Routeweiler(
                        funding=[funding],
                        ledger=ledger,
                        budget_envelope=envelope,
                        fmv_provider=Moving(self.prices),
                        payment_timeout=5,
                    )
                )
                for id, envelope in self.envelopes.items()
            }
            for id, path in self.calls:
                with contextlib.suppress(requests.RequestException):
                    sessions[id].get(base_url + path, timeout=30)


@dataclass(frozen=True, kw_only=True)
class Race:
    """Buyers, the first ``THREADS`` of them threads, and what goes wrong: orders that fail, streams that break, a fee."""

    buyers: Sequence[Buyer]
    fails: int
    drops: int
    fee_msat: int

    def most_micro(self, id: str, name: str) -> int | None:
        """The highest of a limit's values that are in play, None for no limit."""
        values = [getattr(buyer.envelopes[id], name) for buyer in self.buyers]
        return None if None in values else max(values) * 10**6


def _envelopes(limits_sats: Mapping[str, int | None]) -> dict[str, BudgetEnvelope]:
    """The same limits in each currency, at 60 000 dollars a bitcoin. An envelope that lies in another may spend half of that."""
    made: dict[str, BudgetEnvelope] = {}
    for id, currency in CURRENCIES.items():
        outer = made.get(PARENTS.get(id, ""))
        made[id] = BudgetEnvelope(
            id,
            cap_currency=currency,
            parent=outer,
            **{  # type: ignore[arg-type]
                name: None if sats is None else -(-micro_of(sats * (500 if outer else 1_000), currency, "60000") // 10**6)
                for name, sats in limits_sats.items()
            },
        )
    return made


@st.composite
def races(draw: Callable[..., Any]) -> Race:
    """Two ideas of the limits (often the same), few pages that many want, a process that dies at times."""
    amounts = st.one_of(st.none(), st.integers(20, 120))
    ideas = [draw(st.fixed_dictionaries(dict.fromkeys(LIMITS, amounts) | {"cap_minor_units": st.integers(20, 120)}))]
    ideas += [draw(st.one_of(st.just(ideas[0]), st.fixed_dictionaries(dict.fromkeys(LIMITS, amounts))))]
    paths = st.builds(lambda msat, n: f"/{msat}/{n}", st.sampled_from(PRICES_MSAT), st.integers(0, 8))
    calls = st.lists(st.tuples(st.sampled_from(sorted(CURRENCIES)), paths), min_size=6, max_size=12)
    prices = st.lists(st.decimals(Decimal(20_000), Decimal(90_000), places=2), min_size=1, max_size=5)
    buyers = [
        Buyer(
            envelopes=_envelopes(ideas[number % 2]),
            calls=draw(calls),
            prices=draw(prices),
            dies_at=draw(st.one_of(st.none(), st.integers(1, 60))) if number == THREADS else None,
        )
        for number in range(THREADS + PROCESSES)
    ]
    return Race(
        buyers=buyers,
        fails=draw(st.integers(0, 4)),
        drops=draw(st.integers(0, 4)),
        fee_msat=draw(st.sampled_from([0, 1, 1_000, 1_999, 2_001])),
    )


class Stable:
    """Processes that buy for races, each a child that has imported everything; who has died is replaced for the next race."""

    def __init__(self, node: FakeLnd) -> None:
        self._node = node
        self._workers: list[tuple[Any, Any]] = []

    def start(self, jobs: Sequence[tuple[Buyer, str, str]]) -> None:
        """One job (buyer, base URL, ledger) for each process."""
        while len(self._workers) < len(jobs):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=_work, args=(theirs, self._node.environ), daemon=True)
            process.start()
            theirs.close()
            assert ours.poll(PATIENCE_S), "a process doesn't begin"
            ours.recv()
            self._workers.append((process, ours))
        for (_, pipe), job in zip(self._workers, jobs, strict=True):
            pipe.send(job)

    def wait(self) -> int:
        """Until all have done their jobs; how many of them died meanwhile."""
        alive = []
        for process, pipe in self._workers:
            assert pipe.poll(PATIENCE_S), "a process hangs"
            try:
                assert pipe.recv() == "done"
                alive.append((process, pipe))
            except EOFError:
                process.join(PATIENCE_S)
                assert process.exitcode == DIED, f"a process ended with {process.exitcode}"
                pipe.close()
        died = len(self._workers) - len(alive)
        self._workers = alive
        return died

    def close(self) -> None:
        """End them all."""
        for process, pipe in self._workers:
            pipe.send(None)
            process.join(PATIENCE_S)
            pipe.close()


def _work(pipe: Any, environ: Mapping[str, str]) -> None:
    from routeweiler_sync._core.preload import prepare_to_pay

    prepare_to_pay()
    os.environ.update(environ)
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        buyer, base_url, ledger = job
        steps = Steps(buyer.dies_at, die_truly)
        with stepping(steps), contextlib.closing(LndClient.from_env()) as client:
            buyer.buy(base_url, ledger, client)
        pipe.send("done")


def run(race: Race, node: FakeLnd, base_url: str, ledger: str, stable: Stable) -> int:
    """The whole race; how many processes died in it."""
    node.clear_faults()
    node.fee_msat = race.fee_msat
    if race.fails:
        node.fail_next(times=race.fails)
    if race.drops:
        node.drop_next("in_flight", times=race.drops)
    stable.start([(buyer, base_url, ledger) for buyer in race.buyers[THREADS:]])
    with contextlib.closing(node.client()) as client:
        at_once([lambda buyer=buyer: buyer.buy(base_url, ledger, client) for buyer in race.buyers[:THREADS]])  # type: ignore[misc]
    return stable.wait()
