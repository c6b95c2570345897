"""A charge at every step between 402 and 200: whenever the process dies, the request is paid once, and delivered or told.

The steps are enumerated as in `test_crash_points`. Here a call after the page is a need of its own, which is paid again: so what is
counted is what was paid before the first charge was spent.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import requests

from routeweiler_sync import TokenRefusedError
from routeweiler_sync.ledger import lookups
from routeweiler_sync.payments import presenting
from routeweiler_sync.paywall import charges
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.crash_points import FEE_MSAT, MAX_CALLS, SEND, Air, Nursery, Steps, World, die, hurry

from .test_crash_points import FIRST_DEATHS, INTENT, MAX_STEPS, QUESTION

pytestmark = pytest.mark.timeout(240)
quickly = pytest.fixture(autouse=True)(hurry)

FORMS = ("aperture", "mppx", "mppx-0.11", "pympp")
#: Steps of a purchase of a charge, in their order.
PLAIN = [
    "HTTP bare: answered 402",
    INTENT,
    "ledger open_payment: after COMMIT",
    f"lnd {SEND}: before it is sent",
    f"lnd {SEND}: SUCCEEDED",
    "ledger change: after COMMIT",
    "HTTP with a token: before it is sent",
    "HTTP with a token: answered 200",
    "ledger spend_charge: before COMMIT",
    "ledger spend_charge: after COMMIT",
    "trace: after the line",
    "ledger mark: after COMMIT",
]


class ChargeWorld(World):
    """One request, its page, and the accounts of all who take part."""

    def finish(self) -> None:
        """Call until the page comes, or the charge is told as refused; then all accounts agree."""
        self.settle_down()
        began = len(self.paywall.requests)
        spent = [row for row in self.books.ledger.payments() if row.accepted] if self.books.ledger.exists() else []
        answers = [self.life(self.call)]
        while len(answers) < MAX_CALLS and not isinstance(answers[-1], (requests.Response, TokenRefusedError)):
            answers.append(self.life(self.call))
        last = answers[-1]
        paid = [payment for payment in self.record.payments if payment.status == "SUCCEEDED"]
        assert len(paid) == 1 + len(spent), f"{len(paid)} payments, {len(spent)} of which were spent before: {answers!r}"
        assert len(spent) <= 1
        if isinstance(last, TokenRefusedError):  # its answer was lost with the process: a single use can't be had again
            assert last.spent is True
            refused = self.books.ledger.payment(last.payment_hash or "")
            assert refused is not None
            assert (refused.owed, refused.failure_code) == (True, "refused")
            served = [request.payment_hash for request in self.paywall.requests[:began] if request.paid]
            assert served[-1:] == [refused.payment_hash], "it is refused, and was never delivered"
            assert self.paywall.payment_form_is_single_use  # type: ignore[attr-defined]
        else:
            assert isinstance(last, requests.Response), f"the page never came: {answers!r}"
            assert (last.status_code, last.content) == (200, self.paywall.content)
            assert all(row.accepted for row in self.books.rows if row.settled_at is not None)
        self.life(lambda session: session.recover())
        assert self.books.ledger.unreported() == []
        assert [row.presenter for row in self.books.rows if row.presenter and row.state.value == "settled"] == []
        self.books.check()


@pytest.fixture
def lnd(lnd: FakeLnd) -> FakeLnd:
    lnd.fee_msat = FEE_MSAT
    return lnd


@pytest.fixture
def air(lnd: FakeLnd) -> Iterator[Air]:
    weather = Air(lnd)
    yield weather
    weather.close()


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paywall(lnd: FakeLnd, form: str) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=10_000, scheme="Payment", form=form) as wall:
        wall.payment_form_is_single_use = form != "aperture"  # type: ignore[attr-defined]
        yield wall


@pytest.fixture
def worlds(tmp_path: Path, lnd: FakeLnd, paywall: Paywall, air: Air) -> Iterator[ChargeWorld]:
    return (ChargeWorld(tmp_path / str(number), lnd, paywall, air) for number in count())


Prepare = Callable[[ChargeWorld], None]


def deaths(
    worlds: Iterator[ChargeWorld],
    prepare: Prepare = lambda world: None,
    *,
    since: str | None = None,
    deed: Callable[[ChargeWorld], None] | None = None,
    **faults: Any,
) -> list[str]:
    """Let a life die (or meet ``deed``) at each of its steps, and check each time what comes of it. The names of the steps."""
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        prepare(world)
        steps = Steps(at, die if deed is None else functools.partial(deed, world), since)
        world.life(world.call, steps, **faults)
        if world.air is not None and deed is None:
            world.air.deliver()
            world.settle_down()
        try:
            world.finish()
        except Exception as error:
            raise AssertionError(f"after step {at}, {steps.name!r}: {error!r}") from error
        if not steps.reached:
            return steps.taken
    raise AssertionError(f"no end after {MAX_STEPS} steps")


@pytest.mark.slow
def test_a_death_at_any_step_costs_one_payment_at_most(worlds: Iterator[ChargeWorld]) -> None:
    """Killed between 402 and 200: paid twice for one request, or paid and nothing to show for it."""
    taken = deaths(worlds)
    assert [name for name in PLAIN if name not in taken] == []
    assert sorted(PLAIN, key=taken.index) == PLAIN


def _died(name: str) -> Prepare:
    def prepare(world: ChargeWorld) -> None:
        steps = Steps(name)
        world.life(world.call, steps)
        assert steps.reached

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mppx"], indirect=True)
@pytest.mark.parametrize("first", [*FIRST_DEATHS[:5], "HTTP with a token: before it is sent"])
def test_a_second_death_at_any_step_of_the_next_call_costs_nothing(worlds: Iterator[ChargeWorld], first: str) -> None:
    """Whatever kills a process is likely to kill the next as well: what a crash left is presented under a claim of its own."""
    taken = deaths(worlds, _died(first), since=QUESTION if first in FIRST_DEATHS[:4] else "ledger claim_charge: before BEGIN")
    assert "HTTP with a token: answered 200" in taken


def _in_the_air(world: ChargeWorld) -> None:
    assert world.air is not None
    world.air.storm = 1
    world.life(world.call, Steps(f"lnd {SEND}: sent"))


def _late(world: ChargeWorld) -> None:
    assert world.air is not None
    world.air.deliver()
    world.settle_down()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["aperture"], indirect=True)
def test_a_dead_senders_order_may_arrive_at_any_step_of_the_next_call(worlds: Iterator[ChargeWorld]) -> None:
    """Its order sits in a socket's buffer, and is read at the worst of moments: beside a new purchase it would pay twice."""
    taken = deaths(worlds, _in_the_air, since=QUESTION, deed=_late)
    assert "lnd TrackPaymentV2: NOT_FOUND" in taken
    assert "ledger count_send: after COMMIT" in taken


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mppx"], indirect=True)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_truly_dies_costs_one_payment_at_most(worlds: Iterator[ChargeWorld], lnd: FakeLnd) -> None:
    """What is played above might be kinder than death: here the process ends by `os._exit`, with all that it holds open."""
    nursery = Nursery(lnd)
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        died = nursery.dies(world, at, INTENT)
        world.finish()
        if not died:
            break
    nursery.close()
    assert len(PLAIN) < at < MAX_STEPS


# -- the enumeration itself: it must find what it is there to find -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["aperture"], indirect=True)
def test_a_charge_that_isnt_looked_for_is_found(worlds: Iterator[ChargeWorld]) -> None:
    """A next call that buys without a look at what is owed pays twice."""
    with (
        patch.object(lookups, "_OWED", lookups._OWED + "AND state = 'none' "),
        pytest.raises(AssertionError, match=r"payments|unfinished"),
    ):
        deaths(worlds, since=INTENT)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["aperture"], indirect=True)
def test_a_claim_that_outlives_its_process_is_found(worlds: Iterator[ChargeWorld]) -> None:
    """Nobody could present what a dead process has paid for, so it would be paid for again."""
    with patch.object(presenting, "is_dead", lambda claimant: False), pytest.raises(AssertionError, match=r"payments|unfinished"):
        deaths(worlds, since=INTENT)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mppx"], indirect=True)
def test_a_charge_that_is_spent_before_its_answer_is_found(worlds: Iterator[ChargeWorld]) -> None:
    """A call that notes the charge as spent before it has the page loses it with the process."""
    present = charges.present

    def mutant(handler: Any, charge: Any) -> Any:
        handler.payer.ledger.spend_charge(charge.payment_hash, delivered=True)
        return present(handler, charge)

    with patch("routeweiler_sync.paywall.handler.present", mutant), pytest.raises(AssertionError):
        _agree_on_deliveries(worlds)


def _agree_on_deliveries(worlds: Iterator[ChargeWorld]) -> None:
    """Every charge that is noted as delivered was delivered."""
    for at in range(1, MAX_STEPS):
        world = next(worlds)
        before = len(world.paywall.requests)
        steps = Steps(at, die, INTENT)
        world.life(world.call, steps)
        served = {request.payment_hash for request in world.paywall.requests[before:] if request.paid}
        assert {row.payment_hash for row in world.books.rows if row.accepted} <= served
        if not steps.reached:
            return
