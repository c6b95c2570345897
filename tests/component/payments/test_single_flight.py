"""One payment for a crowd that comes at once and cold, whoever of it dies, is refused, hangs or thinks long. And a quiet wait."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    FundingError,
    Ledger,
    PaymentState,
    Policy,
    PolicyDeniedError,
    PolicyRule,
    RouteweilerError,
    RuleMatch,
)
from routeweiler_sync.ledger.sqlite import SqliteStore, SqliteTransaction
from routeweiler_sync.payments import single_flight as flight
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.concurrent_buyers import Job, Outcome, crowd, get_at_once, outcome_of
from tests.support.ledger_builders import PATIENCE_S, at_once
from tests.torture import cold_starts

THREADS, PROCESSES, THREADS_EACH = 64, 8, 8
#: Long enough for a cold crowd to have its purchase begun on a slow machine.
SHORT_TIMEOUT_S = 5.0
#: What a call may take beyond its payment_timeout: two HTTP requests on a machine that does much else.
SLACK_S = 30.0
#: How long a crowd is watched while it waits, and what it may look at the ledger meanwhile: soon at first, then patiently.
WATCHED_S = 3.0
QUICK_LOOKS, PATIENT_LOOK_S, LEFT_ALONE_S = 6, 0.25, 1.0


@pytest.fixture
def job(paywall: Paywall, books: Books, lnd: FakeLnd) -> Callable[..., Job]:
    def make(**changes: Any) -> Job:
        values: dict[str, Any] = {
            "url": paywall.url,
            "ledger": str(books.ledger_path),
            "trace": str(books.trace_path),
            "node": lnd.environ,
            "threads": THREADS_EACH,
            "payment_timeout_s": 60.0,
        }
        return Job(**values | changes)

    return make


@contextmanager
def in_threads(deed: Callable[[], Outcome], count: int) -> Iterator[list[Future[Outcome]]]:
    """``count`` callers in threads of this process, begun."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(deed) for _ in range(count)]


class CountingStore(SqliteStore):
    """Counts its transactions. With a ``name`` it passes for another process's opener of the same file."""

    def __init__(self, path: Any, name: str | None = None) -> None:
        super().__init__(path)
        self.transactions = 0
        self._name = name

    @property
    def url(self) -> str:
        return super().url if self._name is None else f"{super().url}#{self._name}"

    @contextmanager
    def transaction(self, **kwargs: Any) -> Iterator[SqliteTransaction]:
        self.transactions += 1
        with super().transaction(**kwargs) as tx:
            yield tx

    @contextmanager
    def read(self) -> Iterator[SqliteTransaction]:
        self.transactions += 1
        with super().read() as tx:
            yield tx


def wait_for_flights(*callers: int) -> None:
    """Wait until there are as many purchases under way in this process as numbers given, each with so many callers.

    They have gathered for a page, or else for a scope.
    """
    until_s = time.monotonic() + PATIENCE_S

    def users(*, of_pages: bool) -> list[int]:
        flights = list(flight._flights.items())
        return sorted(each.users for key, each in flights if key[2].startswith("page ") is of_pages)

    while sorted(callers) not in (users(of_pages=True), users(of_pages=False)):
        assert time.monotonic() < until_s, "the crowd doesn't gather"
        time.sleep(0.005)


def succeeded(lnd: FakeLnd) -> int:
    return sum(payment.status == "SUCCEEDED" for payment in lnd.payments)


def kinds(outcomes: Iterable[Outcome]) -> Counter[str | int | None]:
    return Counter(each.status or each.error for each in outcomes)


# -- cold starts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_sessions", [False, True], ids=["one session", "a session each"])
def test_64_threads_that_come_at_once_pay_once(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, own_sessions: bool
) -> None:
    """Else a program that fans out over threads pays for its first page as many times as it has threads."""
    sessions = [make_session() for _ in range(THREADS)] if own_sessions else [make_session()] * THREADS
    statuses = at_once([lambda each=each: each.get(paywall.url).status_code for each in sessions])
    assert statuses == [200] * THREADS
    assert [payment.sends for payment in lnd.payments] == [1]
    books.check()


@pytest.mark.slow
def test_8_processes_of_8_threads_that_come_at_once_pay_once(job, lnd: FakeLnd, books: Books) -> None:
    """Else workers of one machine that begin together each buy the same token: the ledger alone can keep them from it."""
    with crowd(job(), processes=PROCESSES) as buyers:
        for each in buyers:
            each.go()
        outcomes = [outcome for each in buyers for outcome in each.heard()]
    assert kinds(outcomes) == {200: PROCESSES * THREADS_EACH}
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("faults", [False, True], ids=["a good day", "bad days"])
def test_cold_starts_round_after_round(tmp_path: Path, faults: bool) -> None:
    """Else the one race in a hundred that pays twice is found by a user. `python -m tests.torture.cold_starts` does a thousand."""
    done = cold_starts.torture(tmp_path, rounds=10, threads=THREADS, seed=1, faults=faults)
    assert [str(each) for each in done if not each.right] == []
    assert len(done) == 10
    assert sum(each.requests for each in done) == 10 * THREADS


@pytest.mark.slow
@pytest.mark.parametrize(("guarded", "changed"), [("scope", "target"), ("target", "scope")])
def test_the_database_itself_refuses_a_second_purchase_of_the_same_token(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, guarded: str, changed: str
) -> None:
    """Else all would hang on our looking before we write, which keeps nobody from it on a database where two can look at once."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=1.0)
    assert outcome_of(lambda: impatient.get(paywall.url)).error == "PaymentPendingError"
    with closing(sqlite3.connect(books.ledger_path)) as database:
        database.row_factory = sqlite3.Row
        (row,) = [dict(each) for each in database.execute("SELECT * FROM payments")]
        another = row | {"payment_hash": "ab" * 32, changed: "another"}
        insert = f"INSERT INTO payments ({', '.join(another)}) VALUES ({', '.join('?' * len(another))})"
        for state in ("open", "failed", "settled"):
            with pytest.raises(sqlite3.IntegrityError, match=rf"origin, payments\.{guarded}"):
                database.execute(insert, tuple((another | {"state": state}).values()))
        database.execute(insert, tuple((another | {"scope": "another need", "target": "another page"}).values()))
        database.rollback()


# -- the buyer dies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("order", ["never sent", "in the wire", "in flight", "paid and not heard of"])
def test_a_buyer_killed_under_its_order_is_outlived_by_those_who_wait(
    job, session, paywall: Paywall, lnd: FakeLnd, books: Books, order: str
) -> None:
    """Else one kill -9 costs every other worker its page, or the user a second payment. The dead can't be asked: its node is."""
    if order == "in the wire":
        lnd.hold_orders()
    elif order != "never sent":
        lnd.hang_next()
    with (
        crowd(job(), processes=1) as (waiters,),
        crowd(job(freezes=order == "never sent"), processes=1) as (buyer,),
    ):
        buyer.go()
        if order == "never sent":
            assert buyer.heard() == "frozen"
        else:
            lnd.wait_for(lambda node: node.held_orders == 1 if order == "in the wire" else bool(node.payments))
        waiters.go()
        with in_threads(lambda: outcome_of(lambda: session.get(paywall.url)), THREADS_EACH) as here:
            paywall.wait_for(lambda: len(paywall.requests) >= 3 * THREADS_EACH, PATIENCE_S)
            buyer.kill()
            if order == "in the wire":
                lnd.wait_for(lambda node: node.held_orders > 1, PATIENCE_S)  # one who waited has sent the same invoice again
            elif order == "in flight":
                lnd.wait_for(lambda node: node.calls["TrackPaymentV2"] >= 2, PATIENCE_S)  # both processes ask how it goes
            lnd.deliver_orders()
            lnd.release()
            outcomes = [*(each.result(PATIENCE_S) for each in here), *waiters.heard()]
    assert kinds(outcomes) == {200: 2 * THREADS_EACH}
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


# -- the payment hangs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wait_ends_with_its_payment_timeout_and_the_purchase_goes_on(
    job, make_session, session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a payment that hangs for a day hangs the whole program, or is given up and made anew."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=SHORT_TIMEOUT_S)
    with crowd(job(payment_timeout_s=SHORT_TIMEOUT_S), processes=1) as (others,):
        others.go()
        outcomes = [*get_at_once(impatient, paywall.url, THREADS), *others.heard()]
    (row,) = books.rows
    assert kinds(outcomes) == {"PaymentPendingError": THREADS + THREADS_EACH}
    assert {(each.spent, each.payment_hash) for each in outcomes} == {(None, row.payment_hash)}
    assert max(each.lasted_s for each in outcomes) < SHORT_TIMEOUT_S + SLACK_S
    assert (row.state, row.sends_ever, row.reserved_micro > 0) == (PaymentState.OPEN, 1, True)
    books.check(finished=False)
    lnd.release()
    assert session.get(paywall.url).status_code == 200
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("buyer", ["the same process", "another process"])
def test_a_waiter_that_times_out_is_told_which_payment_is_open(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, buyer: str
) -> None:
    """Else only the call that sent the order could say what to look for at the node; in the others' traces it has no name."""
    lnd.hang_next()
    here = Ledger(CountingStore(books.ledger_path))
    there = here if buyer == "the same process" else Ledger(CountingStore(books.ledger_path, "another process"))
    buying, patient, impatient = (
        make_session(ledger=there),
        make_session(ledger=here),
        make_session(ledger=here, payment_timeout=1.0),
    )
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(outcome_of, lambda: buying.get(paywall.url))]
        lnd.wait_for(lambda node: bool(node.payments))
        calls += [pool.submit(outcome_of, lambda: patient.get(paywall.url))]
        wait_for_flights(*([2] if here is there else [1, 1]))
        late = outcome_of(lambda: impatient.get(paywall.url))
        lnd.release()
        assert kinds(call.result(PATIENCE_S) for call in calls) == {200: 2}
    (payment,) = lnd.payments
    assert (late.error, late.spent, late.payment_hash) == ("PaymentPendingError", None, payment.payment_hash)
    (told,) = [line["outcome"]["error"] for line in books.lines if line["outcome"]["error"]]
    assert payment.payment_hash in told["message"]
    books.check()


# -- the wait is quiet ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_those_who_wait_hammer_neither_the_ledger_nor_the_node(make_session, paywall: Paywall, books: Books) -> None:
    """Else a hundred waiters would keep disk and node busy for as long as a payment takes, and slow down what they wait for.

    Three crowds wait for one payment: in its own process; in another; and in one that has another node, which can't be asked.
    """
    lnd, crowd_size = books.lnd, 24
    stores = [CountingStore(books.ledger_path, name) for name in (None, "another process", "another node")]
    with FakeLnd() as other_node:
        sessions = [
            make_session(ledger=Ledger(store), funding=[node.funding()])
            for store, node in zip(stores, (lnd, lnd, other_node), strict=True)
        ]
        lnd.hang_next()
        with ThreadPoolExecutor(3 * crowd_size) as pool:
            first = pool.submit(sessions[0].get, paywall.url)
            lnd.wait_for(lambda node: bool(node.payments))
            calls = [pool.submit(each.get, paywall.url) for each in sessions for _ in range(crowd_size - (each is sessions[0]))]
            wait_for_flights(crowd_size, crowd_size, crowd_size)
            before = [store.transactions for store in stores]
            calls_before = lnd.calls.total(), other_node.calls.total()
            began_s = time.monotonic()
            time.sleep(WATCHED_S)  # not to be in time for anything: what happens meanwhile is what is measured
            looks = [store.transactions - was for store, was in zip(stores, before, strict=True)]
            asked = lnd.calls.total() - calls_before[0], other_node.calls.total() - calls_before[1]
            lasted_s = time.monotonic() - began_s
            lnd.release()
            assert {call.result(PATIENCE_S).status_code for call in [first, *calls]} == {200}
        own, elsewhere, other = looks
        assert own == 0, "whoever waits in the buyer's own process is woken, and looks at nothing"
        assert elsewhere <= QUICK_LOOKS + LEFT_ALONE_S / PATIENT_LOOK_S + 1, "one of them looks, for a moment; then the node tells"
        assert other <= 2 * (QUICK_LOOKS + 1) + lasted_s / PATIENT_LOOK_S, "one of them looks, patiently"
        assert asked[0] <= 3, "is it up, who is it, how does the payment go: asked once, by one of them"
        assert asked[1] <= 2, "another node has nothing to tell"
    assert lnd.calls["SendPaymentV2"] == 1
    assert other_node.calls["SendPaymentV2"] + other_node.calls["TrackPaymentV2"] == 0
    books.check()


# -- refusals while others wait ---------------------------------------------------------------------------------------------------

DENIED = Policy(rules=[PolicyRule("none of it", when=RuleMatch(url_matches="*"), deny=True)])
POOR = BudgetEnvelope("poor", per_call_minor_units=5)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"budget_envelope": POOR}, BudgetExceededError), ({"policy": DENIED}, PolicyDeniedError)],
    ids=["budget", "policy"],
)
def test_where_all_are_refused_each_has_its_own_refusal(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, settings: dict[str, Any], kind: type[RouteweilerError]
) -> None:
    """Else who waits for a purchase that is refused would hang, or be shown the answer to another's request."""
    session = make_session(**settings)
    errors: list[RouteweilerError] = []

    def refused() -> None:
        with pytest.raises(kind) as caught:
            session.get(paywall.url)
        errors.append(caught.value)

    at_once([refused] * 32)
    assert {error.spent for error in errors} == {False}
    assert len({id(error.response) for error in errors}) == len({id(error.request) for error in errors}) == 32
    assert lnd.payments == []
    books.check()


def test_a_callers_refusal_does_not_stop_another_caller_from_paying(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else the poorest session of a program would keep all others from their page."""
    asked, gathered = threading.Event(), threading.Event()

    def confirm(quote: Any) -> bool:
        asked.set()
        return gathered.wait(PATIENCE_S)

    poor, rich = make_session(budget_envelope=POOR, confirm=confirm), make_session()
    with in_threads(lambda: outcome_of(lambda: poor.get(paywall.url)), 1) as (refused,):
        assert asked.wait(PATIENCE_S)
        with in_threads(lambda: outcome_of(lambda: rich.get(paywall.url)), 16) as served:
            wait_for_flights(17)
            gathered.set()
            assert kinds(call.result(PATIENCE_S) for call in served) == {200: 16}
        assert refused.result(PATIENCE_S).error == "BudgetExceededError"
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


def test_a_slow_yes_is_asked_for_once_and_nobodys_money_is_in_doubt_meanwhile(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a person would be asked once for each thread; or who can't wait for the answer would look for money that never moved."""
    asked, yes = threading.Event(), threading.Event()
    quotes: list[Any] = []

    def confirm(quote: Any) -> bool:
        quotes.append(quote)
        asked.set()
        return yes.wait(PATIENCE_S)

    asking, impatient = make_session(confirm=confirm), make_session(payment_timeout=0.2)
    with in_threads(lambda: outcome_of(lambda: asking.get(paywall.url)), 16) as calls:
        assert asked.wait(PATIENCE_S)
        wait_for_flights(16)
        with pytest.raises(FundingError) as caught:
            impatient.get(paywall.url)
        assert caught.value.spent is False
        assert lnd.payments == []
        yes.set()
        assert kinds(call.result(PATIENCE_S) for call in calls) == {200: 16}
    assert len(quotes) == 1
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


# -- the payment fails ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_who_waited_for_a_payment_share_its_failure(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else each of a crowd would have its own payment fail at the node, one after another, and wait for all before it."""
    lnd.hang_next()
    with in_threads(lambda: outcome_of(lambda: session.get(paywall.url)), 32) as calls:
        lnd.wait_for(lambda node: bool(node.payments))
        wait_for_flights(32)
        lnd.release(fail="NO_ROUTE")
        outcomes = [call.result(PATIENCE_S) for call in calls]
    assert kinds(outcomes) == {"InvoicePaymentError": 32}
    assert {(each.spent, each.payment_hash) for each in outcomes} == {(False, lnd.payments[0].payment_hash)}
    assert lnd.calls["SendPaymentV2"] == 1
    assert session.get(paywall.url).status_code == 200
    books.check()


@pytest.mark.slow
def test_a_failed_payment_is_shared_or_followed_by_one_that_pays(
    job, session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else, where the first payment of a crowd fails, more than one of it would buy anew."""
    lnd.fail_next()
    with crowd(job(), processes=4) as buyers:
        for each in buyers:
            each.go()
        outcomes = [outcome for each in buyers for outcome in each.heard()]
    failed = [each for each in outcomes if each.error]
    assert kinds(outcomes).keys() <= {200, "InvoicePaymentError"}
    assert {(each.spent, each.payment_hash) for each in failed} == {(False, lnd.payments[0].payment_hash)}
    assert succeeded(lnd) <= 1
    assert session.get(paywall.url).status_code == 200
    assert Counter(payment.status for payment in lnd.payments) == {"FAILED": 1, "SUCCEEDED": 1}
    books.check()


# -- the token serves some before it serves all -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["own session", "another session"])
def test_a_refusal_that_was_on_its_way_as_another_call_was_served_costs_no_second_payment(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, whose: str
) -> None:
    """Where settlement lags, one call's offer is refused and the next one's is accepted a moment later. Who reads the refusal after
    that success as "refused, though accepted before" gives up a token that has just begun to serve, and pays for another.
    """
    refused, served = threading.Event(), threading.Event()
    answer, paywall.faults.settle_lag = paywall.answer, 1

    def late(*args: Any) -> Any:
        reply = answer(*args)
        if reply.status == 402 and paywall.requests[-1].authorized:
            refused.set()
            assert served.wait(PATIENCE_S)
        return reply

    paywall.answer = late  # type: ignore[method-assign]
    session = make_session()
    with in_threads(lambda: outcome_of(lambda: session.get(paywall.url)), 1) as (early,):
        assert refused.wait(PATIENCE_S)
        other = session if whose == "own session" else make_session()
        assert other.get(paywall.url).status_code == 200
        served.set()
        assert early.result(PATIENCE_S).status == 200
    assert succeeded(lnd) == len(lnd.payments) == 1
    books.check()


def test_a_token_used_up_by_others_is_still_replaced(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else a session whose memory says "never taken" would offer a token that is used up until it gives up the scope for good."""
    stale, other = make_session(), make_session()
    paywall.answer_next(500)
    assert stale.get(paywall.url).status_code == 500
    assert other.get(paywall.url).status_code == 200
    paywall.revoke_tokens()
    assert stale.get(paywall.url).status_code == 200
    assert succeeded(lnd) == len(lnd.payments) == 2
    books.check()
