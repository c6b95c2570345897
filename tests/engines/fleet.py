"""Two loads for a pool, and the judgement: by the node's own payments, the ledger's rows and what each task came to."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from routeweiler_sync import BudgetEnvelope, BudgetExceededError, Ledger, PaymentRow, PaymentState
from routeweiler_sync.testing._lnd_book import FakePayment
from tests.postgres.server import Server

from . import jobs
from .pools import RESULT_S, Pool, Task
from .shop import PRICE_MSAT, Shop, page

PRICE_SAT = PRICE_MSAT // 1_000
#: So many tasks want each page, spread over the whole load: most of them meet.
WANTED_BY = 3
POLL_S = 0.05


@dataclass(frozen=True)
class Fleet:
    """A shop, and an empty ledger that all workers of a pool share. Their environment names both."""

    shop: Shop
    ledger: Ledger
    #: Payments of the node for earlier fleets.
    foreign: frozenset[str]

    @classmethod
    @contextlib.contextmanager
    def make(cls, server: Server, shop: Shop) -> Iterator[Fleet]:
        """Make it before the pool, whose processes inherit the environment."""
        url = server.url(server.new_database())
        with tempfile.TemporaryDirectory(prefix="rw-engines-") as running:
            environ = {**shop.environ, jobs.LEDGER: url, jobs.RUNNING: running, jobs.FIRST: f"{shop.url}/first/page"}
            before = {name: os.environ.get(name) for name in environ}
            os.environ.update(environ)
            ledger = Ledger.open(url)
            try:
                fleet = cls(shop, ledger, frozenset(payment.payment_hash for payment in shop.payments))
                fleet.allow(1)
                yield fleet
            finally:
                ledger.close()
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value

    def allow(self, pages: int) -> None:
        """Let so many more pages be bought, and not one millisatoshi more."""
        cap = pages * PRICE_SAT + (self.ledger.spending().total_msat // 1_000 if self.ledger.exists() else 0)
        self.ledger.set_limits(jobs.ENVELOPE, lambda _: BudgetEnvelope(jobs.ENVELOPE, cap_minor_units=cap))

    def urls(self, part: str, pages: int) -> list[str]:
        """The pages of this load."""
        return [f"{self.shop.url}/{part}/{number}" for number in range(pages)]

    # -- loads ------------------------------------------------------------------------------------------------------------

    def beyond_the_cap(self, pool: Pool, pages: int, *, part: str = "cap") -> Counter[str]:
        """Want more than the budget allows, by sessions that the pool pickles. Return what it came to.

        Each refusal must come back as it was raised.
        """
        urls, allowed = self.urls(part, pages), pages * 6 // 10
        self.allow(allowed)
        with jobs.new_session() as session:
            outcomes = _outcomes(pool.pickled(session, urls * WANTED_BY))
            refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            for error in refused:
                _is_a_whole_refusal(error)
            # Purchases that go on side by side reserve fees. What came back of those is left, and is spent now, to the last.
            bought = {row.path for row in self.rows(part)}
            for url in urls:
                if url.removeprefix(self.shop.url) not in bought and len(self.rows(part)) < allowed:
                    outcomes.append(jobs.fetch(session, url))
                    urls.append(url)
        settled = self.judge(part, [*urls[:pages] * WANTED_BY, *urls[pages:]], outcomes)
        assert len(settled) == allowed, f"{len(settled)} bought, {allowed} were allowed"
        (envelope,) = self.ledger.envelopes()
        booked = (envelope.settled_minor_units, envelope.reserved_minor_units)
        assert booked == (envelope.limits.cap_minor_units, 0), "the cap, exactly"
        return Counter(tasks=len(outcomes), refused=len(refused), bought=len(settled))

    def with_deaths(self, pool: Pool, pages: int, *, deaths: int = 1, part: str = "kill") -> Counter[str]:
        """Kill workers in the midst of a payment, while others work. Return what it came to."""
        urls = self.urls(part, pages)
        self.allow(pages)
        first, rest, step = urls[:deaths], urls[deaths:], max(1, (pages - deaths) // deaths)
        tasks: list[Task] = []
        order: list[str] = []

        def ask(asked: Sequence[str]) -> None:
            tasks.extend(pool.own(asked))
            order.extend(asked)

        for number, url in enumerate(first):
            self.shop.hang_next()
            ask([url])
            row = self.ledger.payment(self.shop.wait_hanging())
            assert row is not None  # of this page, or of one that another task was about to buy
            victim = jobs.pid_of(row.path)
            before = self._paid()
            ask(rest[number * step : (number + 1) * step if number < deaths - 1 else None])
            _until(lambda before=before: self._paid() > before, "another worker to buy")
            os.kill(victim, signal.SIGKILL)
            jobs.forget(victim)
            self.shop.release()
        ask(urls * (WANTED_BY - 1))
        settled = self.judge(part, order, _outcomes(tasks))
        assert len(settled) == pages
        return Counter(tasks=len(tasks), bought=len(settled), killed=deaths)

    # -- judgement --------------------------------------------------------------------------------------------------------

    @property
    def payments(self) -> list[FakePayment]:
        """All that the node has begun to pay for this fleet."""
        return [payment for payment in self.shop.payments if payment.payment_hash not in self.foreign]

    def rows(self, part: str) -> list[PaymentRow]:
        """The ledger's payments for pages of this load."""
        return [row for row in self.ledger.payments() if row.path.startswith(f"/{part}/")]

    def judge(self, part: str, urls: Sequence[str], outcomes: Sequence[object]) -> list[PaymentRow]:
        """Hold that no page was paid twice, none that was paid is lost, and each task that got one got its own."""
        rows = {row.path: row for row in self.rows(part)}
        assert len(rows) == len(self.rows(part)), "a page was bought twice"
        assert {row.state for row in rows.values()} <= {PaymentState.SETTLED}, "a payment is left unfinished"
        paid = Counter(payment.payment_hash for payment in self.payments if payment.status == "SUCCEEDED")
        every = [row for row in self.ledger.payments() if row.settled_at is not None]
        assert paid == Counter(row.payment_hash for row in every), "the node's payments aren't the ledger's"
        assert {payment.status for payment in self.payments} == {"SUCCEEDED"}
        assert self.ledger.spending().total_msat == PRICE_MSAT * len(paid)
        buyers: Counter[str] = Counter()
        for url, outcome in zip(urls, outcomes, strict=True):
            path = url.removeprefix(self.shop.url)
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, BudgetExceededError), outcome
                continue
            assert isinstance(outcome, jobs.Page), outcome
            assert (outcome.status, outcome.content) == (200, page(path))
            assert outcome.payment_hash == rows[path].payment_hash
            buyers[path] += outcome.bought
        assert max(buyers.values(), default=0) <= 1, "two tasks believe that they have paid"
        return list(rows.values())

    def _paid(self) -> int:
        return sum(payment.status == "SUCCEEDED" for payment in self.payments)


def _outcomes(tasks: Sequence[Task]) -> list[object]:
    return [task.outcome() for task in tasks]


def _is_a_whole_refusal(error: BaseException) -> None:
    assert isinstance(error, BudgetExceededError), repr(error)
    assert error.spent is False
    assert error.what.startswith(f"The price of {PRICE_SAT} sat doesn't fit under cap_minor_units=")
    assert error.advice == "Raise the limit."
    assert error.money_sentence == "Nothing was spent."
    assert error.payment_hash is None
    assert error.response is not None
    assert error.response.status_code == 402


def _until(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + RESULT_S
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"waited for {what}")
        time.sleep(POLL_S)
