"""A walk of purchases on one ledger, one deed after another, and what must be true after each: for `test_never_overspend`.

Prices, fees, rates, limits, grants, clocks, failures and deaths are drawn by hypothesis; whether a limit was passed is judged on
what an outsider reads (`spending_oracle`), and in the end on the node's own record.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
import requests
from hypothesis import event, strategies as st

from routeweiler_sync import BudgetEnvelope, BudgetExceededError, Funding, Policy, PolicyRule, Routeweiler, RuleMatch, StaticRate
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.payments import first_use, report_claims as telling, single_flight as flight
from routeweiler_sync.testing import FakeLnd, Paywall

from .crash_points import Died, Steps, stepping
from .spending_oracle import LIMITS, SHARED, Reader, Sight, held_micro, micro_of, watching

#: A payment that hangs is waited for so long.
PAYMENT_TIMEOUT_S = 0.2
#: Calls that a need may take, once nothing goes wrong any more, until its outcome is known.
MAX_CALLS = 4
MAX_FEE_MSAT = 10_000
START_S = 1_800_000_000.0


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A call, and what is different from before when it is made."""

    envelope: str
    wall: int
    price_msat: int
    fee_msat: int
    later_s: float
    again: int | None
    fault: str | None
    dies_at: int | None
    relimit: dict[str, int | None] | None
    fresh: bool
    rate: Decimal | None
    block_sats: int | None
    ends: str | None


CURRENCIES = {
    "one": "sat",
    "two": "sat",
    "cents": "usd",
    "yen": "jpy",
    "left": "sat",
    "lefter": "sat",
    "right": "sat",
    "dime": "usd",
}
#: The envelope that an envelope lies in. The sessions of "dime" name it by its id, the others bring it.
PARENTS = {"left": "one", "lefter": "left", "right": "one", "dime": "cents"}


def _fails_unheard(lnd: FakeLnd) -> None:
    lnd.fail_next()
    lnd.drop_next("after_init")


FAULTS: dict[str, Callable[[FakeLnd], None]] = {
    "fails": lambda lnd: lnd.fail_next(),
    "hangs": lambda lnd: lnd.hang_next(),
    "refuses": lambda lnd: lnd.refuse_next("invoice expired"),
    "drops before": lambda lnd: lnd.drop_next("before_init"),
    "drops meanwhile": lambda lnd: lnd.drop_next("in_flight"),
    "drops when paid": lambda lnd: lnd.drop_next("after_paying"),
    "fails unheard": _fails_unheard,
}
seldom = st.sampled_from([False] * 4 + [True])
# In thousands of the sat; what that is in other currencies: see `Walk._limits`.
amounts = st.one_of(st.none(), st.integers(0, 150))
tight = st.fixed_dictionaries(
    {"cap_minor_units": amounts, "per_call_minor_units": amounts, "per_hour_minor_units": amounts, "per_day_minor_units": amounts}
    | {"ttl_seconds": st.sampled_from([None, None, 60, 4_000])}
)
prices = st.one_of(st.integers(1, 60_000), st.sampled_from([1, 999, 1_000, 1_001, 10_000, 30_000]))
rates = st.decimals(Decimal("0.01"), Decimal("999999.99"), places=2) | st.sampled_from([Decimal(60_000), Decimal("1E-3")])
deeds = st.builds(
    Deed,
    envelope=st.sampled_from(sorted(CURRENCIES)),
    wall=st.integers(0, 1),
    price_msat=prices,
    fee_msat=st.sampled_from([0, 0, 1, 999, 1_000, 9_999, 10_001]),
    later_s=st.sampled_from([1.0] * 6 + [0.999, 61.0, 299.0, 300.0, 1_800.0, 3_599.0, 3_600.001, 86_400.0]),
    again=st.one_of(st.none(), st.none(), st.integers(0, 20)),
    fault=st.one_of(st.none(), st.none(), st.sampled_from(sorted(FAULTS))),
    dies_at=st.one_of(st.none(), st.none(), st.none(), st.integers(1, 30)),
    relimit=st.one_of(st.none(), st.none(), st.none(), tight),
    fresh=seldom,
    rate=st.one_of(st.none(), rates),
    block_sats=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 60)),
    ends=st.sampled_from([None] * 5 + ["pay", "fail", "recover"]),
)


@dataclass
class Walk:
    """Envelopes, sessions and a clock on one ledger; `do` makes one deed and checks what came of it."""

    node: FakeLnd
    walls: list[Paywall]
    url: str
    policy_sats: int
    payment_timeout_s: float = PAYMENT_TIMEOUT_S
    now_s: float = START_S
    rates: dict[str, Decimal] = field(default_factory=lambda: {"usd": Decimal(60_000), "jpy": Decimal(9_000_000)})
    envelopes: dict[str, BudgetEnvelope] = field(default_factory=dict)
    sessions: dict[str, Routeweiler] = field(default_factory=dict)
    pages: list[tuple[int, str, int]] = field(default_factory=list)
    asked: dict[tuple[int, str], str] = field(default_factory=dict)
    most: dict[tuple[str, str], float] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Walk:
        self.node.clear_faults()
        self.paid_before = len(self.node.payments)
        self.ledger().unfinished()  # makes the tables
        for id in CURRENCIES:  # parents come before those that lie in them
            self.relimit(id, {"cap_minor_units": 120, "per_call_minor_units": 50})
        self.ledger().bring(self.envelopes["cents"])
        self.reader = self.stack.enter_context(contextlib.closing(Reader(self.url)))
        self.stack.enter_context(watching(self.url, self.never_above))
        return self

    def __exit__(self, *exc: object) -> None:
        for session in self.sessions.values():
            session.close()
        self.stack.__exit__(*exc)  # type: ignore[arg-type]

    def ledger(self) -> Ledger:
        """The ledger over a connection of its own, on the walk's clock."""
        ledger = Ledger(Ledger.open(self.url)._store, clock=lambda: self.now_s)
        self.stack.callback(ledger.close)
        return ledger

    def session(self, id: str) -> Routeweiler:
        """A new session of envelope ``id``, begun at the walk's time."""
        currency = CURRENCIES[id]
        at_most = PolicyRule("at most", when=RuleMatch(url_matches="*"), max_per_call_minor_units=self.policy_sats)
        client = self.node.client()
        self.stack.callback(client.close)
        session = Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest", max_fee_msat=MAX_FEE_MSAT)],
            ledger=self.ledger(),
            budget_envelope=self.envelopes[id],
            policy=Policy(rules=[at_most]),
            fmv_provider=None if currency == "sat" else StaticRate(self.rates),
            payment_timeout=self.payment_timeout_s,
        )
        session._payer._started_s = self.now_s
        return session

    def relimit(self, id: str, limits: dict[str, int | None]) -> None:
        """Other limits for envelope ``id``, in thousands of msat at the rate of now; for its sessions from now on."""
        currency = CURRENCIES[id]
        price = str(self.rates.get(currency, ""))
        values = {
            name: value if value is None or name == "ttl_seconds" else micro_of(value * 1_000, currency, price) // 10**6
            for name, value in limits.items()
        }
        outer = PARENTS.get(id)
        parent = None if outer is None else outer if id == "dime" else self.envelopes[outer]
        self.envelopes[id] = BudgetEnvelope(id, cap_currency=currency, parent=parent, **values)  # type: ignore[arg-type]
        for name in SHARED:
            limit = getattr(self.envelopes[id], name)
            self.most[id, name] = max(self.most.get((id, name), 0), float("inf") if limit is None else limit * 10**6)
        if id in self.sessions:
            self.sessions.pop(id).close()
        for inner in (each for each, outer in PARENTS.items() if outer == id and each != "dime" and each in self.envelopes):
            self.envelopes[inner] = replace(self.envelopes[inner], parent=self.envelopes[id])
            if inner in self.sessions:
                self.sessions.pop(inner).close()
            for innermost in (each for each, outer in PARENTS.items() if outer == inner and each in self.envelopes):
                self.envelopes[innermost] = replace(self.envelopes[innermost], parent=self.envelopes[inner])
                if innermost in self.sessions:
                    self.sessions.pop(innermost).close()

    def never_above(self, sight: Sight) -> None:
        """What holds at any instant, in the midst of a deed too: no limit that there ever was is passed."""
        sight.check()
        for id, envelope in sight.envelopes.items():
            for name in SHARED:
                if self.most[id, name] < float("inf"):  # the clock only moves on: this is too little rather than too much
                    used = sight.used_micro(id, name, self.now_s, envelope["granted_at_ms"])
                    assert used <= self.most[id, name], f"{name} of {id} is passed"

    # -- a deed -------------------------------------------------------------------------------------------------------

    def do(self, deed: Deed) -> None:
        """One call, and what must be true of it."""
        self.now_s += deed.later_s
        self.node.clear_faults()
        if deed.ends in ("pay", "fail"):
            self.node.release(fail="NO_ROUTE" if deed.ends == "fail" else None)
        if deed.rate is not None:
            self.rates = {"usd": deed.rate, "jpy": deed.rate * 150}
        if deed.relimit is not None:
            self.relimit(deed.envelope, deed.relimit)
        if (deed.fresh or deed.rate is not None) and deed.envelope in self.sessions:
            self.sessions.pop(deed.envelope).close()
        if deed.ends == "recover":
            self.alive(deed.envelope).recover()
        wall, path, price_msat = self.page(deed)
        self.walls[wall].price_msat = price_msat
        self.node.fee_msat = deed.fee_msat
        if deed.fault is not None:
            FAULTS[deed.fault](self.node)
        before = self.reader.look()
        answer, blocked = self.call(deed, self.walls[wall].url_for(path))
        after = self.reader.look()
        event(type(answer).__name__ if isinstance(answer, BaseException) else "page")
        self.judge(deed, before, after)
        if isinstance(answer, BudgetExceededError) and not blocked:
            self.was_full(deed.envelope, before, after, price_msat)

    def alive(self, id: str) -> Routeweiler:
        if id not in self.sessions:
            self.sessions[id] = self.session(id)
        return self.sessions[id]

    def page(self, deed: Deed) -> tuple[int, str, int]:
        """Wall, path and price of what the deed buys: something new, or something of before."""
        if deed.again is not None and self.pages:
            return self.pages[deed.again % len(self.pages)]
        self.pages.append((deed.wall, f"/{len(self.pages)}", deed.price_msat))
        return self.pages[-1]

    def call(self, deed: Deed, url: str) -> tuple[Any, bool]:
        """What the call came to, and whether its block's limit, not the envelope's, may have refused it."""
        steps = Steps(deed.dies_at)
        blocks = deed.block_sats is not None
        with contextlib.ExitStack() as life:
            if deed.dies_at is not None:
                life.enter_context(stepping(steps))
                session = self.session(deed.envelope)
                life.callback(session.close)
            else:
                session = self.alive(deed.envelope)
            limit = life.enter_context(session.limit(sats=deed.block_sats)) if deed.block_sats is not None else None
            try:
                answer: Any = session.get(url, timeout=30)
            except (requests.RequestException, Died) as error:
                answer = error
            finally:
                if deed.dies_at is not None:
                    telling._start_over_after_fork()
                    flight._start_over_after_fork()
                    first_use._start_over_after_fork()
            if limit is not None and deed.block_sats is not None:
                assert limit.spent_msat + limit.reserved_msat <= deed.block_sats * 1_000, "a block's limit is passed"
        return answer, blocks

    def judge(self, deed: Deed, before: Sight, after: Sight) -> None:
        """No limit in force was passed; what was above a lowered one didn't grow; a new payment fits under all of them."""
        after.check()
        new = [row for hash, row in after.payments.items() if hash not in before.payments]
        assert len(new) <= 1, "one call, one purchase"
        for row in new:
            assert row["envelope_id"] == deed.envelope
            assert row["amount_msat"] <= self.policy_sats * 1_000, "the policy's limit is passed"
            if deed.block_sats is not None:
                cost_msat = row["amount_msat"] + (row["max_fee_msat"] if row["settled_at_ms"] is None else row["fee_msat"])
                assert row["state"] == "dead" or cost_msat <= deed.block_sats * 1_000, "the block's limit is passed"
            given, kept = self.envelopes[deed.envelope], after.limits(deed.envelope)
            assert kept == {name: None if (v := getattr(given, name)) is None else v * 10**6 for name in LIMITS}
            cost = micro_of(row["amount_msat"] + row["max_fee_msat"], row["currency"], row["btc_price"])
            for each in after.chain(deed.envelope):
                per_call = after.limits(each)["per_call_minor_units"]
                assert per_call is None or cost <= per_call, f"{each}: the limit of a call is passed"
            assert row["fee_msat"] <= row["max_fee_msat"], "more was paid for routing than was reserved"
        for id, envelope in after.envelopes.items():
            granted_ms = envelope["granted_at_ms"]
            self.granted_well(id, before, after)
            for name in SHARED:
                limit = after.limits(id)[name]
                used = after.used_micro(id, name, self.now_s, granted_ms)
                was = 0 if id not in before.envelopes else before.used_micro(id, name, self.now_s, granted_ms)
                bought = any(id in after.chain(row["envelope_id"]) for row in new if held_micro(row))
                if limit is not None:
                    assert used <= (limit if bought else max(limit, was)), f"{name} of {id} is passed: {used} of {limit}"

    def granted_well(self, id: str, before: Sight, after: Sight) -> None:
        """A grant stands until its time is over."""
        granted_ms = after.envelopes[id]["granted_at_ms"]
        was = before.envelopes[id]["granted_at_ms"] if id in before.envelopes else None
        if was is not None and granted_ms != was:
            ttl_s = json.loads(after.envelopes[id]["limits"])["ttl_seconds"]
            assert ttl_s is not None, "a grant without an end has ended"
            assert was + ttl_s * 1_000 <= self.now_s * 1_000, "a grant was renewed before its time"

    def was_full(self, id: str, before: Sight, after: Sight, price_msat: int) -> None:
        """A refusal was needed: counted with all the slack that a window may have, one limit leaves too little."""
        currency = CURRENCIES[id]
        cost = micro_of(price_msat, currency, str(self.rates.get(currency, "")))
        for each in after.chain(id):
            for name, limit in after.limits(each).items():
                used = 0
                if name in SHARED and each in before.envelopes:
                    used = before.used_micro(each, name, self.now_s, after.envelopes[each]["granted_at_ms"], slack=True)
                if limit is not None and used + cost > limit:
                    return
        pytest.fail(f"{price_msat} msat fit under every limit of {self.envelopes[id]}, and were refused")

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing goes wrong any more; then ledger and node agree on what was spent, fees and all."""
        self.node.clear_faults()
        self.node.fee_msat = 0
        self.node.release()
        self.payment_timeout_s = 30.0  # on a slow machine too
        for id in CURRENCIES:
            self.relimit(id, {})
        for _ in range(MAX_CALLS):
            self.alive("one").recover()
            for wall, path, price_msat in self.pages if self.unfinished() else []:
                self.walls[wall].price_msat = price_msat
                with contextlib.suppress(requests.RequestException):
                    self.alive("one").get(self.walls[wall].url_for(path), timeout=30)
        agree_with_node(self.reader.look(), self.node, self.paid_before)

    def unfinished(self) -> bool:
        return any(row["state"] in ("open", "failed") for row in self.reader.look().payments.values())


def agree_with_node(sight: Sight, node: FakeLnd, paid_before: int) -> None:
    """What each envelope says was spent is what the node has paid since, converted payment by payment, rounded up."""
    paid = {each.payment_hash: each for each in node.payments[paid_before:] if each.status == "SUCCEEDED"}
    booked = {hash for hash, row in sight.payments.items() if row["settled_at_ms"] is not None}
    assert paid.keys() == booked, "ledger and node differ on what was paid"
    for id, envelope in sight.envelopes.items():
        mine = [row for row in sight.counted_in(id) if row["payment_hash"] in paid]
        told = [
            micro_of(paid[row["payment_hash"]].amount_msat + paid[row["payment_hash"]].fee_msat, row["currency"], row["btc_price"])
            for row in mine
        ]
        assert (envelope["reserved_micro"], envelope["settled_micro"]) == (0, sum(told)), f"{id} doesn't add up"
    sight.check()
