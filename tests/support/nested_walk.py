"""A walk over the ledger's own methods with envelopes that lie in others, judged after each step by `spending_oracle`.

Payments are opened, settled with a fee, ended, abandoned, and carried on by another agent from another envelope.
Some transactions die before they commit. `walk` raises AssertionError as soon as a total is wrong or a limit is passed.
"""

from __future__ import annotations

import random
from contextlib import closing, suppress
from dataclasses import dataclass, field

from routeweiler_sync.budgets.schema import BudgetEnvelope
from routeweiler_sync.errors import BudgetError
from routeweiler_sync.ledger.ledger import ABANDONED, Ledger
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState

from .ledger_builders import Clock, die, draw, fail, hash_of, intent, preimage, put, settle
from .spending_oracle import SHARED, Reader, Sight, micro_of

ALL = BudgetEnvelope("all", cap_minor_units=400, per_hour_minor_units=60, per_day_minor_units=150, per_call_minor_units=25)
#: One envelope for all, two agents in it, one of which has an assistant; and one that is by itself.
ENVELOPES = [
    ALL,
    scout := BudgetEnvelope("a scout", per_day_minor_units=90, per_hour_minor_units=40, parent=ALL),
    BudgetEnvelope("z assistant", cap_minor_units=120, per_call_minor_units=20, parent=scout),
    BudgetEnvelope("writer", per_hour_minor_units=45, parent="all"),
    BudgetEnvelope("stranger", cap_minor_units=80),
]
MAX_FEE_MSAT = 4_000


class _DiedError(Exception):
    """The process ended before its transaction was committed."""


@dataclass
class Walk:
    """Steps on the ledger at ``url``, drawn from ``seed``."""

    url: str
    seed: int
    clock: Clock = field(default_factory=Clock)
    opened: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def run(self, steps: int = 60) -> None:
        """Take ``steps`` steps, each judged; then end what is open.

        Raises: AssertionError for a wrong total or a limit that was passed.
        """
        with closing(Ledger(Ledger.open(self.url)._store, clock=self.clock)) as self.ledger:
            self.ledger.bring(ALL)
            with closing(Reader(self.url)) as self.reader:
                for _ in range(steps):
                    self.clock.now_s += self.dice.choice([0, 1, 40, 300, 1_700])
                    before = self.reader.look()
                    self.step()
                    self.judge(before)
                for row in self.ledger.unfinished():
                    self.settle(row)
                self.reader.look().check()

    def number(self, row: PaymentRow) -> int:
        """Return which of the walk's purchases the row is."""
        return next(n for n in range(1, self.opened + 1) if hash_of(n) == row.payment_hash)

    def step(self) -> None:
        """Do something that a buyer, a wallet, a user or the weather may do."""
        unfinished = self.ledger.unfinished()
        if not unfinished or self.dice.random() < 0.45:
            return self.open()
        row = self.dice.choice(unfinished)
        deed = self.dice.choice([self.settle, self.settle, self.end, self.abandon, self.take_over, self.take_over, self.die])
        return deed(row)

    def open(self) -> None:
        """An agent buys, by its envelope or, where the ledger has it, by the envelope's id."""
        self.opened += 1
        envelope = self.dice.choice(ENVELOPES)
        amount_msat = self.dice.choice([1, 999, 7_000, 12_000, 19_000, 26_000])
        with suppress(BudgetError):
            purchase = intent(self.opened, amount_msat=amount_msat, fee_cap_msat=MAX_FEE_MSAT, agent_id=f"agent of {envelope.id}")
            self.ledger.open_payment(purchase, draw(envelope, session_started_s=self.clock.now_s))

    def settle(self, row: PaymentRow) -> None:
        """The wallet has paid, for a fee of at most what it was allowed."""
        n = self.number(row)
        settle(self.ledger, n, fee_msat=self.dice.randint(0, row.max_fee_msat))

    def end(self, row: PaymentRow) -> None:
        """The wallet says that it will never pay."""
        die(self.ledger, self.number(row))

    def abandon(self, row: PaymentRow) -> None:
        """The user ends it."""
        put(self.ledger, row.payment_hash, ABANDONED)

    def take_over(self, row: PaymentRow) -> None:
        """Another agent meets a payment without an answer, and sends it again from its own envelope."""
        fail(self.ledger, self.number(row))
        envelope = self.dice.choice(ENVELOPES)
        with suppress(BudgetError):
            self.ledger.count_send(row.payment_hash, draw(envelope, session_started_s=self.clock.now_s))

    def die(self, row: PaymentRow) -> None:
        """A process dies when all is written and nothing committed: none of it may have happened."""

        def died(_: PaymentRow) -> None:
            raise _DiedError

        n = self.number(row)
        paid = Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(n), fee_msat=row.max_fee_msat)
        before = self.reader.look()
        with suppress(_DiedError):
            self.ledger.change(row.payment_hash, lambda _: paid, before_commit=died)
        assert self.reader.look() == before, "something of a transaction that wasn't committed is there"

    def judge(self, before: Sight) -> None:
        """The totals of every envelope are the sums of what counts in it, and no limit was passed by a purchase."""
        after = self.reader.look()
        after.check()
        for id in after.envelopes:
            limits, granted_ms = after.limits(id), after.envelopes[id]["granted_at_ms"]
            for name in SHARED:
                used = after.used_micro(id, name, self.clock.now_s, granted_ms)
                assert limits[name] is None or used <= limits[name], f"{name} of {id} is passed: {used}"
            for row in after.counted_in(id):
                most = micro_of(row["amount_msat"] + row["max_fee_msat"], "sat", None)
                per_call = limits["per_call_minor_units"]
                assert per_call is None or most <= per_call, f"the limit of a call of {id} is passed"
        assert before.payments.keys() <= after.payments.keys()
