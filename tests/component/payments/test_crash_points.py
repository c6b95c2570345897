"""Promises 1, 2, 3 and 7 at every step: whenever the process dies, the need is paid once, the token is found, the books agree.

The steps are enumerated, not chosen (see `crash_points`): k = 1, 2, … until a purchase ends without having come to step k.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from routeweiler_sync import Ledger, Routeweiler
from routeweiler_sync.payments import lifecycle, wallet_rules
from routeweiler_sync.paywall import call_record as account
from routeweiler_sync.paywall.call_record import CallRecord
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.crash_points import FEE_MSAT, SEND, Air, Nursery, Steps, World, die, hurry, interrupt

pytestmark = pytest.mark.timeout(120)
quickly = pytest.fixture(autouse=True)(hurry)

#: Far beyond the longest purchase: an enumeration that comes here doesn't end.
MAX_STEPS = 200
#: Where something is at stake for the first time.
INTENT = "ledger open_payment: before BEGIN"
#: Where a life first learns what has become of an earlier one's payment.
QUESTION = "lnd TrackPaymentV2: before it is sent"
#: Where a token that was taken before is refused.
REFUSAL = "HTTP with a token: answered 402"
#: Steps of a plain purchase, in their order. An enumeration without one of them has missed the point.
PLAIN = [
    "HTTP bare: answered 402",
    INTENT,
    "ledger open_payment: before COMMIT",
    "ledger open_payment: after COMMIT",
    f"lnd {SEND}: before it is sent",
    f"lnd {SEND}: sent",
    f"lnd {SEND}: SUCCEEDED",
    "ledger change: before COMMIT",
    "ledger change: after COMMIT",
    "HTTP with a token: before it is sent",
    "HTTP with a token: answered 200",
    "ledger mark: after COMMIT",
    "trace: before the line",
    "trace: after the line",
]

Prepare = Callable[[World], int]


@pytest.fixture
def lnd(lnd: FakeLnd) -> FakeLnd:
    lnd.fee_msat = FEE_MSAT
    return lnd


@pytest.fixture
def air(lnd: FakeLnd) -> Iterator[Air]:
    weather = Air(lnd)
    yield weather
    weather.close()


@pytest.fixture
def worlds(tmp_path: Path, lnd: FakeLnd, paywall: Paywall, air: Air) -> Iterator[World]:
    """Fresh worlds, one for each death."""
    return (World(tmp_path / str(number), lnd, paywall, air) for number in count())


# -- the ways that a purchase may go. Each prepares a world, and tells how many payments its need costs in all. ----------------


def _plain(world: World) -> int:
    return 1


def _failed(world: World) -> int:
    world.lnd.fail_next("NO_ROUTE")
    return 1


def _dropped(when: Any) -> Prepare:
    def prepare(world: World) -> int:
        world.lnd.drop_next(when)
        return 1

    return prepare


def _lagging(world: World) -> int:
    world.paywall.faults.settle_lag = 2
    return 1


def _replaced(world: World) -> int:
    world.life(world.call)
    world.paywall.revoke_tokens()
    return 2


WAYS: dict[str, Prepare] = {
    "failed": _failed,
    "dropped before_init": _dropped("before_init"),
    "dropped after_init": _dropped("after_init"),
    "dropped in_flight": _dropped("in_flight"),
    "dropped after_paying": _dropped("after_paying"),
    "lagging": _lagging,
    "replaced": _replaced,
}
#: A step by which each way is known.
MARKS = {
    "failed": f"lnd {SEND}: FAILED",
    "dropped before_init": "ledger count_send: before COMMIT",
    "dropped after_init": f"lnd {SEND}: UNAVAILABLE",
    "dropped in_flight": f"lnd {SEND}: UNAVAILABLE",
    "dropped after_paying": f"lnd {SEND}: UNAVAILABLE",
    "lagging": REFUSAL,
    "replaced": REFUSAL,
}


def _in_the_air(world: World, *, fails: bool = False) -> int:
    """An order whose sender died as it left: lnd hears of it whenever the network likes."""
    assert world.air is not None
    world.air.storm = 1
    world.life(world.call, Steps(f"lnd {SEND}: sent"))
    if fails:
        world.lnd.fail_next("NO_ROUTE")
    return 1


def _lost(world: World, *, fails: bool) -> int:
    """The connection breaks as an order leaves; the order arrives whenever the network likes."""
    assert world.air is not None
    world.air.storm = 1
    if fails:
        world.lnd.fail_next("NO_ROUTE")
    return 1


def _held(world: World) -> int:
    """An order waits at lnd, unread; its sender is dead."""
    world.lnd.hold_orders()
    world.life(world.call, Steps(f"lnd {SEND}: sent"))
    world.delivers_at_once = True
    return 1


def _late(world: World) -> None:
    assert world.air is not None
    world.air.deliver()
    world.settle_down()


def _died(name: str) -> Prepare:
    def prepare(world: World) -> int:
        steps = Steps(name)
        world.life(world.call, steps)
        assert steps.reached
        return 1

    return prepare


Does = Callable[[World, Routeweiler], Any]


def deaths(
    worlds: Iterator[World],
    prepare: Prepare,
    does: Does = World.calls,
    *,
    since: str | None = None,
    deed: Callable[[World], None] | None = None,
    **faults: Any,
) -> list[str]:
    """Let a life that ``does`` this die (or meet ``deed``) at each of its steps, and check each time what comes of it.

    Returns the names of the steps, from the first one named ``since``.
    """
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        payments = prepare(world)
        steps = Steps(at, die if deed is None else functools.partial(deed, world), since)
        world.life(functools.partial(does, world), steps, **faults)
        try:
            world.check(payments=payments, **faults)
        except Exception as error:
            raise AssertionError(f"after step {at}, {steps.name!r}: {error!r}") from error
        if not steps.reached:
            return steps.taken
    raise AssertionError(f"no end after {MAX_STEPS} steps")


@pytest.mark.slow
def test_a_death_at_any_step_costs_nothing(worlds) -> None:
    """The machine loses power at the one moment that nobody thought of: paid twice, or paid and nothing to show for it."""
    taken = deaths(worlds, _plain)
    assert [name for name in PLAIN if name not in taken] == []
    assert sorted(PLAIN, key=taken.index) == PLAIN
    assert taken[-1] == "ledger mark: after COMMIT"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_death_at_any_step_of_a_bad_day_costs_nothing(worlds, way: str) -> None:
    """The crash comes while something else has gone wrong already, which is when crashes come."""
    taken = deaths(worlds, WAYS[way], since=REFUSAL if way == "replaced" else INTENT)
    assert MARKS[way] in taken
    assert f"lnd {SEND}: sent" in taken
    assert taken[-1] == "ledger mark: after COMMIT"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dropped before_init", "replaced"])
def test_an_interrupt_at_any_step_costs_nothing(worlds, way: str) -> None:
    """Ctrl-C in a notebook: what is left in memory must not keep the same session from the page, or have its payment untold."""
    taken = interrupts(worlds, WAYS[way], REFUSAL if way == "replaced" else INTENT)
    assert MARKS[way] in taken


def interrupts(worlds: Iterator[World], prepare: Prepare, since: str = INTENT) -> list[str]:
    """As `deaths`, by Ctrl-C, with the very session that was interrupted going on."""
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        payments = prepare(world)
        steps = Steps(at, interrupt, since)
        answers = world.life(world.calls, steps)
        try:
            world.agree(answers, payments=payments)
        except Exception as error:
            raise AssertionError(f"after an interrupt at step {at}, {steps.name!r}: {error!r}") from error
        if not steps.reached:
            return steps.taken
    raise AssertionError(f"no end after {MAX_STEPS} steps")


#: Where the first of two lives ends: before the order, with it on its way, paid but not booked, booked but not told.
FIRST_DEATHS = [
    "ledger open_payment: after COMMIT",
    f"lnd {SEND}: sent",
    f"lnd {SEND}: SUCCEEDED",
    "ledger change: before COMMIT",
    "ledger change: after COMMIT",
    "trace: before the line",
]


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST_DEATHS)
def test_a_second_death_at_any_step_of_the_next_call_costs_nothing(worlds, first: str) -> None:
    """Whatever kills a process is likely to kill the next as well: mending what a crash left must bear a crash."""
    assert deaths(worlds, _died(first), since=QUESTION if first in FIRST_DEATHS[:4] else None)[-1] == "ledger mark: after COMMIT"


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST_DEATHS)
def test_a_death_at_any_step_of_a_recovery_costs_nothing(worlds, first: str) -> None:
    """A recovery that is itself cut short must leave the rows as good as it found them."""
    taken = deaths(worlds, _died(first), does=lambda world, session: session.recover())
    assert "ledger unfinished: before reading" in taken
    assert f"lnd {SEND}: before it is sent" not in taken


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_dead_senders_order_may_arrive_at_any_step_of_the_next_call(worlds, fails: bool) -> None:
    """The order of a dead process sits in a socket's buffer, and is read at the worst of moments: beside a new purchase it pays
    twice, even where lnd has said NOT_FOUND or FAILED of it.
    """
    taken = deaths(worlds, functools.partial(_in_the_air, fails=fails), since=QUESTION, deed=_late)
    assert "lnd TrackPaymentV2: NOT_FOUND" in taken
    assert "ledger count_send: after COMMIT" in taken


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_second_death_while_an_order_is_in_the_air_costs_nothing(worlds, fails: bool) -> None:
    """As before, but the order arrives only after two deaths and a purchase: it must find nothing that it could still pay."""
    assert "ledger count_send: after COMMIT" in deaths(worlds, functools.partial(_in_the_air, fails=fails), since=QUESTION)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_lost_order_may_arrive_at_any_step_of_its_own_call(worlds, fails: bool) -> None:
    """A broken connection isn't an order that has gone: the very call that sent it must reckon with it to the end."""
    taken = deaths(worlds, functools.partial(_lost, fails=fails), since=INTENT, deed=_late)
    assert f"lnd {SEND}: UNAVAILABLE" in taken
    assert "ledger count_send: after COMMIT" in taken


@pytest.mark.slow
def test_held_orders_are_read_at_any_step_of_the_next_call(worlds) -> None:
    """lnd is stuck: orders of the dead and of the living wait in its queue, and are read together."""
    taken = deaths(worlds, _held, since=QUESTION, deed=World.deliver_held)
    assert f"lnd {SEND}: sent" in taken


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_truly_dies_costs_nothing(worlds, lnd: FakeLnd) -> None:
    """What is played above might be kinder than death: here the process ends by `os._exit`, with all that it holds open."""
    nursery = Nursery(lnd)
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        died = nursery.dies(world, at, INTENT)
        world.check()
        if not died:
            break
    nursery.close()
    assert len(PLAIN) < at < MAX_STEPS


# -- the enumeration itself: it must find what it is there to find -------------------------------------------------------------


@pytest.mark.parametrize("method", ["open_payment", "change", "count_send"])
def test_a_commit_that_isnt_made_is_found(worlds, method: str) -> None:
    """An enumeration that passes without the commits on which everything rests would pass anything."""
    prepare = functools.partial(_lost, fails=True) if method == "count_send" else _plain
    with pytest.raises(AssertionError):
        deaths(worlds, prepare, since=INTENT, lost_commits=frozenset({method}))


def _order_first(open_payment: Any, world_lnd: FakeLnd) -> Any:
    def mutant(self: Ledger, intent: Any, draw: Any) -> Any:
        with contextlib.closing(world_lnd.client()) as client:
            client.send(intent.bolt11, payment_hash=bytes.fromhex(intent.payment_hash), max_fee_msat=FEE_MSAT, timeout_s=10)
        return open_payment(self, intent, draw)

    return mutant


@pytest.mark.slow
def test_an_order_that_leaves_before_the_intent_is_found(worlds, lnd: FakeLnd) -> None:
    """The one order of things that nobody may swap: a crash in between pays, and nobody knows."""
    with (
        patch.object(Ledger, "open_payment", _order_first(Ledger.open_payment, lnd)),
        pytest.raises(AssertionError, match="payments"),
    ):
        deaths(worlds, _plain, since="HTTP bare: answered 402")


def test_sends_that_arent_counted_are_found(worlds) -> None:
    """A FAILED beside an order in the air then counts as final, and the order pays beside a new purchase."""
    uncounted = lambda ledger, payment_hash, draw=None: ledger.payment(payment_hash)  # noqa: E731
    with patch.object(Ledger, "count_send", uncounted), pytest.raises(AssertionError, match="payments"):
        deaths(worlds, functools.partial(_lost, fails=True), since=INTENT)


def test_a_preimage_that_is_forgotten_is_found(worlds) -> None:
    """Paid, booked, and nothing to show for it."""
    decide = wallet_rules.decide

    def mutant(*what: Any, **outlived: bool) -> Any:
        step = decide(*what, **outlived)
        return dataclasses.replace(step, change=dataclasses.replace(step.change, preimage=None))

    with patch.object(wallet_rules, "decide", mutant), pytest.raises(AssertionError, match="the page never came"):
        deaths(worlds, _plain, since=INTENT)


@pytest.mark.slow
def test_a_payment_marked_as_reported_too_early_is_found(worlds) -> None:
    """The trace then lacks what the ledger holds, and the two never add up again."""
    told = CallRecord._write_events

    def mutant(self: CallRecord, *outcome: Any) -> bool:
        for use in self.uses:
            self._note_reported(use.token)
        return told(self, *outcome)

    with patch.object(CallRecord, "_write_events", mutant), pytest.raises(AssertionError, match="trace"):
        deaths(worlds, _plain, since=INTENT)


@pytest.mark.slow
def test_a_claim_that_an_interrupt_leaves_behind_is_found(worlds) -> None:
    """The session would for ever believe that another of its calls is about to tell of the payment."""
    with patch.object(account, "release"), patch.object(lifecycle, "release"), pytest.raises(AssertionError):
        interrupts(worlds, _plain)
