"""What a session says about its money: what its calls have paid, what is left of its budget, and its ledger."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    EnvelopeNotFoundError,
    InvoicePaymentError,
    Ledger,
    LedgerError,
    PaymentPendingError,
    PaywallAdapter,
    PreimageMismatchError,
    Routeweiler,
    Session,
    Spending,
    TokenRefusedError,
    wrap,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

Make = Callable[..., Routeweiler]


@pytest.fixture
def by_path(lnd: FakeLnd) -> Any:
    """Each path is sold by itself."""
    with Paywall(lnd, sells="path") as wall:
        yield wall


# -- what the calls have paid ---------------------------------------------------------------------------------------------


def test_each_payment_counts_once_with_its_fee(either_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else the user would be told of more, or less, than what has left the wallet."""
    lnd.fee_msat = 1_234
    assert (either_session.spent_msat, either_session.spending()) == (0, Spending(calls=0))
    with Paywall(lnd, price_msat=20_000) as other:
        assert either_session.quote("GET", paywall.url).amount_msat == 10_000
        for url in (paywall.url_for("/free"), paywall.url, paywall.url, other.url, paywall.url):
            assert either_session.get(url).ok
        spent = either_session.spending()
        origins = [other.base_url, paywall.base_url]
    assert either_session.spent_msat == spent.total_msat == 32_468 == lnd.spent_msat
    assert (spent.fees_msat, spent.payments, spent.calls) == (2_468, 2, 4)
    assert list(spent.by_origin) == origins
    assert [(each.total_msat, each.calls) for each in spent.by_origin.values()] == [(21_234, 1), (11_234, 3)]
    ledgers = books.ledger.spending()
    assert (ledgers.total_msat, ledgers.fees_msat, ledgers.payments, ledgers.calls) == (32_468, 2_468, 2, None)


def test_a_call_that_pays_on_two_hops_counts_both_payments(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else a redirect from one paid page to another would hide half of the bill."""
    with Paywall(lnd) as other:
        other.respond = lambda request: (302, {"Location": paywall.url}, b"")
        assert session.get(other.url).status_code == 200
    assert session.spent_msat == 20_000 == lnd.spent_msat
    assert [each.calls for each in session.spending().by_origin.values()] == [1, 1]


def test_calls_of_many_threads_are_summed_up(session, by_path: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else a sum that two threads write at once would lose payments."""
    lnd.fee_msat = 7
    urls = [by_path.url_for(f"/{n % 8}") for n in range(32)]
    with ThreadPoolExecutor(16) as pool:
        assert all(response.ok for response in pool.map(session.get, urls))
    spent = session.spending()
    assert spent.total_msat == lnd.spent_msat == books.ledger.spending().total_msat == 8 * 10_007
    assert (spent.payments, spent.calls) == (8, 32)


def test_sessions_that_share_a_ledger_have_spent_what_it_says(
    make_session: Make, by_path: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a payment that several sessions wait for would be on the bill of each of them, or of none."""
    sessions = [make_session() for _ in range(6)]
    barrier = threading.Barrier(len(sessions))

    def buy(session: Routeweiler) -> None:
        for n in range(3):
            barrier.wait(60)
            assert session.get(by_path.url_for(f"/{n}")).ok

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(buy, sessions))
    assert sum(session.spent_msat for session in sessions) == books.ledger.spending().total_msat == lnd.spent_msat == 30_000


def test_what_failed_does_not_count_and_what_was_lost_does(make_session: Make, lnd: FakeLnd, books: Books) -> None:
    """Else money would be on the bill that never left, or be missing there because its page didn't come."""
    session = make_session()
    with Paywall(lnd, sells="nothing", refuses=402) as greedy, Paywall(lnd) as honest:
        lnd.fail_next()
        with pytest.raises(InvoicePaymentError):
            session.get(honest.url)
        assert session.spending() == Spending(calls=0)
        with pytest.raises(TokenRefusedError):
            session.get(greedy.url)
        assert session.spent_msat == 10_000
        lnd.wrong_preimage_next()
        with pytest.raises(PreimageMismatchError):
            session.get(honest.url)
    assert session.spent_msat == 20_000 == lnd.spent_msat == books.ledger.spending().total_msat


def test_a_pending_payment_counts_for_the_call_that_books_it(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, asks_at_once: None
) -> None:
    """Else a payment that took long would be on nobody's bill."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=0.5)
    with pytest.raises(PaymentPendingError):
        impatient.get(paywall.url)
    assert impatient.spending() == Spending(calls=0)
    lnd.release()
    lnd.wait_for(lambda node: node.spent_msat > 0)
    assert impatient.get(paywall.url).payment.reused is False
    assert (impatient.spent_msat, impatient.spending().payments, impatient.spending().calls) == (10_000, 1, 1)


@pytest.mark.parametrize("who", ["same session", "another"])
def test_what_recover_books_counts_for_its_session(make_session: Make, paywall: Paywall, lnd: FakeLnd, who: str) -> None:
    """Else a payment that a crash interrupted would be on nobody's bill, or on two."""
    lnd.hang_next()
    first = make_session(payment_timeout=0.5)
    with pytest.raises(PaymentPendingError):
        first.get(paywall.url)
    lnd.release()
    lnd.wait_for(lambda node: node.spent_msat > 0)
    recovering = first if who == "same session" else make_session()
    recovering.recover()
    assert recovering.spending().payments == 1
    assert first.spent_msat + (recovering.spent_msat if recovering is not first else 0) == 10_000
    recovering.recover()
    assert first.get(paywall.url).payment.reused
    assert recovering.spent_msat == 10_000


def test_an_adapter_with_a_wallet_of_its_own_counts_for_its_session(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else what a part of a session pays would be missing on its bill."""
    session = make_session()
    session.mount(paywall.base_url, PaywallAdapter(funding=[lnd.funding()], ledger=tmp_path / "adapter.db"))
    assert session.get(paywall.url).ok
    assert session.get(paywall.url).ok
    assert (session.spent_msat, session.spending().payments) == (10_000, 1) == (lnd.spent_msat, len(lnd.payments))


def test_copies_begin_at_nothing(make_session: Make, paywall: Paywall, lnd: FakeLnd) -> None:
    """Else the sum over a pool's sessions would count what was paid before it was made."""
    session = make_session(trace_sink=None)
    session.get(paywall.url)
    for made in (pickle.loads(pickle.dumps(session)), copy.deepcopy(session), wrap(requests.Session(), funding=[])):
        assert made.spending() == Spending(calls=0)
        made.close()
    again = copy.deepcopy(session)
    assert again.get(paywall.url).payment.reused
    assert (again.spent_msat, again.spending().calls) == (0, 1)
    assert copy.copy(session).spent_msat == session.spent_msat == 10_000
    again.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_at_nothing(session, by_path: Paywall, lnd: FakeLnd) -> None:
    """Else the workers of a server would each count what was paid before they were forked."""
    session.get(by_path.url_for("/before"))
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            told = [session.spent_msat]
            session.get(by_path.url_for("/in-the-child"))
            told += [session.spent_msat, session.spending().payments]
            os.write(writer, repr(told).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"[0, 10000, 1]"
    os.close(reader)
    os.close(writer)
    assert session.spent_msat == 10_000
    assert lnd.spent_msat == 20_000


class InterruptedLedger:
    """Interrupts the next booking of a settlement: after its commit, or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> None:
        change, self.left = Ledger.change, 1

        def interrupted(ledger: Ledger, payment_hash: str, decide: Any, **kwargs: Any) -> Any:
            if self.left and decide(ledger.payment(payment_hash)).state.value == "settled":
                self.left -= 1
                if committed:
                    change(ledger, payment_hash, decide, **kwargs)
                raise KeyboardInterrupt
            return change(ledger, payment_hash, decide, **kwargs)

        monkeypatch.setattr(Ledger, "change", interrupted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("look", ["at once", "after the next call"])
def test_an_interrupt_while_a_payment_is_booked_loses_nothing(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch, committed: bool, look: str
) -> None:
    """Else a stopped cell of a notebook would leave a payment out of the bill, or the next call would count it again."""
    session, other = make_session(), make_session()
    InterruptedLedger(monkeypatch, committed=committed)
    with pytest.raises(KeyboardInterrupt):
        session.get(paywall.url)
    if look == "at once":
        assert session.spent_msat == (10_000 if committed else 0)
    assert (other if look == "after the next call" else session).get(paywall.url).ok
    assert session.spent_msat + other.spent_msat == 10_000 == lnd.spent_msat
    assert session.spending().payments + other.spending().payments == 1


def test_a_booking_that_failed_and_was_done_all_the_same_counts(
    session, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a payment would be on nobody's bill if the database's connection broke at the end of its commit, and stayed away."""
    change, payment, away = Ledger.change, Ledger.payment, [False]

    def lost() -> LedgerError:
        away[0] = True
        return LedgerError("The connection is lost.", advice="Call again.")

    def changed(ledger: Ledger, payment_hash: str, decide: Any, **kwargs: Any) -> Any:
        settles = decide(payment(ledger, payment_hash)).state.value == "settled"
        row = change(ledger, payment_hash, decide, **kwargs)
        if settles:
            raise lost()
        return row

    def read(ledger: Ledger, payment_hash: str) -> Any:
        if away[0]:
            raise lost()
        return payment(ledger, payment_hash)

    monkeypatch.setattr(Ledger, "change", changed)
    monkeypatch.setattr(Ledger, "payment", read)
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    assert session.spent_msat == 0
    away[0] = False
    assert session.get(paywall.url).payment.reused  # it paid nothing itself
    assert (session.spent_msat, session.spending().payments) == (10_000, 1)


def test_a_settlement_that_another_process_has_booked_is_its_own(
    session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a payment whose booking failed here, and that another process then booked, would be on two bills."""
    change = Ledger.change

    def overtaken(ledger: Ledger, payment_hash: str, decide: Any, **kwargs: Any) -> Any:
        if decide(ledger.payment(payment_hash)).state.value != "settled":
            return change(ledger, payment_hash, decide, **kwargs)
        kwargs["before_commit"](ledger.payment(payment_hash))
        change(ledger, payment_hash, decide, claimant="another/1/2/3")
        raise LedgerError("The disk is full.", advice="Make room.")

    monkeypatch.setattr(Ledger, "change", overtaken)
    assert session.get(paywall.url).ok
    assert session.spent_msat == 0
    assert books.ledger.spending().total_msat == 10_000


# -- the budget and the ledger --------------------------------------------------------------------------------------------


def test_before_the_first_purchase_all_is_there_and_nothing_is_created(lnd: FakeLnd, tmp_path: Path) -> None:
    """Else a look at a new session would be an error, or would leave files behind."""
    place = tmp_path / "new" / "ledger.db"
    with Routeweiler(funding=[lnd.funding()], ledger=place) as session:
        assert session.spent_msat == 0
        assert session.spending() == Spending(calls=0)
        assert session.ledger.spending() == Spending()
        assert (list(session.ledger.payments()), list(session.ledger.envelopes())) == ([], [])
        budget = session.budget
        assert budget is not None
        assert (budget.id, budget.headroom_minor_units) == ("default", 10_000)
        assert all("Routeweiler" in text or "Ledger" in text for text in (repr(session), session.ledger._repr_html_()))
        session._repr_html_()
    assert lnd.calls.total() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_session_without_a_wallet_has_spent_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a legacy script that prints its bill would fail where no node is configured."""
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(tmp_path / "ledger.db"))
    with Session() as session:
        assert (session.spent_msat, session.spending().payments, session.ledger.spending().payments) == (0, 0, 0)
        assert session.budget is not None
        assert "no wallet" in repr(session)
    assert list(tmp_path.iterdir()) == []


def test_the_budget_has_what_all_programs_have_spent(make_session: Make, by_path: Paywall, lnd: FakeLnd) -> None:
    """Else a session would promise money that another has spent already."""
    lnd.fee_msat = 500
    envelope = BudgetEnvelope("shared", per_hour_minor_units=100)
    first, second = make_session(budget_envelope=envelope), make_session(budget_envelope=envelope)
    first.get(by_path.url_for("/a"))
    second.get(by_path.url_for("/b"))
    by_id = make_session(budget_envelope="shared")
    for session in (first, second, by_id):
        assert session.budget.headroom_minor_units == 79
        assert session.budget.settled_minor_units == 21
        assert session.ledger.spending().total_msat == 21_000
    assert make_session(budget_envelope=None).budget is None
    with pytest.raises(EnvelopeNotFoundError):
        _ = make_session(budget_envelope="unknown").budget


def test_a_ledger_that_was_given_is_the_one_that_is_had(lnd: FakeLnd, tmp_path: Path) -> None:
    """Else two handles on one file would each keep connections open."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    with Routeweiler(funding=[lnd.funding()], ledger=ledger) as session:
        assert session.ledger is ledger
    ledger.close()
