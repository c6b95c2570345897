"""Async callers: one payment for calls at the same time, and what a cancelled call says of the money."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync.agents.fetching import Fetched, Rules, fetch, fetch_async
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

RULES = Rules(max_sats_per_call=100)


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds. The loop goes on."""
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def test_calls_at_the_same_time_pay_once(session: Routeweiler, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """Agents send several tool calls at once: each would pay for the same page."""

    async def many() -> list[Fetched]:
        return await asyncio.gather(*(fetch_async(session, RULES, paywall.url) for _ in range(5)))

    answers = asyncio.run(many())
    assert [answer.status for answer in answers] == [200] * 5
    assert sum(answer.spent_msat for answer in answers) == 10_000
    books.check()


def test_limits_around_hold_in_the_worker_thread(session: Routeweiler, paywall: Paywall, lnd: FakeLnd) -> None:
    """A `limit` block of the program would end where the thread begins."""

    async def limited() -> Fetched:
        with session.limit(sats=5):
            return await fetch_async(session, RULES, paywall.url)

    answer = asyncio.run(limited())
    assert answer.problem is not None
    assert answer.problem.code == "budget_exceeded"
    assert not lnd.orders


async def cancelled(call: asyncio.Task[Fetched]) -> str:
    """Cancel ``call``, and return the note of its error, or nothing on a Python without notes."""
    call.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await call
    return " ".join(getattr(caught.value, "__notes__", []))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_call_that_is_cancelled_before_it_paid_pays_nothing(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, paywall: Paywall, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """The user stops the agent, and its thread pays all the same."""
    asked, go_on = threading.Event(), threading.Event()

    def priced(response: object, **kwargs: object) -> None:
        asked.set()
        assert go_on.wait(30)

    class Slow(Routeweiler):
        def send(self, request, **kwargs):  # type: ignore[no-untyped-def]
            priced(None)
            return super().send(request, **kwargs)

    session = Slow(funding=[lnd.funding()], ledger=books.ledger_path)

    async def run() -> str:
        call = asyncio.create_task(fetch_async(session, RULES, paywall.url))
        await until(asked.is_set)
        note = await cancelled(call)
        go_on.set()
        return note

    note = asyncio.run(run())
    session.close()
    assert warnings_in(caplog)[0] == "The fetch was cancelled before it paid: nothing is spent."
    assert note in ("", "The fetch was cancelled before it paid: nothing is spent.")
    assert [each.status for each in paywall.requests] == [402]
    assert not lnd.orders
    assert "has ended. Nothing was paid." in warnings_in(caplog)[-1]


def test_a_call_that_is_cancelled_while_it_pays_says_so_and_its_page_is_kept(
    session: Routeweiler, lnd: FakeLnd, paywall: Paywall, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """The user would take the money for unspent, and the next run would pay again."""
    lnd.hang_next()

    async def run() -> str:
        call = asyncio.create_task(fetch_async(session, RULES, paywall.url))
        await until(lambda: lnd.orders)
        with pytest.warns(RuntimeWarning, match=r"cancelled while it paid: up to 20 sat may be spent"):
            note = await cancelled(call)
        lnd.release()
        return note

    note = asyncio.run(run())
    assert note == "" or "may be spent. The payment goes on, and what it buys is kept." in note
    assert warnings_in(caplog)[-1].endswith("has ended. Paid 10 sat, routing included. Left: 9990 sat.")
    again = fetch(session, RULES, paywall.url)
    assert (again.status, again.spent_msat) == (200, 0)
    books.check()


def test_a_call_that_is_cancelled_after_it_paid_says_what_was_paid(
    session: Routeweiler, lnd: FakeLnd, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """The money would be spent, and nobody told."""
    served, go_on = threading.Event(), threading.Event()

    def slow_page(request: object) -> tuple[int, dict[str, str], bytes]:
        served.set()
        assert go_on.wait(30)
        return 200, {}, b"page"

    with Paywall(lnd, respond=slow_page) as shop:

        async def run() -> None:
            call = asyncio.create_task(fetch_async(session, RULES, shop.url))
            await until(served.is_set)
            with pytest.warns(RuntimeWarning, match=r"cancelled after it had paid 10 sat. What it bought is kept."):
                await cancelled(call)
            go_on.set()

        asyncio.run(run())
        assert fetch(session, RULES, shop.url).spent_msat == 0
    books.check()
