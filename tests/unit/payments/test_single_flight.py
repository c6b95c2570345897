"""Single flight within a process: one purchase of a need at a time, its outcome shared by those who came while it was under way."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import requests

from routeweiler_sync._core.deadline import Deadline
from routeweiler_sync.errors import (
    BudgetExceededError,
    FundingError,
    InvoicePaymentError,
    PaymentDeclinedError,
    PaymentPendingError,
    RouteweilerError,
    TokenRefusedError,
)
from routeweiler_sync.payments import single_flight as flight
from routeweiler_sync.payments.single_flight import single_flight
from tests.support.ledger_builders import PATIENCE_S, at_once

KEY = ("sqlite:///l.db", "https://api.example", "s")
HASH = "ab" * 32


@pytest.fixture(autouse=True)
def no_flight_is_left_behind() -> Iterator[None]:
    """Else every need ever bought would stay in memory."""
    yield
    assert flight._flights == {}


def long() -> Deadline:
    return Deadline(PATIENCE_S)


def started(deed: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=deed, daemon=True)
    thread.start()
    return thread


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for_callers(count: int, key: tuple[str, str, str] = KEY) -> None:
    """Wait until ``count`` callers are in, or waiting for, a purchase of ``key``."""
    until = time.monotonic() + PATIENCE_S
    while flight._flights[key].users != count:
        assert time.monotonic() < until
        time.sleep(0.001)


class Flight:
    """A purchase of ``key`` that stays in the air until it is told how to end, and callers who come meanwhile."""

    def __init__(self, key: tuple[str, str, str] = KEY, *, ordered: bool = True) -> None:
        self.key, self.ordered = key, ordered
        self.in_the_air, self.land = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.own: list[BaseException | None] = []
        self.pilot = started(self._fly)

    def taken_off(self) -> Flight:
        assert self.in_the_air.wait(PATIENCE_S)
        return self

    def _fly(self) -> None:
        try:
            with single_flight(self.key, long()) as flying:
                flying.payment_hash = HASH if self.ordered else None
                self.in_the_air.set()
                assert self.land.wait(PATIENCE_S)
                if self.error is not None:
                    raise self.error
        except BaseException as error:
            self.own.append(error)

    def join(self, deeds: list[Callable[[], object]]) -> list[object]:
        """Run ``deeds`` as callers who wait, each in a thread; let the flight end; what each of them came to."""
        results: list[object] = [None] * len(deeds)

        def call(at: int) -> None:
            try:
                results[at] = deeds[at]()
            except BaseException as error:
                results[at] = error

        threads = [started(partial(call, at)) for at in range(len(deeds))]
        wait_for_callers(1 + len(deeds), self.key)
        self.land.set()
        ended(self.pilot, *threads)
        return results


def buy(bought: list[str], name: str = "") -> str:
    with single_flight(KEY, long()):
        bought.append(name)
    return "token"


def test_purchases_of_one_token_run_one_at_a_time() -> None:
    """Else threads that need the same token would all buy it, or all wait for the disk to tell them not to."""
    inside, most = [0], [0]

    def careful() -> None:
        for _ in range(50):
            with single_flight(KEY, long()):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    at_once([careful] * 8)
    assert most == [1]


@pytest.mark.parametrize("other", [("sqlite:///m.db", *KEY[1:]), (KEY[0], "https://b.example", "s"), (*KEY[:2], "t")])
def test_other_needs_do_not_wait(other: tuple[str, str, str]) -> None:
    """Else one slow payment would hold up every other page."""
    flying = Flight(other).taken_off()
    with single_flight(KEY, Deadline(0)):
        pass
    flying.join([])


ERRORS = [
    InvoicePaymentError("failed", payment_hash=HASH, failure_reason="NO_ROUTE"),
    PaymentPendingError("pending", payment_hash=HASH),
    FundingError("refused", payment_hash=HASH),
    TokenRefusedError("given up", payment_hash=HASH, spent=True),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_who_waited_shares_what_the_payment_came_to(error: RouteweilerError) -> None:
    """Else a hundred threads would each try, one after another, what has just failed: a hundred failures at the node."""
    flying, bought = Flight().taken_off(), list[str]()
    flying.error = error
    results = flying.join([partial(buy, bought)] * 5)
    assert bought == []
    assert flying.own == [error]
    for shared in results:
        assert isinstance(shared, type(error))
        assert shared is not error
        assert (shared.args, shared.payment_hash, shared.spent) == (error.args, HASH, error.spent)
        assert getattr(shared, "failure_reason", None) == getattr(error, "failure_reason", None)
    assert len({id(shared) for shared in results}) == 5


def test_a_shared_error_carries_nobody_elses_response() -> None:
    """Else a caller would be shown the answer to another's request: another page, another user's cookies."""
    flying = Flight().taken_off()
    flying.error = error = InvoicePaymentError("failed", payment_hash=HASH)
    error.response, error.request = requests.Response(), requests.PreparedRequest()  # as the first caller's adapter sets them
    (shared,) = flying.join([partial(buy, [])])
    assert isinstance(shared, InvoicePaymentError)
    assert shared.response is None
    assert shared.request is None
    assert error.response is not None


@pytest.mark.parametrize(
    "error", [None, BudgetExceededError("mine"), FundingError("can't be reached"), ValueError("a fault"), KeyboardInterrupt()]
)
def test_what_is_the_callers_own_is_not_shared(error: BaseException | None) -> None:
    """Else one session's budget, body or Ctrl-C would refuse what the others may well pay for."""
    flying, bought = Flight().taken_off(), list[str]()
    flying.error = error
    assert flying.join([partial(buy, bought)] * 3) == ["token"] * 3
    assert len(bought) == 3
    assert flying.own == ([error] if error is not None else [])


def test_who_comes_later_starts_anew() -> None:
    """Else a failure would be told for ever, though a new invoice would be paid."""
    for _ in range(2):
        with contextlib.suppress(InvoicePaymentError), single_flight(KEY, long()):
            raise InvoicePaymentError("failed", payment_hash=HASH)
    bought = list[str]()
    buy(bought)
    assert bought == [""]


def test_an_error_is_shared_only_with_those_who_were_there() -> None:
    """Else a caller would hear of a failure that was over before it came, and be kept from a purchase that would succeed."""
    over: list[bool] = []
    heard: list[tuple[int, int]] = []  # flights over when a caller came, flight whose failure it heard of

    def call() -> None:
        for _ in range(60):
            before = len(over)
            try:
                with single_flight(KEY, long()):
                    fails = len(over) % 3 != 0
                    over.append(fails)
                    if fails:
                        raise InvoicePaymentError("failed", payment_hash=f"{len(over) - 1:064x}")
            except InvoicePaymentError as error:
                heard.append((before, int(error.payment_hash or "", 16)))

    at_once([call] * 8)
    assert len(heard) > 20
    assert all(flight_heard_of >= before for before, flight_heard_of in heard)


def test_a_failure_that_is_over_is_not_told_to_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one failed payment would go on failing for as long as callers keep coming: each while the one before is being told."""
    telling, go_on, share, bought = threading.Event(), threading.Event(), flight._shared, list[str]()

    def slowly(error: RouteweilerError) -> RouteweilerError:
        telling.set()
        assert go_on.wait(PATIENCE_S)
        return share(error)

    def waits() -> None:
        with pytest.raises(InvoicePaymentError):
            buy([])

    monkeypatch.setattr(flight, "_shared", slowly)
    failing = Flight().taken_off()
    failing.error = InvoicePaymentError("failed", payment_hash=HASH)
    waiter = started(waits)
    wait_for_callers(2)
    failing.land.set()
    ended(failing.pilot)
    assert telling.wait(PATIENCE_S)
    newcomer = Flight()  # comes while the waiter is being told
    wait_for_callers(2)
    go_on.set()
    newcomer.taken_off()
    ended(waiter)
    assert newcomer.join([partial(buy, bought)]) == ["token"]  # and what comes after it hears nothing of the failure either
    assert (newcomer.own, bought) == ([], [""])


def test_the_wait_is_bounded() -> None:
    """Else a thread would hang for as long as another's payment does, whatever its payment_timeout says."""
    flying = Flight().taken_off()
    for timeout_s in (0, 0.05):
        with pytest.raises(PaymentPendingError) as late, single_flight(KEY, Deadline(timeout_s)):
            pytest.fail("two at once")
        assert (late.value.spent, late.value.payment_hash) == (None, HASH)
    bought = list[str]()
    assert flying.join([partial(buy, bought)]) == ["token"]
    assert bought == [""]


def test_a_call_from_within_a_purchase_ends_at_once_and_says_that_nothing_was_spent() -> None:
    """Else `confirm` fetching the very page that it is asked about would hang its thread, and take the purchase for paid."""
    with single_flight(KEY, long()), pytest.raises(PaymentDeclinedError) as caught, single_flight(KEY, long()):
        pytest.fail("two at once")
    assert caught.value.spent is False


def test_who_waits_for_a_purchase_that_hasnt_begun_knows_that_nothing_was_spent() -> None:
    """A person who takes long to say yes leaves nothing in doubt: "may be spent" would send the user looking for money."""
    flying = Flight(ordered=False)
    with pytest.raises(FundingError) as late, single_flight(KEY, Deadline(0.05)):
        pytest.fail("two at once")
    assert late.value.spent is False
    assert flying.join([]) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_waits_for_nobody() -> None:
    """Else a worker forked while its parent pays would wait for a thread that it hasn't got."""
    flying = Flight().taken_off()
    with single_flight((*KEY[:2], "the forking thread's own"), long()):
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                assert flight._flights == {}
                bought = list[str]()
                assert buy(bought) == "token"
                code = 0
            if code:
                os._exit(code)
    if pid == 0:  # the child has left its block as well
        os._exit(0 if flight._flights == {} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    flying.join([])


def test_a_deadline_never_has_less_than_nothing_left() -> None:
    """Else a node would be asked with a negative timeout: at once an error, or no bound at all."""
    assert Deadline(-5).left_s() == 0.0
    assert Deadline(-5).passed
    assert not long().passed
    assert 0 < long().left_s() <= PATIENCE_S
