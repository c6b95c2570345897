"""The price before it is paid, a cap for a block of calls, and the question before each payment."""

from __future__ import annotations

import contextvars
import random
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    ChallengeParseError,
    FmvUnavailableError,
    InvoicePaymentError,
    PaymentDeclinedError,
    PaymentPendingError,
    PaymentState,
    Policy,
    PolicyDeniedError,
    PolicyRule,
    Quote,
    Routeweiler,
    RuleMatch,
    StaticRate,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.ledger_builders import at_once

Make = Callable[..., Routeweiler]


@pytest.fixture
def pages(paywall: Paywall) -> list[str]:
    """Twenty pages, each sold for itself."""
    paywall.service.dynamic = True
    return [paywall.url_for(f"/pages/{n}") for n in range(20)]


# -- quote ----------------------------------------------------------------------------------------------------------------


def test_a_quote_tells_what_the_call_would_pay_and_pays_nothing(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Who asks for a price would have paid it."""
    quote = session.quote("GET", paywall.url, params={"q": "1"})
    assert quote is not None
    assert (quote.url, quote.amount_msat, quote.max_fee_msat) == (paywall.url + "?q=1", 10_000, 10_000)
    assert (quote.amount_minor_units, quote.currency, quote.scope) == (Decimal(10), "sat", "services=paywall:0")
    assert lnd.calls == {}
    assert not books.ledger_path.exists()
    (line,) = books.lines
    assert (line["payment"], line["outcome"]["httpStatus"], line["outcome"]["error"]) == (None, 402, None)
    assert line["challenge"]["paymentHash"] == quote.payment_hash
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_nothing_is_quoted_where_nothing_is_to_be_paid(session: Routeweiler, paywall: Paywall, lnd: FakeLnd) -> None:
    """A free page, or one that is paid for, would look as if it cost something; or a token be used up by asking."""
    assert session.quote("GET", paywall.url_for("/free")) is None
    session.get(paywall.url)
    sent = len(paywall.requests)
    assert session.quote("GET", paywall.url) is None
    assert [(request.authorized, request.status) for request in paywall.requests[sent:]] == [(False, 402)]
    assert len(lnd.payments) == 1


def test_a_quote_does_nothing_that_the_request_asks_for(session: Routeweiler, paywall: Paywall) -> None:
    """With a token along, asking for the price of a POST would be the POST."""
    session.post(paywall.url, data=b"x")
    assert session.quote("POST", paywall.url, data=b"x") is None
    assert [request.status for request in paywall.requests] == [402, 200, 402]


def test_an_expired_token_is_quoted_as_if_there_were_none(
    session: Routeweiler, make_session: Make, paywall: Paywall, books: Books
) -> None:
    """The page would be said to be paid for, and cost something."""
    session.get(paywall.url)
    with books.ledger._store.transaction() as tx:
        tx.execute("UPDATE payments SET valid_until = 1")
    assert make_session().quote("GET", paywall.url) is not None


def test_a_quote_follows_redirects_and_is_for_the_page_behind_them(session: Routeweiler, paywall: Paywall) -> None:
    """The URL that counts is the one that answers 402."""
    quote = session.quote("GET", paywall.url_for("/redirect?to=/paid"))
    assert quote is not None
    assert quote.url == paywall.url


def test_no_hook_stands_in_a_quotes_way(session: Routeweiler, paywall: Paywall) -> None:
    """A program that checks each response would get an HTTPError for a price."""
    session.hooks["response"].append(lambda response, **kwargs: response.raise_for_status())
    assert session.quote("GET", paywall.url) is not None


def test_nothing_is_paid_by_what_runs_within_a_quote(session: Routeweiler, paywall: Paywall, lnd: FakeLnd) -> None:
    """A login that is behind a paywall itself would be paid for a question about a price."""

    def login(request: requests.PreparedRequest) -> requests.PreparedRequest:
        session.get(paywall.url_for("/login"))
        return request

    quote = session.quote("GET", paywall.url, auth=login)
    assert quote is not None
    assert quote.url == paywall.url_for("/login")
    assert lnd.payments == []
    assert session.get(paywall.url).status_code == 200


def test_a_quote_isnt_refused_by_policy_or_budget(make_session: Make, paywall: Paywall, lnd: FakeLnd) -> None:
    """Nobody could ask what is too dear for the budget."""
    asked: list[Quote] = []
    session = make_session(
        policy=Policy([PolicyRule("no", when=RuleMatch(url_matches="*"), deny=True)]),
        budget_envelope=BudgetEnvelope("none", cap_minor_units=0),
        confirm=asked.append,
        funding=[],
    )
    with session.limit(sats=0):
        assert session.quote("GET", paywall.url) is not None
    with pytest.raises(PolicyDeniedError):
        session.get(paywall.url)
    assert asked == []


def test_a_quote_is_in_the_budgets_currency(make_session: Make, paywall: Paywall) -> None:
    """A price in sat would be read as one in cents."""
    dollars = BudgetEnvelope("dollars", cap_currency="usd")
    quote = make_session(budget_envelope=dollars, fmv_provider=StaticRate("33333.33")).quote("GET", paywall.url)
    assert quote is not None
    assert (quote.currency, quote.amount_minor_units) == ("usd", Decimal("0.333334"))
    with pytest.raises(FmvUnavailableError):
        make_session(budget_envelope=dollars).quote("GET", paywall.url)
    unlimited = make_session(budget_envelope=None).quote("GET", paywall.url)
    assert unlimited is not None
    assert unlimited.currency == "sat"


def test_the_price_of_what_cant_be_paid_is_an_error(session: Routeweiler, make_session: Make, paywall: Paywall) -> None:
    """A price that can't be paid, or that nobody has signed, would be told as one."""
    paywall.faults.expire_invoices = True
    with pytest.raises(ChallengeExpiredError):
        session.quote("GET", paywall.url)
    paywall.faults.expire_invoices = False
    paywall.service.price_msat = None  # type: ignore[assignment]
    for asking in (session, make_session(unpayable="return")):
        with pytest.raises(ChallengeParseError):
            asking.quote("GET", paywall.url)


@pytest.mark.slow
def test_an_unfinished_purchase_is_quoted_not_carried_on(
    session: Routeweiler, make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Asking for the price would send an order; or tell another price than the one that the next call pays."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(paywall.url)
    orders, asked = lnd.calls["SendPaymentV2"], lnd.calls["TrackPaymentV2"]
    paywall.price = 70
    quote = session.quote("GET", paywall.url)
    assert quote is not None
    assert (quote.payment_hash, quote.amount_msat, quote.max_fee_msat) == (books.rows[0].payment_hash, 10_000, 10_000)
    assert (lnd.calls["SendPaymentV2"], lnd.calls["TrackPaymentV2"]) == (orders, asked)
    lnd.release()
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_a_free_download_isnt_downloaded_for_its_price(session: Routeweiler) -> None:
    """Asking what a large file costs would fetch it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 1_000)
                connection.recv(1)  # until the client hangs up

        server = threading.Thread(target=serve)
        server.start()
        assert session.quote("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=30) is None
        server.join(30)
        assert not server.is_alive()


# -- limit ----------------------------------------------------------------------------------------------------------------


def test_a_block_spends_no_more_than_its_limit(session: Routeweiler, pages: list[str], lnd: FakeLnd, books: Books) -> None:
    """A loop would go on paying when the sum is reached; or a call after the block be refused."""
    lnd.fee_msat = 1_000
    with session.limit(sats=25) as limit:
        assert [session.get(page).status_code for page in pages[:2]] == [200, 200]
        assert (limit.spent_msat, limit.reserved_msat) == (22_000, 0)
        orders = lnd.calls["SendPaymentV2"]
        with pytest.raises(BudgetExceededError, match="othing was spent") as refused:
            session.get(pages[2])
        assert refused.value.spent is False
        assert lnd.calls["SendPaymentV2"] == orders
        assert session.get(pages[0]).status_code == 200  # a token that is held costs nothing
    assert session.get(pages[2]).status_code == 200
    assert limit.spent_msat == 22_000
    books.check()


def test_fees_count_and_the_fee_limit_shrinks_to_the_headroom(
    session: Routeweiler, pages: list[str], lnd: FakeLnd, books: Books
) -> None:
    """Routing would pass the limit, or a limit of the bare price buy nothing over a free route."""
    with session.limit(sats=21) as limit:
        session.get(pages[0])
        session.get(pages[1])
        assert [order.fee_limit_msat for order in lnd.orders] == [10_000, 1_000]
        assert limit.spent_msat == 20_000
    lnd.fee_msat = 1_000
    with session.limit(sats=10) as limit:
        with pytest.raises(InvoicePaymentError):
            session.get(pages[2])
        assert (limit.spent_msat, limit.reserved_msat) == (0, 0)
    books.check()


def test_limits_nest_and_the_tightest_holds(session: Routeweiler, pages: list[str], books: Books) -> None:
    """What is spent inside wouldn't count outside, or an inner limit widen the outer one."""
    with session.limit(sats=35) as outer:
        with session.limit(sats=1_000) as inner:
            session.get(pages[0])
        with session.limit(sats=10) as tight:
            session.get(pages[1])
            with pytest.raises(BudgetExceededError, match=r"sats=10\b"):
                session.get(pages[2])
        session.get(pages[2])
        with session.limit(sats=1_000), pytest.raises(BudgetExceededError, match=r"sats=35\b"):
            session.get(pages[3])
    assert (outer.spent_msat, inner.spent_msat, tight.spent_msat) == (30_000, 10_000, 10_000)
    books.check()


def test_a_refusal_by_one_limit_holds_nothing_in_another(session: Routeweiler, pages: list[str]) -> None:
    """A refused call would eat the budget of the block around it."""
    with session.limit(sats=10) as outer:
        with session.limit(sats=5), pytest.raises(BudgetExceededError):
            session.get(pages[0])
        assert (outer.spent_msat, outer.reserved_msat) == (0, 0)
        assert session.get(pages[0]).status_code == 200


@pytest.mark.parametrize("why", ["envelope", "declined", "confirm raises", "failed", "interrupted"])
def test_a_refused_or_failed_payment_returns_its_headroom_at_once(
    make_session: Make, pages: list[str], lnd: FakeLnd, why: str
) -> None:
    """Refusals and failures would eat the limit."""

    def answer(quote: Quote) -> bool:
        if why == "interrupted":
            raise KeyboardInterrupt
        if why == "confirm raises":
            raise ZeroDivisionError
        return why != "declined"

    small = BudgetEnvelope("small", cap_minor_units=5)
    session = make_session(confirm=answer, **({"budget_envelope": small} if why == "envelope" else {}))
    if why == "failed":
        lnd.fail_next("NO_ROUTE")
    with session.limit(sats=15) as limit:
        with pytest.raises((BudgetExceededError, PaymentDeclinedError, ZeroDivisionError, InvoicePaymentError, KeyboardInterrupt)):
            session.get(pages[0])
        assert (limit.spent_msat, limit.reserved_msat) == (0, 0)


@pytest.mark.slow
def test_a_payment_of_unknown_outcome_stays_counted(
    session: Routeweiler, make_session: Make, pages: list[str], lnd: FakeLnd, books: Books
) -> None:
    """Two payments in flight would pass the limit when both arrive; or one that has arrived count twice."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=1.5)
    with impatient.limit(sats=29) as limit:
        with pytest.raises(PaymentPendingError):
            impatient.get(pages[0])
        assert (limit.spent_msat, limit.reserved_msat) == (0, 20_000)
        with pytest.raises(BudgetExceededError):
            impatient.get(pages[1])
        lnd.release()
        assert impatient.get(pages[0]).status_code == 200
        assert (limit.spent_msat, limit.reserved_msat) == (10_000, 0)
        assert impatient.get(pages[1]).status_code == 200
    books.check()


@pytest.mark.slow
def test_a_payment_that_another_session_ended_is_counted_when_it_is_found(
    session: Routeweiler, make_session: Make, pages: list[str], lnd: FakeLnd, books: Books
) -> None:
    """What recover() has found would be forgotten by the limit that ordered it."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=1.5)
    with impatient.limit(sats=29) as limit:
        with pytest.raises(PaymentPendingError):
            impatient.get(pages[0])
        lnd.release()
        session.recover()
        assert limit.reserved_msat == 20_000
        assert impatient.get(pages[0]).status_code == 200
        assert (limit.spent_msat, limit.reserved_msat) == (10_000, 0)
    books.check()


@pytest.mark.slow
def test_a_payment_ordered_before_the_block_is_no_spend_of_it(
    session: Routeweiler, make_session: Make, pages: list[str], lnd: FakeLnd, books: Books
) -> None:
    """A limit would be used up by what was spent before it began."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(pages[0])
    lnd.release()
    with session.limit(sats=5) as limit:
        assert session.get(pages[0]).status_code == 200
        assert (limit.spent_msat, limit.reserved_msat) == (0, 0)
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("sats", [19, 20])
def test_an_order_is_sent_again_only_where_it_fits(
    session: Routeweiler, make_session: Make, pages: list[str], lnd: FakeLnd, books: Books, sats: int
) -> None:
    """A purchase left over from yesterday would be paid by a block that has no room for it."""
    lnd.hold_orders()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.5).get(pages[0])
    orders = lnd.calls["SendPaymentV2"]
    session = make_session(payment_timeout=6)
    with session.limit(sats=sats) as limit:
        if sats < 20:
            with pytest.raises(PaymentPendingError, match=r"limit\(sats=19\)") as pending:
                session.get(pages[0])
            assert pending.value.spent is None
            assert (limit.spent_msat, limit.reserved_msat) == (0, 0)
            assert lnd.calls["SendPaymentV2"] == orders
        else:
            with pytest.raises(PaymentPendingError):
                session.get(pages[0])
            assert limit.reserved_msat == 20_000
    lnd.deliver_orders()
    assert session.get(pages[0]).status_code == 200
    books.check()


def test_sixteen_threads_of_one_block_never_pass_its_limit(
    make_session: Make, paywall: Paywall, pages: list[str], lnd: FakeLnd, books: Books
) -> None:
    """Threads that look at the same time would each find room for the last sat."""
    lnd.fee_msat = 500
    session, limit_sats = make_session(budget_envelope=None), 63
    seen: list[int] = []

    def buy(page: str) -> int:
        try:
            session.get(page)
        except (BudgetExceededError, InvoicePaymentError):
            return 0
        finally:
            seen.append(limit.spent_msat + limit.reserved_msat)
        return 1

    with session.limit(sats=limit_sats) as limit:
        tasks = [partial(contextvars.copy_context().run, buy, page) for page in pages[:16]]
        bought = sum(at_once(tasks))
    assert max(seen) <= limit_sats * 1000
    assert limit.spent_msat == bought * 10_500 == lnd.spent_msat
    assert bought >= 3  # the least that fits beside the fees that are held meanwhile
    assert limit.reserved_msat == 0
    books.check()


def test_a_thread_begins_without_the_limit(session: Routeweiler, pages: list[str]) -> None:
    """As documented: a context variable doesn't go along with a thread by itself."""
    with session.limit(sats=0) as limit:
        at_once([partial(contextvars.Context().run, session.get, pages[0])])
        with pytest.raises(BudgetExceededError):
            session.get(pages[1])
    assert limit.spent_msat == 0


def test_a_limit_is_its_sessions_own(session: Routeweiler, make_session: Make, pages: list[str]) -> None:
    """A block would hold back a session that it has nothing to do with."""
    with session.limit(sats=0):
        assert make_session().get(pages[0]).status_code == 200


def test_blocks_may_end_in_any_order_and_by_any_error(session: Routeweiler, pages: list[str]) -> None:
    """A generator that is closed late would leave its limit behind, or take another's away."""

    def block() -> Any:
        with session.limit(sats=0):
            yield

    late = block()
    next(late)
    with ExitStack() as stack, pytest.raises(ZeroDivisionError):
        stack.enter_context(session.limit(sats=10_000))
        late.close()
        assert session.get(pages[0]).status_code == 200
        raise ZeroDivisionError
    other = block()
    contextvars.copy_context().run(next, other)
    contextvars.Context().run(other.close)
    assert session.get(pages[1]).status_code == 200


def test_a_limit_cannot_be_entered_twice(session: Routeweiler, pages: list[str], lnd: FakeLnd) -> None:
    """Two blocks of one limit would share what it allows, or end one another: neither is what was meant."""
    once = session.limit(sats=12)
    with once as limit:
        with pytest.raises(RuntimeError, match="again for another"), once:
            raise AssertionError("the block was entered")
        assert session.get(pages[0]).status_code == 200  # and the limit still holds
        with pytest.raises(BudgetExceededError):
            session.get(pages[1])
    with pytest.raises(RuntimeError, match="again for another"), once:
        raise AssertionError("the block was entered")
    assert limit.spent_msat == lnd.spent_msat
    assert session.get(pages[1]).status_code == 200


@pytest.mark.parametrize("sats", [-1, 1.5, "10", True, None, Decimal(5), 10**20])
def test_what_cant_be_a_limit_is_refused(session: Routeweiler, sats: Any) -> None:
    """A slip would be no limit."""
    with pytest.raises(ValueError, match="sats"), session.limit(sats=sats):
        raise AssertionError("the block was entered")


def test_each_payment_of_a_redirected_call_counts(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A call that is led from paywall to paywall would count for one, or pass the limit on its way."""
    paywall.add_service("/second", name="second", price_msat=7_000)
    paywall.respond = lambda request: (302, {"Location": "/second/x"}, b"") if request.path == "/paid" else (200, {}, b"page")
    with session.limit(sats=17) as limit:
        assert session.get(paywall.url).content == b"page"
    assert limit.spent_msat == lnd.spent_msat == 17_000
    paywall.revoke_tokens()
    with session.limit(sats=16) as limit, pytest.raises(BudgetExceededError) as refused:
        session.get(paywall.url)
    assert refused.value.spent is True  # on the hop before
    assert limit.spent_msat == 10_000
    books.check()


# -- confirm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, False, 0, "", "yes", 1, "no", [True], Decimal(1)])
def test_only_true_from_confirm_is_a_yes(make_session: Make, paywall: Paywall, lnd: FakeLnd, answer: object) -> None:
    """ "no" would be taken for yes, being a string with something in it."""
    session = make_session(confirm=lambda quote: answer)
    with pytest.raises(PaymentDeclinedError, match="othing was spent") as raised:
        session.get(paywall.url)
    assert lnd.calls["SendPaymentV2"] == 0
    assert raised.value.advice, "who meant yes must hear what counts as one"
    assert "True itself" in raised.value.advice


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_an_async_confirm_does_not_count_as_a_yes(make_session: Make, paywall: Paywall, lnd: FakeLnd) -> None:
    """A coroutine is true: everything would be paid, and the question never asked."""

    async def confirm(quote: Quote) -> bool:
        return False

    with pytest.raises(PaymentDeclinedError, match="coroutine"):
        make_session(confirm=confirm).get(paywall.url)
    assert lnd.calls["SendPaymentV2"] == 0


def test_an_error_in_confirm_pays_nothing_and_shuts_nothing(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """A bug in the user's function would pay, or leave a lock behind that no later call gets past."""
    answers: list[Any] = [ZeroDivisionError(), KeyboardInterrupt(), True]

    def confirm(quote: Quote) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return bool(answer)

    session = make_session(confirm=confirm)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            session.get(paywall.url)
    assert books.rows == []
    assert lnd.calls["SendPaymentV2"] == 0
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_confirm_is_asked_once_for_a_purchase_and_never_for_a_token(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Eight threads would ask a person eight times about one payment."""
    asked: list[Quote] = []
    began, go = threading.Event(), threading.Event()

    def confirm(quote: Quote) -> bool:
        asked.append(quote)
        began.set()
        return go.wait(60)

    session = make_session(confirm=confirm)
    threading.Thread(target=lambda: (began.wait(60), go.set())).start()
    assert {response.status_code for response in at_once([partial(session.get, paywall.url)] * 8)} == {200}
    assert session.get(paywall.url).status_code == 200
    assert len(asked) == len(lnd.payments) == 1
    books.check()


def test_while_confirm_waits_for_a_person_other_calls_can_buy(make_session: Make, pages: list[str], books: Books) -> None:
    """A question that nobody answers would hold the ledger, and with it all other purchases."""
    other = make_session()

    def confirm(quote: Quote) -> bool:
        assert at_once([partial(other.get, pages[1])])[0].status_code == 200
        assert other.get(pages[2]).status_code == 200
        return True

    assert make_session(confirm=confirm).get(pages[0]).status_code == 200
    assert [row.state for row in books.rows] == [PaymentState.SETTLED] * 3
    books.check()


def test_confirm_gets_the_fee_limit_that_will_be_used(make_session: Make, pages: list[str]) -> None:
    """A person would agree to another sum than is paid at most."""
    asked: list[Quote] = []

    def confirm(quote: Quote) -> bool:
        asked.append(quote)
        return True

    session = make_session(confirm=confirm)
    with session.limit(sats=12):
        session.get(pages[0])
    assert [quote.max_fee_msat for quote in asked] == [2_000]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_limit_agrees_with_the_node_whatever_happens(
    make_session: Make, paywall: Paywall, pages: list[str], lnd: FakeLnd, books: Books, seed: int
) -> None:
    """A rarely met order of failures, broken streams and prices would let a block spend more than it says, or say less."""
    dice = random.Random(seed)
    session = make_session(budget_envelope=None)
    with session.limit(sats=80) as outer, session.limit(sats=60) as inner:
        for page in pages:
            paywall.price_msat = dice.randrange(1_000, 20_000)
            lnd.fee_msat = dice.choice([0, 1, 1_000])
            if dice.random() < 0.5:
                dice.choice([lnd.fail_next, partial(lnd.drop_next, "after_paying"), partial(lnd.drop_next, "before_init")])()
            try:
                session.get(page)
            except (BudgetExceededError, InvoicePaymentError):
                lnd.clear_faults()
            assert lnd.spent_msat == inner.spent_msat == outer.spent_msat <= 60_000
            assert inner.reserved_msat == 0
    assert inner.spent_msat > 20_000
    books.check()


def test_confirm_may_fetch_the_page_it_is_asked_about(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """It waited for itself for a minute, and then said that money may be spent."""
    errors = []

    def confirm(quote: object) -> bool:
        with pytest.raises(PaymentDeclinedError) as caught:
            session.get(paywall.url)
        errors.append(caught.value)
        return True

    session = make_session(confirm=confirm)
    assert session.get(paywall.url).status_code == 200
    assert errors[0].spent is False
    assert len(lnd.payments) == 1
