"""What every ledger promises of envelopes that lie in others. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest

from routeweiler_sync.budgets.schema import MAX_ID_BYTES, MAX_LEVELS
from routeweiler_sync.errors import (
    BudgetError,
    BudgetExceededError,
    EnvelopeExpiredError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    LedgerError,
    PolicyDeniedError,
)
from routeweiler_sync.ledger import envelopes as envelopes_module
from routeweiler_sync.ledger.ledger import ABANDONED, MAX_ORIGIN_BYTES, Ledger
from routeweiler_sync.ledger.spending import Spending

from .ledger_builders import NOON_S, ORIGIN, Clock, at_once, die, draw, hash_of, held_msat, intent, limits, put, settle
from .nested_walk import Walk

Make = Callable[..., Ledger]
TEAM = limits("team", cap_minor_units=30)
SCOUT = limits("scout", per_call_minor_units=15, parent=TEAM)
#: Sorts before its parent, as "scout" does, and after "scout".
SMITH = limits("smith", cap_minor_units=25, parent="team")


def _innermost(real: Callable[..., Any]) -> Callable[..., Any]:
    """A version that forgets the outer envelopes: the chain has but its first row."""
    return lambda tx, chain, *rest: real(tx, chain[:1], *rest)


#: Wrong versions: a name in `envelopes`, what is made of it, and the seed of a short walk that meets it.
WRONG: Mapping[str, tuple[str, Callable[[Any], Any], int]] = {
    "outer limits are not looked at": ("fit", _innermost, 1),
    "outer limits are not looked at for a payment that is taken over": ("check_fits", _innermost, 5),
    "nothing is reserved in the outer envelopes": ("reserve", _innermost, 0),
    "what is spent or returned is not in the outer envelopes": ("CHAIN", lambda real: "(SELECT id FROM envelopes WHERE id = ?)", 0),
    "a payment that is taken over stays reserved where it was": ("release", lambda real: lambda tx, row: None, 0),
    "fees are not counted": (
        "spend",
        lambda real: lambda tx, row, change, now_s: real(tx, row, replace(change, fee_msat=0), now_s),
        0,
    ),
    "a new fee limit is not reserved": ("fit", lambda real: lambda *given: (real(*given)[0], given[3].amount_msat * 1_000), 0),
}


class NestedContract:
    """What is spent from an inner envelope counts in all that it lies in, by one transaction, and all limits hold."""

    def test_both_limits_hold_and_both_count(self, make_ledger: Make) -> None:
        """Else ten agents with a budget each would spend ten times what was meant for all of them."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(SCOUT))
        assert (held_msat(ledger, "scout"), held_msat(ledger, "team")) == ((11_000, 0), (11_000, 0))
        settle(ledger, 1, fee_msat=500)
        assert (held_msat(ledger, "scout"), held_msat(ledger, "team")) == ((0, 10_500), (0, 10_500))
        ledger.open_payment(intent(2), draw(SMITH))
        assert (held_msat(ledger, "smith"), held_msat(ledger, "team")) == ((11_000, 0), (11_000, 10_500))
        with pytest.raises(BudgetExceededError, match="of envelope 'team'"):
            ledger.open_payment(intent(3), draw(SCOUT))
        with pytest.raises(BudgetExceededError, match="of envelope 'scout'"):
            ledger.open_payment(intent(4, amount_msat=16_000), draw(SCOUT))
        die(ledger, 2)
        assert (held_msat(ledger, "smith"), held_msat(ledger, "team")) == ((0, 0), (0, 10_500))
        row = ledger.envelope("scout")
        assert row.parent is not None
        assert (row.parent.id, row.limits.parent_id, row.headroom_minor_units) == ("team", "team", row.parent.headroom_minor_units)
        assert {each.id: each.limits.parent_id for each in ledger.envelopes()} == {"scout": "team", "smith": "team", "team": None}

    def test_the_fee_shrinks_to_what_the_outermost_envelope_leaves(self, make_ledger: Make) -> None:
        """Else routing would pass the limit that the price keeps."""
        ledger = make_ledger()
        inner = limits("inner", parent=limits("middle", parent=limits("outer", cap_minor_units=11)))
        row, _ = ledger.open_payment(intent(1, fee_cap_msat=5_000), draw(inner))
        assert row.max_fee_msat == 1_000
        assert [held_msat(ledger, id)[0] for id in ("inner", "middle", "outer")] == [11_000] * 3

    def test_all_rules_of_the_outer_envelope_hold(self, make_ledger: Make) -> None:
        """Else an agent could pay whom the budget for all forbids, or go on after that was frozen or has ended."""
        clock = Clock()
        ledger = make_ledger(clock)
        elsewhere = limits("a", parent=limits("t", allowed_origins_glob=["https://other.example"]))
        with pytest.raises(PolicyDeniedError, match="'t'"):
            ledger.open_payment(intent(1), draw(elsewhere))
        ledger.open_payment(intent(2), draw(SCOUT))
        ledger.freeze("team")
        for deed in (lambda: ledger.open_payment(intent(3), draw(SCOUT)), lambda: ledger.count_send(hash_of(2))):
            with pytest.raises(EnvelopeFrozenError, match="'team'"):
                deed()
        assert (ledger.envelope("scout").frozen, ledger.envelope("scout").frozen_id) == (False, "team")
        ledger.thaw("team")
        assert ledger.count_send(hash_of(2)) is not None
        short = limits("b", parent=limits("u", ttl_seconds=60))
        ledger.open_payment(intent(4), draw(short))
        clock.now_s += 61
        with pytest.raises(EnvelopeExpiredError, match="'u'"):
            ledger.open_payment(intent(5), draw(short))
        assert ledger.open_payment(intent(5), draw(short, session_started_s=clock.now_s))[1]

    def test_an_envelope_stays_where_it_lies(self, make_ledger: Make) -> None:
        """Else a program that brings its limits without the parent would free itself of the limit for all."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(SCOUT))
        ledger.open_payment(intent(2), draw(limits("scout", cap_minor_units=10**6)))
        assert held_msat(ledger, "team") == (22_000, 0)
        for other in (limits("elsewhere"), "team two"):
            ledger.set_limits("team two", lambda _: limits("team two"))
            with pytest.raises(BudgetError, match="lies in 'team'"):
                ledger.open_payment(intent(3), draw(limits("scout", parent=other)))
            with pytest.raises(BudgetError, match="lies in no other"):
                ledger.open_payment(intent(3), draw(limits("team", parent=other)))
        with pytest.raises(BudgetError, match="lies in 'team'"):
            ledger.set_limits("scout", lambda known: replace(known or SCOUT, parent=None))
        assert {each.id for each in ledger.envelopes()} == {"scout", "team", "team two"}, "what was refused has left no envelope"
        assert ledger.set_limits("scout", lambda known: replace(known or SCOUT, per_day_minor_units=5)).limits.parent_id == "team"

    def test_before_anything_counts_an_envelope_may_be_moved(self, make_ledger: Make) -> None:
        """Else a wrong name at the first try could never be mended."""
        ledger = make_ledger()
        for id in ("scout", "team", "other"):
            ledger.set_limits(id, lambda _, id=id: limits(id, cap_minor_units=30))  # type: ignore[misc]
        for parent in ("other", None, "team"):
            row = ledger.set_limits("scout", lambda known, parent=parent: replace(known or SCOUT, parent=parent))  # type: ignore[misc]
            assert row.limits.parent_id == parent
        ledger.open_payment(intent(1), draw("scout"))
        assert (held_msat(ledger, "team"), held_msat(ledger, "other")) == ((11_000, 0), (0, 0))

    def test_no_envelope_lies_in_itself_in_one_that_is_missing_or_of_another_currency(self, make_ledger: Make) -> None:
        """Else a purchase would never end, or count nowhere."""
        ledger = make_ledger()
        with pytest.raises(EnvelopeNotFoundError, match="'nowhere'"):
            ledger.open_payment(intent(1), draw(limits("a", parent="nowhere")))
        with pytest.raises(EnvelopeNotFoundError, match="'nowhere'"):
            ledger.set_limits("a", lambda _: limits("a", parent="nowhere"))
        ledger.set_limits("a", lambda _: limits("a"))
        ledger.set_limits("b", lambda _: limits("b", parent="a"))
        with pytest.raises(BudgetError, match="itself"):
            ledger.set_limits("a", lambda _: limits("a", parent="b"))
        ledger.set_limits("cents", lambda _: limits("cents", cap_currency="usd"))
        with pytest.raises(BudgetError, match="counts in"):
            ledger.open_payment(intent(1), draw(limits("c", parent="cents")))
        deep: Any = None
        for n in range(MAX_LEVELS):
            deep = limits(f"level {n}", parent=deep)
            ledger.set_limits(deep.id, lambda _, deep=deep: replace(deep, parent=deep.parent_id))  # type: ignore[misc]
        with pytest.raises(BudgetError, match=f"more than {MAX_LEVELS - 1}"):
            ledger.set_limits("deepest", lambda _: limits("deepest", parent=deep.id))
        for wrong in ({"parent": "e"}, {"parent": 5}, {"parent": deep}, {"parent": limits("p", cap_currency="eur")}):
            with pytest.raises(ValueError, match="'e'"):
                limits(**wrong)
        assert {each.id for each in ledger.envelopes()} == {"a", "b", "cents", *(f"level {n}" for n in range(MAX_LEVELS))}
        with pytest.raises(BudgetError):
            ledger.in_force(limits("cents", cap_currency="usd", parent="a"), session_started_s=NOON_S)

    def test_no_move_puts_those_within_too_deep(self, make_ledger: Make) -> None:
        """Else no envelope of the ledger could be read any more, and nothing be bought from those that lie too deep."""
        ledger = make_ledger()
        for n in range(MAX_LEVELS):
            ledger.set_limits(f"level {n}", lambda _, n=n: limits(f"level {n}", parent=f"level {n - 1}" if n else None))  # type: ignore[misc]
        ledger.set_limits("around", lambda _: limits("around"))
        for deed in (
            lambda: ledger.set_limits("level 0", lambda known: replace(known or TEAM, parent="around")),
            lambda: ledger.open_payment(intent(1), draw(limits("level 0", parent=limits("new")))),
            lambda: ledger.rehearse(intent(1), draw(limits("level 0", parent="around"))),
            lambda: ledger.in_force(limits("level 0", parent="around"), session_started_s=NOON_S),
        ):
            with pytest.raises(BudgetError, match=f"more than {MAX_LEVELS}"):
                deed()
        assert len(list(ledger.envelopes())) == MAX_LEVELS + 1
        ledger.set_limits(f"level {MAX_LEVELS - 1}", lambda known: replace(known or TEAM, parent="around"))
        ledger.set_limits("level 0", lambda known: replace(known or TEAM, parent="around"))
        ledger.open_payment(intent(2), draw(f"level {MAX_LEVELS - 2}"))
        assert held_msat(ledger, "around") == (11_000, 0)

    def test_the_advice_names_the_limit_that_refused(self, make_ledger: Make) -> None:
        """Else who raises the limits of the agent, or those of the environment, would be refused for ever by the team's."""
        ledger = make_ledger()
        ledger.set_limits("the team", lambda _: limits("the team", per_day_minor_units=12))
        ledger.set_limits("default", lambda _: limits("default", per_call_minor_units=11, parent="the team"))
        ledger.open_payment(intent(1), draw("default"))
        with pytest.raises(BudgetExceededError, match="'the team'") as refused:
            ledger.open_payment(intent(2), draw("default"))
        assert "routeweiler-sync budget set 'the team' --per-day N, or wait" in refused.value.shell_advice
        ledger.open_payment(intent(3), draw(limits("alone")))
        with pytest.raises(BudgetExceededError, match="'the team'") as refused:
            ledger.count_send(hash_of(3), draw("default"))
        assert "routeweiler-sync budget set 'the team' --per-day N, or wait" in refused.value.shell_advice
        with pytest.raises(BudgetExceededError, match="'default'") as refused:
            ledger.open_payment(intent(4, amount_msat=12_000), draw("default"))
        assert refused.value.shell_advice == "Raise the limit in ROUTEWEILER_BUDGET."

    def test_a_payment_that_another_agent_takes_over_moves_whole(self, make_ledger: Make) -> None:
        """Else the team would count it twice, or an agent's envelope would hold for ever what another has paid."""
        ledger = make_ledger()
        ledger.open_payment(intent(1, agent_id="scout"), draw(SCOUT))
        taken = replace(draw(SMITH), agent_id="smith")
        assert ledger.count_send(hash_of(1), taken) is not None
        assert [held_msat(ledger, id) for id in ("scout", "smith", "team")] == [(0, 0), (11_000, 0), (11_000, 0)]
        row = settle(ledger, 1, fee_msat=1_000)
        assert (row.envelope_id, row.agent_id) == ("smith", "smith")
        assert [held_msat(ledger, id) for id in ("scout", "smith", "team")] == [(0, 0), (0, 11_000), (0, 11_000)]
        ledger.open_payment(intent(2), draw(limits("alone")))
        with pytest.raises(BudgetExceededError, match="'team'"):
            ledger.open_payment(
                intent(3, amount_msat=9_500, fee_cap_msat=500, fee_is_fixed=True), draw(limits("team", cap_minor_units=20))
            )
        with pytest.raises(BudgetExceededError, match="'team'"):
            ledger.count_send(hash_of(2), draw(limits("smith", parent=limits("team", cap_minor_units=21))))
        assert held_msat(ledger, "alone") == (11_000, 0)

    def test_an_abandoned_payment_that_is_paid_after_all_counts_in_all(self, make_ledger: Make) -> None:
        """Else the money would be gone, and the budget for all would allow it again."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(SCOUT))
        put(ledger, hash_of(1), ABANDONED)
        assert [held_msat(ledger, id) for id in ("scout", "team")] == [(0, 0)] * 2
        settle(ledger, 1)
        assert [held_msat(ledger, id) for id in ("scout", "team")] == [(0, 10_000)] * 2

    def test_agents_that_buy_at_once_share_what_is_left(self, make_ledger: Make) -> None:
        """Else each of them would find the room that only one of them can have, or two would wait for each other for ever."""
        agents = [limits(id, parent=limits("team", cap_minor_units=55)) for id in ("a", "m", "t", "u", "z")]
        ledgers = [make_ledger() for _ in range(len(agents) * 2)]

        def buy(n: int) -> int:
            try:
                return int(ledgers[n].open_payment(intent(n), draw(agents[n % len(agents)]))[1])
            except BudgetExceededError:
                return 0

        bought = at_once([lambda n=n: buy(n) for n in range(len(ledgers))])  # type: ignore[misc]
        assert sum(bought) == 5
        opened = [n for n, is_new in enumerate(bought) if is_new]
        at_once([lambda n=n: settle(ledgers[n], n, fee_msat=n) for n in opened])  # type: ignore[misc]
        assert held_msat(ledgers[0], "team") == (0, sum(held_msat(ledgers[0], each.id)[1] for each in agents))

    def test_payments_that_move_both_ways_at_once_do_not_wait_for_ever(self, make_ledger: Make) -> None:
        """Else two agents that carry on each other's payments would each hold what the other waits for."""
        pairs = [("a", "z"), ("z", "a"), ("a", "u"), ("u", "z")]
        team = limits("team")
        ledgers = [make_ledger() for _ in pairs]
        for n, (begun, _) in enumerate(pairs):
            ledgers[0].open_payment(intent(n), draw(limits(begun, parent=team)))
        for _ in range(3):
            at_once(
                [
                    lambda n=n, to=to: ledgers[n].count_send(hash_of(n), draw(limits(to, parent=team)))  # type: ignore[misc]
                    for n, (_, to) in enumerate(pairs)
                ]
            )
        assert held_msat(ledgers[0], "team") == (44_000, 0)
        assert [held_msat(ledgers[0], id)[0] for id in ("a", "u", "z")] == [11_000, 11_000, 22_000]

    def test_what_each_agent_has_spent(self, make_ledger: Make) -> None:
        """Else nobody would know which of the agents it was."""
        clock = Clock()
        ledger = make_ledger(clock)
        assert ledger.spending_by_agent() == {}
        for n, (envelope, agent_id) in enumerate([(SCOUT, "s"), (SCOUT, "s"), (limits("solo"), "o"), (limits("solo"), None)]):
            ledger.open_payment(intent(n, agent_id=agent_id, amount_msat=10_000 - n), draw(envelope))
            settle(ledger, n, fee_msat=n)
            clock.now_s += 10
        ledger.open_payment(intent(9, agent_id="s", amount_msat=1_000), draw(SCOUT))
        s, o = Spending(total_msat=20_000, fees_msat=1, payments=2), Spending(total_msat=10_000, fees_msat=2, payments=1)
        assert list(ledger.spending_by_agent().items()) == [("s", s), (None, replace(o, fees_msat=3)), ("o", o)]
        assert ledger.spending_by_agent(envelope="team") == ledger.spending_by_agent(envelope="scout") == {"s": s}
        assert ledger.spending_by_agent(envelope="solo").keys() == {None, "o"}
        assert ledger.spending_by_agent(since=timedelta(seconds=15)).keys() == {None}
        with pytest.raises(EnvelopeNotFoundError):
            ledger.spending_by_agent(envelope="nobody's")
        assert next(ledger.payments(newest_first=True)).agent_id == "s"
        assert sum(each.total_msat for each in ledger.spending_by_agent().values()) == ledger.spending(origin=ORIGIN).total_msat

    def test_what_is_opened_can_be_settled_however_long_its_names_are(self, make_ledger: Make) -> None:
        """Else a payment that was made couldn't be booked: names stand together in an index, which holds only so much."""
        ledger, dice = make_ledger(), random.Random(0)
        lengths = (MAX_ORIGIN_BYTES - len("https://"), MAX_ID_BYTES, MAX_ID_BYTES)
        host, id, agent_id = ("".join(dice.choices(string.ascii_letters, k=length)) for length in lengths)
        ledger.open_payment(intent(1, origin=f"https://{host}", agent_id=agent_id), draw(limits(id)))
        assert settle(ledger, 1).agent_id == agent_id
        for deed in (ledger.open_payment, ledger.rehearse):
            with pytest.raises(LedgerError, match="name of the server"):
                deed(intent(2, origin=f"https://{host}x", agent_id=agent_id), draw(limits(id)))

    @pytest.mark.parametrize("seed", range(2))
    def test_no_walk_over_nested_envelopes_passes_a_limit(self, make_ledger: Make, url: str, seed: int) -> None:
        """Else some order of purchases, fees, failures and agents that take over would spend more than one of the limits."""
        make_ledger().unfinished()
        Walk(url, seed).run()

    @pytest.mark.parametrize("wrong", WRONG)
    def test_the_walk_notices_a_wrong_version(self, make_ledger: Make, url: str, wrong: str) -> None:
        """Else the walk might be blind: each of these versions lets an outer envelope be overspent, or its totals drift."""
        make_ledger().unfinished()
        name, version, seed = WRONG[wrong]
        real = getattr(envelopes_module, name)
        with patch.object(envelopes_module, name, version(real)), pytest.raises((AssertionError, LedgerError)):
            Walk(url, seed).run(steps=20)
