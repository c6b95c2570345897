"""The real tables, model-checked for charges: no order of callers, deaths and lost answers pays for more than was asked.

`tests.support.charge_model` is the world; the mutations below show that its checker has teeth.
"""

from __future__ import annotations

import random

import pytest

from routeweiler_sync.paywall.server_rules import SERVER_RULES, Rule, ServerAnswer, TokenStatus, Verdict
from tests.support import charge_model
from tests.support.charge_model import World, canonical, explore, faults, start, steps

pytestmark = pytest.mark.model

ONE = start(callers=1, offers=2, crashes=2, breaks=1, errors=1)
TWO = start(callers=2, offers=2, crashes=1, breaks=0, errors=0)


@pytest.mark.parametrize("world", [pytest.param(ONE, id="one caller"), pytest.param(TWO, id="two callers", marks=pytest.mark.slow)])
def test_no_interleaving_breaks_a_promise(world: World) -> None:
    """Else some order of deaths and lost answers would pay twice for one need, or present one charge with two requests."""
    worlds, broken = explore(world)
    assert broken == {}
    assert worlds > 10_000


@pytest.mark.parametrize("seed", range(4))
def test_no_random_walk_of_a_crowd_breaks_a_promise(seed: int) -> None:
    """Else what needs four callers and many faults to go wrong would go wrong in a fleet, and nowhere else."""
    dice = random.Random(seed)
    for _ in range(60):
        world = start(callers=4, offers=8, crashes=6, breaks=5, errors=3)
        path: list[str] = []
        while len(path) < 300:
            following = list(steps(world))
            lively = [(what, after) for what, after in following if "ends" not in what and "expires" not in what]
            if not following:
                break
            what, world = dice.choice(lively if lively and dice.random() < 0.97 else following)
            world = canonical(world)
            path.append(what)
            assert not faults(world), " → ".join(path)


def broken_by(world: World) -> set[str]:
    return set(explore(world, all_of_it=False)[1])


def test_a_call_that_doesnt_look_for_what_is_owed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pays again for what a dead call has paid for."""
    monkeypatch.setattr(charge_model, "owed", lambda world: [])
    assert "once" in broken_by(ONE)


def test_a_claim_that_holds_nobody_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls present one charge."""
    monkeypatch.setattr(charge_model, "claimable", lambda charge: True)
    assert "one call" in broken_by(TWO)


def test_an_error_that_is_taken_for_the_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A charge is noted as spent which the server has never had."""
    monkeypatch.setitem(SERVER_RULES, (TokenStatus.CHARGE, ServerAnswer.FAILED), Rule(verdict=Verdict.SPENT, why="a mutation"))
    assert "delivered" in broken_by(ONE)


def test_a_refusal_that_is_taken_for_an_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses what was paid for gets a second payment for the same need."""
    monkeypatch.setitem(SERVER_RULES, (TokenStatus.CHARGE, ServerAnswer.PRICED), Rule(verdict=Verdict.USED_UP, why="a mutation"))
    assert broken_by(ONE) & {"once", "delivered"}
