"""What every ledger promises, whatever database holds it: `LedgerContract`, to be run for each of them.

A subclass gives two fixtures: `url`, which names a ledger that isn't there yet, and `make_ledger`, which opens a further
connection to that same ledger. The life of the rows is here, the limits are in `tests.support.ledger_limits_contract`.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from routeweiler_sync.errors import BudgetError, BudgetExceededError, LedgerError
from routeweiler_sync.ledger import readings, server_facts
from routeweiler_sync.ledger.ledger import CLAIM_S, Ledger
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState

from .ledger_archive_contract import ArchiveContract
from .ledger_builders import (
    NOON_S,
    ORIGIN,
    PATIENCE_S,
    Clock,
    at_once,
    die,
    draw,
    fail,
    hash_of,
    held_msat,
    intent,
    limits,
    preimage,
    put,
    settle,
)
from .ledger_charges_contract import ChargesContract
from .ledger_limits_contract import LimitsContract
from .ledger_lookups_contract import LookupsContract
from .ledger_spending_contract import SpendingContract

SPAWN = multiprocessing.get_context("spawn")
THREADS, PROCESSES = 16, 6


def open_when_told(url: str, n: int, barrier: Any, answers: Any) -> None:
    """A buyer in a process of its own."""
    ledger = Ledger.open(url)
    barrier.wait(PATIENCE_S)
    row, is_new = ledger.open_payment(intent(n, scope="one need"), draw(limits()))
    answers.put((row.payment_hash, is_new))


def open_and_wait_for_the_end(url: str, opened: Any, never: Any) -> None:
    ledger = Ledger.open(url)
    ledger.open_payment(intent(1), draw(limits()))
    opened.set()
    never.wait(PATIENCE_S)


class RowsContract:
    """One row is the whole life of a payment."""

    @pytest.fixture
    def ledger(self, make_ledger: Callable[..., Ledger]) -> Ledger:
        return make_ledger()

    def test_a_check_that_it_can_be_written_writes_nothing(self, ledger: Ledger) -> None:
        """A look at the ledger would else be a change of it."""
        ledger.open_payment(intent(1), draw(limits()))
        before = list(ledger.payments()), list(ledger.envelopes())
        ledger.check_writable()
        assert (list(ledger.payments()), list(ledger.envelopes())) == before

    # -- opening ----------------------------------------------------------------------------------------------------------

    def test_the_intent_is_there_for_everybody_before_the_order_may_leave(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a crash, or another buyer, would know nothing of an order that lnd carries out: paid twice, or lost."""
        row, is_new = make_ledger().open_payment(intent(1, valid_until=99), draw(limits()))
        elsewhere = make_ledger()
        assert is_new
        assert elsewhere.payment(hash_of(1)) == row
        assert elsewhere.unfinished() == [row] == elsewhere.live(ORIGIN, "scope-1")
        assert (row.state, row.sends_ever, row.sends_unanswered) == (PaymentState.OPEN, 1, 1)
        assert (row.amount_msat, row.max_fee_msat, row.fee_msat) == (10_000, 1_000, 0)
        assert (row.token, row.preimage, row.valid_until, row.path) == ("token-1", None, 99, "/pages/1")
        assert held_msat(elsewhere) == (11_000, 0)

    @pytest.mark.parametrize("end", [None, fail, settle])
    def test_a_live_row_of_the_same_need_stands_in_the_way(self, ledger: Ledger, end: Callable[..., Any] | None) -> None:
        """Else one need would be paid for twice."""
        ledger.open_payment(intent(1, scope="s"), draw(limits()))
        if end is not None:
            end(ledger, 1)
        before, total = ledger.payment(hash_of(1)), held_msat(ledger)
        assert ledger.open_payment(intent(2, scope="s"), draw(limits())) == (before, False)
        assert ledger.payment(hash_of(2)) is None
        assert held_msat(ledger) == total

    @pytest.mark.parametrize("end", [None, fail, settle, die, "retire"])
    def test_an_invoice_that_is_in_the_ledger_is_never_opened_again(self, ledger: Ledger, end: Any) -> None:
        """Else a repeated 402 (a cache, a cassette) would be paid again, or its settled row be overwritten."""
        ledger.open_payment(intent(1), draw(limits()))
        if end == "retire":
            settle(ledger, 1)
            ledger.forget(hash_of(1))
        elif end is not None:
            end(ledger, 1)
        before, total = ledger.payment(hash_of(1)), held_msat(ledger)
        assert ledger.open_payment(intent(1, scope="another", origin="https://b.example"), draw(limits())) == (before, False)
        assert held_msat(ledger) == total

    def test_other_needs_and_ended_rows_do_not_stand_in_the_way(self, ledger: Ledger) -> None:
        """Else one failed payment would lock its page for ever."""
        assert ledger.open_payment(intent(1, scope="s"), None)[1]
        assert ledger.open_payment(intent(2, scope="t"), None)[1]
        assert ledger.open_payment(intent(3, scope="s", origin="https://b.example"), None)[1]
        die(ledger, 1)
        assert ledger.open_payment(intent(4, scope="s"), None)[1]
        settle(ledger, 4)
        ledger.forget(hash_of(4))
        assert ledger.open_payment(intent(5, scope="s"), None)[1]

    @pytest.mark.parametrize("same", ["need", "invoice"])
    def test_of_many_threads_on_two_connections_one_buys(self, make_ledger: Callable[..., Ledger], same: str) -> None:
        """Else a burst of requests for one page would pay for each of them."""
        handles = [make_ledger(), make_ledger()]
        intents = [intent(n, scope="s") if same == "need" else intent(1, scope=f"s{n}") for n in range(THREADS)]
        results = at_once([partial(handles[n % 2].open_payment, intents[n], draw(limits())) for n in range(THREADS)])
        assert sum(is_new for _, is_new in results) == 1
        assert len({row.payment_hash for row, _ in results}) == 1
        assert len(list(handles[0].payments())) == 1
        assert held_msat(handles[0]) == (11_000, 0)

    @pytest.mark.slow
    def test_of_many_processes_one_buys(self, url: str, make_ledger: Callable[..., Ledger]) -> None:
        """Else a fleet of workers, started together on a ledger that isn't there yet, would pay once each."""
        barrier, answers = SPAWN.Barrier(PROCESSES), SPAWN.Queue()
        workers = [SPAWN.Process(target=open_when_told, args=(url, n, barrier, answers), daemon=True) for n in range(PROCESSES)]
        for worker in workers:
            worker.start()
        told = [answers.get(timeout=PATIENCE_S) for _ in workers]
        for worker in workers:
            worker.join(PATIENCE_S)
            assert worker.exitcode == 0
        assert sum(is_new for _, is_new in told) == 1
        assert len({payment_hash for payment_hash, _ in told}) == 1
        assert held_msat(make_ledger()) == (11_000, 0)

    def test_what_was_opened_survives_kill_9(self, url: str, make_ledger: Callable[..., Ledger]) -> None:
        """Else the order that left right after would be unknown to the next run, and paid a second time."""
        opened, never = SPAWN.Event(), SPAWN.Event()
        buyer = SPAWN.Process(target=open_and_wait_for_the_end, args=(url, opened, never), daemon=True)
        buyer.start()
        assert opened.wait(PATIENCE_S)
        buyer.kill()
        buyer.join(PATIENCE_S)
        ledger = make_ledger()
        assert [row.payment_hash for row in ledger.unfinished()] == [hash_of(1)]
        assert held_msat(ledger) == (11_000, 0)
        assert not ledger.open_payment(intent(2, scope="scope-1"), draw(limits()))[1]

    # -- sending ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", [None, fail])
    def test_a_send_of_an_unfinished_row_is_counted(self, make_ledger: Callable[..., Ledger], state: Any) -> None:
        """Else FAILED would seem final while an order is on its way that starts the payment anew."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits()))
        if state:
            state(ledger, 1)
        row = ledger.count_send(hash_of(1))
        assert row is not None
        assert (row.state, row.sends_ever, row.sends_unanswered) == (PaymentState.OPEN, 2, 2)
        assert make_ledger().payment(hash_of(1)) == row
        assert held_msat(ledger) == (11_000, 0)

    @pytest.mark.parametrize("end", [settle, die, "retire", "unknown"])
    def test_no_send_of_an_ended_row_is_counted(self, ledger: Ledger, end: Any) -> None:
        """Else an invoice would be sent whose need may be met by another one already: paid twice."""
        if end != "unknown":
            ledger.open_payment(intent(1), None)
            (settle if end == "retire" else end)(ledger, 1)
        if end == "retire":
            ledger.forget(hash_of(1))
        before = ledger.payment(hash_of(1))
        assert ledger.count_send(hash_of(1)) is None
        assert ledger.payment(hash_of(1)) == before

    def test_an_end_and_a_send_never_cross(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a row could be dead with a send counted after its end, and the order would leave."""
        one, other = make_ledger(), make_ledger()

        def end_unless_sent(row: PaymentRow) -> Change | None:
            return None if row.sends_unanswered > 1 else Change(state=PaymentState.DEAD, answered=1)

        for n in range(30):
            one.open_payment(intent(n), None)
            tasks: list[Callable[[], Any]] = [
                partial(other.count_send, hash_of(n)),
                partial(one.change, hash_of(n), end_unless_sent),
            ]
            counted, _ = at_once(tasks)
            row = one.payment(hash_of(n))
            assert row is not None
            assert (row.state, row.sends_ever) == ((PaymentState.OPEN, 2) if counted else (PaymentState.DEAD, 1))

    def test_an_answer_counts_off_and_never_below_zero(self, ledger: Ledger) -> None:
        """Else a row would never count as answered (and stay pending), or count sends that never were."""
        ledger.open_payment(intent(1), None)
        ledger.count_send(hash_of(1))
        for unanswered in (1, 0, 0):
            assert put(ledger, hash_of(1), Change(state=PaymentState.OPEN, answered=1)).sends_unanswered == unanswered
        row = ledger.payment(hash_of(1))
        assert row is not None
        assert row.sends_ever == 2

    # -- ends -------------------------------------------------------------------------------------------------------------

    def test_a_settlement_books_amount_and_fee_and_returns_the_rest(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a budget would lose what routing didn't cost, or forget what it did."""
        clock = Clock()
        ledger = make_ledger(clock)
        ledger.open_payment(intent(1), draw(limits()))
        clock.now_s += 5
        row = settle(ledger, 1, fee_msat=123)
        assert (row.state, row.fee_msat, row.preimage, row.sends_unanswered) == (PaymentState.SETTLED, 123, preimage(1).hex(), 0)
        assert row.settled_at is not None
        assert (row.created_at.timestamp(), row.settled_at.timestamp()) == (NOON_S, NOON_S + 5)
        assert (row.reserved_micro, row.settled_micro) == (0, 10_123_000)
        assert held_msat(make_ledger()) == (0, 10_123)
        assert make_ledger().payment(hash_of(1)) == row

    def test_a_settlement_is_booked_once_whoever_hears_of_it(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else two buyers who follow one payment would use up the budget twice."""
        handles = [make_ledger(), make_ledger()]
        handles[0].open_payment(intent(1), draw(limits()))
        rows = at_once([partial(settle, handles[n % 2], 1, fee_msat=7) for n in range(8)])
        assert {(row.state, row.fee_msat, row.settled_micro) for row in rows} == {(PaymentState.SETTLED, 7, 10_007_000)}
        assert held_msat(handles[0]) == (0, 10_007)

    def test_dead_returns_the_reservation_and_failed_keeps_it(self, ledger: Ledger) -> None:
        """Else failed payments would eat the budget, or a payment that still can be made would be covered by nothing."""
        ledger.open_payment(intent(1), draw(limits()))
        assert fail(ledger, 1).state is PaymentState.FAILED
        assert held_msat(ledger) == (11_000, 0)
        row = die(ledger, 1)
        assert (row.state, row.failure_code, row.failure_text) == (PaymentState.DEAD, "failed_for_good", "NO_ROUTE")
        assert (row.reserved_micro, row.settled_micro, row.settled_at) == (0, 0, None)
        assert held_msat(ledger) == (0, 0)
        die(ledger, 1)
        assert held_msat(ledger) == (0, 0)

    def test_a_settlement_without_preimage_is_booked_all_the_same(self, ledger: Ledger) -> None:
        """Else money would be gone that no account tells of."""
        ledger.open_payment(intent(1), draw(limits()))
        row = settle(ledger, 1, fee_msat=5, proved=False)
        assert (row.state, row.preimage, held_msat(ledger)) == (PaymentState.SETTLED, None, (0, 10_005))
        assert not ledger.open_payment(intent(2, scope="scope-1"), draw(limits()))[1]

    def test_a_preimage_that_does_not_fit_changes_nothing(self, ledger: Ledger) -> None:
        """Else the ledger would hold a token that no server takes, as if it had been paid for."""
        ledger.open_payment(intent(1), draw(limits()))
        before = ledger.payment(hash_of(1))
        with pytest.raises(AssertionError):
            put(ledger, hash_of(1), Change(state=PaymentState.SETTLED, preimage=preimage(2)))
        assert ledger.payment(hash_of(1)) == before
        assert held_msat(ledger) == (11_000, 0)

    def test_an_abandoned_payment_that_is_paid_after_all_is_booked(self, ledger: Ledger) -> None:
        """Else its money would be gone, and its token with it."""
        ledger.open_payment(intent(1), draw(limits()))
        ledger.forget(hash_of(1), abandon=True)
        row = settle(ledger, 1, fee_msat=3)
        assert (row.state, row.preimage, held_msat(ledger)) == (PaymentState.SETTLED, preimage(1).hex(), (0, 10_003))
        assert ledger.live(ORIGIN, "scope-1") == [row]

    @pytest.mark.parametrize("other", [None, settle])
    def test_paid_after_all_beside_another_purchase_it_is_retired(self, ledger: Ledger, other: Any) -> None:
        """Else the settlement couldn't be written at all: one live row a need is what the database allows."""
        ledger.open_payment(intent(1, scope="s"), draw(limits()))
        ledger.forget(hash_of(1), abandon=True)
        ledger.open_payment(intent(2, scope="s"), draw(limits()))
        if other:
            other(ledger, 2)
        total = sum(held_msat(ledger))
        row = settle(ledger, 1)
        assert (row.state, row.preimage) == (PaymentState.RETIRED, preimage(1).hex())
        assert [live.payment_hash for live in ledger.live(ORIGIN, "s")] == [hash_of(2)]
        assert sum(held_msat(ledger)) == total + 10_000

    def test_what_decide_raises_or_leaves_changes_nothing(self, ledger: Ledger) -> None:
        """Else a fault in a decision would leave half of it in the books."""
        ledger.open_payment(intent(1), draw(limits()))
        before = ledger.payment(hash_of(1))

        def fault(row: object) -> Change:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ledger.change(hash_of(1), fault)
        assert ledger.change(hash_of(1), lambda row: None) == before
        assert (ledger.payment(hash_of(1)), held_msat(ledger)) == (before, (11_000, 0))
        with pytest.raises(LedgerError):
            ledger.change(hash_of(2), lambda row: None)

    # -- forgetting -------------------------------------------------------------------------------------------------------

    def test_forgetting_a_token_frees_its_need_and_keeps_the_spend(self, ledger: Ledger) -> None:
        """Else a user could never buy anew, or what was spent would vanish from the budget."""
        ledger.open_payment(intent(1), draw(limits()))
        settle(ledger, 1)
        row = ledger.forget(hash_of(1))
        assert (row.state, row.preimage) == (PaymentState.RETIRED, preimage(1).hex())
        assert ledger.live(ORIGIN) == []
        assert held_msat(ledger) == (0, 10_000)
        assert ledger.forget(hash_of(1)).state is PaymentState.RETIRED

    @pytest.mark.parametrize("state", [None, fail])
    def test_an_unfinished_row_is_forgotten_in_so_many_words_only(self, ledger: Ledger, state: Any) -> None:
        """Else a slip of the hand would free a need whose payment is still under way: paid twice."""
        ledger.open_payment(intent(1), draw(limits()))
        if state:
            state(ledger, 1)
        before = ledger.payment(hash_of(1))
        with pytest.raises(LedgerError) as refused:
            ledger.forget(hash_of(1))
        assert refused.value.spent is None
        assert (ledger.payment(hash_of(1)), held_msat(ledger)) == (before, (11_000, 0))
        row = ledger.forget(hash_of(1), abandon=True)
        assert (row.state, row.failure_code, held_msat(ledger)) == (PaymentState.DEAD, "abandoned", (0, 0))

    @pytest.mark.parametrize("abandon", [False, True])
    def test_forgetting_what_is_not_there_or_dead(self, ledger: Ledger, abandon: bool) -> None:
        """Else a mistyped hash would look forgotten, or a dead row come to life."""
        with pytest.raises(LedgerError):
            ledger.forget(hash_of(9), abandon=abandon)
        ledger.open_payment(intent(1), None)
        die(ledger, 1)
        row = ledger.forget(hash_of(1), abandon=abandon)
        assert (row.state, row.failure_code) == (PaymentState.DEAD, "failed_for_good")

    def test_abandoning_a_settled_payment_returns_no_money(self, ledger: Ledger) -> None:
        """Else `abandon` would be a way to spend the same budget again."""
        ledger.open_payment(intent(1), draw(limits()))
        settle(ledger, 1)
        assert ledger.forget(hash_of(1), abandon=True).state is PaymentState.RETIRED
        assert held_msat(ledger) == (0, 10_000)

    def test_a_refused_token_is_retired_and_says_why(self, ledger: Ledger) -> None:
        """Else a token that one page refuses would be kept from all the others, or be offered to that page for ever."""
        ledger.open_payment(intent(1, scope="s"), draw(limits()))
        assert ledger.retire(hash_of(1)).state is PaymentState.OPEN
        settle(ledger, 1)
        row = ledger.retire(hash_of(1))
        assert (row.state, row.failure_code, row.preimage) == (PaymentState.RETIRED, "refused", preimage(1).hex())
        assert (ledger.live(ORIGIN), held_msat(ledger)) == ([], (0, 10_000))
        assert ledger.retire(hash_of(1)) == ledger.forget(hash_of(1)) == row
        ledger.open_payment(intent(2, scope="s"), None)
        die(ledger, 2)
        assert ledger.retire(hash_of(2)).state is PaymentState.DEAD

    def test_what_was_bought_for_the_very_same_thing_is_found_again(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a token refused for one page would be bought anew for another that it opens."""
        clock = Clock()
        ledger = make_ledger(clock)
        for n, (scope, target, taken) in enumerate(
            [("s", "a", True), ("s", "a", True), ("s", "b", True), ("t", "a", True), ("s", "a", False)]
        ):
            clock.now_s += 1
            ledger.open_payment(intent(n, scope=scope, resource_digest=target), None)
            settle(ledger, n)
            ledger.mark(hash_of(n), accepted=taken)
            ledger.retire(hash_of(n))
        found = ledger.page_tokens(ORIGIN, "a")
        assert [(row.payment_hash, row.scope) for row in found] == [(hash_of(3), "t"), (hash_of(1), "s"), (hash_of(0), "s")]
        assert {row.resource_digest for row in found} == {"a"}
        assert ledger.page_tokens("https://b.example", "a") == ledger.page_tokens(ORIGIN, "c") == []
        ledger.open_payment(intent(5, scope="s", resource_digest="c"), None)
        settle(ledger, 5)
        ledger.mark(hash_of(5), accepted=True)
        assert [row.payment_hash for row in ledger.page_tokens(ORIGIN, "c")] == [hash_of(5)]
        ledger.forget(hash_of(5))  # by the user: not to be used again
        assert ledger.page_tokens(ORIGIN, "c") == []

    def test_the_newest_token_that_served_is_found(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a token that opens the whole server is bought once for each path."""
        clock = Clock()
        ledger = make_ledger(clock)
        assert ledger.newest_accepted(ORIGIN) is None
        for n, accepted in enumerate([True, True, False]):
            clock.now_s += 1
            ledger.open_payment(intent(n, scope=f"s{n}"), None)
            settle(ledger, n)
            ledger.mark(hash_of(n), accepted=accepted)
        ledger.open_payment(intent(7, scope="unfinished"), None)
        newest = ledger.newest_accepted(ORIGIN)
        assert newest is not None
        assert newest.payment_hash == hash_of(1)
        assert ledger.newest_accepted("https://b.example") is None
        ledger.retire(hash_of(1))
        newest = ledger.newest_accepted(ORIGIN)
        assert newest is not None
        assert newest.payment_hash == hash_of(0)
        ledger.forget(hash_of(0))
        assert ledger.newest_accepted(ORIGIN) is None

    @pytest.mark.parametrize("refused", [True, False])
    def test_an_origin_that_delivered_nothing_is_known(self, make_ledger: Callable[..., Ledger], refused: bool) -> None:
        """Else a server that never accepts what it sells is paid once for each of its pages."""
        ledger = make_ledger()
        for n in range(2):
            ledger.open_payment(intent(n, scope=f"s{n}"), None)
            assert ledger.undelivered(ORIGIN) is None, "unfinished"
            settle(ledger, n)
            assert ledger.undelivered(ORIGIN) is None, "not offered yet"
            if n == 1 or refused:
                ledger.note_undelivered(hash_of(0), refused=refused)
                ledger.note_undelivered(hash_of(n), refused=False)
                break
        row = make_ledger().undelivered(ORIGIN)
        assert row is not None
        code = "refused" if refused else "undelivered"
        assert (row.payment_hash, row.state.value, row.failure_code) == (hash_of(0), "settled", code)
        assert ledger.undelivered("https://b.example") is None
        ledger.mark(hash_of(0), accepted=True)
        assert ledger.undelivered(ORIGIN) is None
        accepted = ledger.payment(hash_of(0))
        assert accepted is not None
        assert (accepted.failure_code, accepted.failure_text) == (None, None), "it is a good token like any other"
        ledger.note_undelivered(hash_of(0), refused=True)
        assert ledger.payment(hash_of(0)) == accepted, "it has served"

    def test_one_error_says_nothing_and_a_forgotten_token_neither(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else one missing page closes a server; or its user has no way out."""
        ledger = make_ledger()
        ledger.open_payment(intent(1, scope="s1"), None)
        settle(ledger, 1)
        ledger.note_undelivered(hash_of(1), refused=False)
        assert ledger.undelivered(ORIGIN) is None
        ledger.note_undelivered(hash_of(1), refused=True)
        assert ledger.undelivered(ORIGIN) is not None
        ledger.note_undelivered(hash_of(1), refused=False)
        assert ledger.undelivered(ORIGIN) is not None, "a refusal stays one"
        ledger.forget(hash_of(1))
        assert ledger.undelivered(ORIGIN) is None

    def test_used_up_tokens_are_counted_until_one_serves_twice(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a server that sells single uses is never known; or one that doesn't is taken for one for ever."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), None)
        settle(ledger, 1)
        assert ledger.used_up_in_a_row(ORIGIN) == 0
        for expected in (1, 2, 3):
            make_ledger().note_used_up(ORIGIN)
            assert ledger.used_up_in_a_row(ORIGIN) == expected
        assert ledger.used_up_in_a_row("https://b.example") == 0
        for accepted_again in (False, True, True):
            ledger.mark(hash_of(1), accepted=True)
            row = ledger.payment(hash_of(1))
            assert row is not None
            assert (row.accepted, row.accepted_again) == (True, accepted_again)
            assert ledger.used_up_in_a_row(ORIGIN) == (0 if accepted_again else 3)
        ledger.mark(hash_of(1), reported=True)
        row = ledger.payment(hash_of(1))
        assert row is not None
        assert (row.accepted, row.accepted_again, row.reported) == (True, True, True)
        ledger.note_used_up(ORIGIN, hash_of(1))
        assert ledger.used_up_in_a_row(ORIGIN) == 0, "it is live"
        ledger.retire(hash_of(1))
        for _ in range(3):
            ledger.note_used_up(ORIGIN, hash_of(1))
            assert ledger.used_up_in_a_row(ORIGIN) == 1, "a token counts once"

    def test_what_a_path_needs_can_be_forgotten(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a page that is gone is doubted, and paid for, by each new session."""
        ledger = make_ledger()
        ledger.learn(ORIGIN, "/a", "s")
        ledger.learn(ORIGIN, "/b", "s")
        ledger.unlearn(ORIGIN, "/a")
        ledger.unlearn(ORIGIN, "/never")
        assert ledger.learned(ORIGIN) == {"/b": "s"}

    def test_a_page_has_one_purchase_until_it_was_served(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a server that names another scope each time would be paid each time, for a page that never comes."""
        ledger = make_ledger()
        first, _ = ledger.open_payment(intent(1, scope="s", resource_digest="a"), draw(limits()))
        assert ledger.standing(ORIGIN, "a") == first
        assert ledger.standing("https://b.example", "a") is ledger.standing(ORIGIN, "b") is ledger.standing(ORIGIN, "") is None
        for state in ("open", "failed", "settled"):
            if state == "failed":
                fail(ledger, 1)
            if state == "settled":
                settle(ledger, 1)
            row, is_new = make_ledger().open_payment(intent(2, scope=f"scope {state}", resource_digest="a"), draw(limits("other")))
            assert (row.payment_hash, row.state.value, is_new) == (hash_of(1), state, False)
        assert ledger.open_payment(intent(3, scope="u", resource_digest="b"), None)[1], "another page"
        assert ledger.open_payment(intent(4, scope="s", origin="https://b.example", resource_digest="a"), None)[1], "another origin"
        ledger.mark(hash_of(1), accepted=True)
        assert ledger.standing(ORIGIN, "a") is None
        row, is_new = ledger.open_payment(intent(2, scope="t", resource_digest="a"), None)
        assert (row.payment_hash, is_new) == (hash_of(1), False), "it was served while another looked"
        assert ledger.open_payment(intent(2, scope="t", resource_digest="a", known_tokens=(hash_of(1),)), None)[1]
        assert [row.id for row in ledger.envelopes()] == ["e"], "nothing else was reserved"

    def test_writers_that_race_for_one_page_make_one_row(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else two machines would each buy a page whose server names a scope of its own to each of them."""
        for page in range(5):

            def buy(n: int, page: int = page) -> bool:
                wanted = intent(100 * (page + 1) + n, resource_digest=f"page {page}")
                return make_ledger().open_payment(wanted, draw(limits(f"e{n}")))[1]

            assert sum(at_once([partial(buy, n) for n in range(6)])) == 1

    def test_a_payment_made_after_it_was_abandoned_yields_to_the_one_that_stands_for_its_page(self, ledger: Ledger) -> None:
        """Else its booking would fail, and money that was spent be missing from the budget."""
        ledger.open_payment(intent(1, scope="s", resource_digest="a"), draw(limits()))
        ledger.forget(hash_of(1), abandon=True)
        assert ledger.open_payment(intent(2, scope="t", resource_digest="a"), draw(limits()))[1]
        row = settle(ledger, 1)
        assert (row.state, row.preimage) == (PaymentState.RETIRED, preimage(1).hex())
        assert [each.payment_hash for each in ledger.page_tokens(ORIGIN, "a")] == [hash_of(1)]
        settle(ledger, 2)
        assert held_msat(ledger) == (0, 20_000)

    # -- an order that leaves again ---------------------------------------------------------------------------------------

    def test_an_order_that_leaves_again_is_reserved_where_it_leaves_from(self, ledger: Ledger) -> None:
        """Else a session would pay more than its own envelope allows, with orders that others began."""
        for n in (1, 2):
            ledger.open_payment(intent(n), draw(limits("theirs")))
        ours = draw(limits("ours", cap_minor_units=21))
        row = ledger.count_send(hash_of(1), ours)
        assert row is not None
        assert (row.envelope_id, row.reserved_micro, row.sends_ever) == ("ours", 11 * 10**6, 2)
        assert (held_msat(ledger, "theirs"), held_msat(ledger, "ours")) == ((11_000, 0), (11_000, 0))
        with pytest.raises(BudgetExceededError):
            ledger.count_send(hash_of(2), ours)
        assert ledger.count_send(hash_of(1), ours) is not None, "it is reserved here already, and isn't counted twice"
        second = ledger.payment(hash_of(2))
        assert second is not None
        assert (second.envelope_id, second.sends_ever) == ("theirs", 1)
        settle(ledger, 1, fee_msat=500)
        assert (held_msat(ledger, "theirs"), held_msat(ledger, "ours")) == ((11_000, 0), (0, 10_500))

    @pytest.mark.parametrize("name", ["cap", "per_call", "per_hour", "per_day"])
    def test_an_order_leaves_again_only_if_amount_and_highest_fee_fit(self, ledger: Ledger, name: str) -> None:
        """Else the fee that the row's first session allowed would carry this session past its limit."""
        ledger.open_payment(intent(1), draw(limits("theirs")))
        with pytest.raises(BudgetExceededError):
            ledger.count_send(hash_of(1), draw(limits("ours", **{f"{name}_minor_units": 10})))
        assert (held_msat(ledger, "theirs"), held_msat(ledger, "ours")) == ((11_000, 0), (0, 0))
        assert ledger.count_send(hash_of(1), draw(limits("ours", **{f"{name}_minor_units": 11}))) is not None

    def test_an_order_without_an_envelope_counts_in_that_of_the_session_that_sends_it_again(self, ledger: Ledger) -> None:
        """Else a session with a budget would pay for one without, past any limit."""
        ledger.open_payment(intent(1), None)
        ledger.count_send(hash_of(1), draw(limits(cap_minor_units=100)))
        settle(ledger, 1)
        assert held_msat(ledger) == (0, 10_000)

    def test_a_lowered_limit_holds_for_an_order_that_leaves_again(self, ledger: Ledger) -> None:
        """Else who lowers a limit to stop the spending would still pay what is under way."""
        ledger.open_payment(intent(1), draw(limits(cap_minor_units=100)))
        with pytest.raises(BudgetExceededError):
            ledger.count_send(hash_of(1), draw(limits(cap_minor_units=5)))
        row = ledger.payment(hash_of(1))
        assert row is not None
        assert row.sends_ever == 1

    # -- notes ------------------------------------------------------------------------------------------------------------

    def test_marks_stay_and_touch_nothing_else(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a token that was taken would be offered for seconds when refused, or a payment be told twice."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), None)
        ledger.open_payment(intent(2), None)
        settle(ledger, 1)
        settle(ledger, 2)
        assert [row.payment_hash for row in ledger.unreported()] in ([hash_of(1), hash_of(2)], [hash_of(2), hash_of(1)])
        ledger.mark(hash_of(1), reported=True)
        ledger.mark(hash_of(2), accepted=True)
        ledger.mark(hash_of(1))
        ledger.mark(hash_of(9), accepted=True, reported=True)
        rows = {row.payment_hash: (row.accepted, row.reported, row.state) for row in make_ledger().payments()}
        settled = PaymentState.SETTLED
        assert rows == {hash_of(1): (False, True, settled), hash_of(2): (True, False, settled)}
        assert [row.payment_hash for row in ledger.unreported()] == [hash_of(2)]

    def test_who_settles_a_payment_claims_its_report(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else two processes would report the same payment, and the trace tell of twice what was spent."""
        clock = Clock()
        ledger, other = make_ledger(clock), make_ledger(clock)
        ledger.open_payment(intent(1), None)
        change = Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(1))
        row = ledger.change(hash_of(1), lambda row: change, claimant="a")
        assert row.claimant == "a"
        assert row.claimed_until is not None
        assert other.claim_report(hash_of(1), "b") is None
        assert other.claim_report(hash_of(1), "b", instead_of="c") is None
        assert ledger.claim_report(hash_of(1), "a") is not None
        clock.now_s += CLAIM_S - 1
        assert other.claim_report(hash_of(1), "b") is None
        clock.now_s += 2
        taken = other.claim_report(hash_of(1), "b")
        assert taken is not None
        assert taken.claimant == "b"
        assert ledger.claim_report(hash_of(1), "a") is None
        assert ledger.claim_report(hash_of(1), "a", instead_of="b") is not None, "it is known to be dead"
        ledger.release_report(hash_of(1), "b")
        assert other.claim_report(hash_of(1), "b") is None
        ledger.release_report(hash_of(1), "a")
        assert other.claim_report(hash_of(1), "b") is not None
        ledger.mark(hash_of(1), reported=True)
        clock.now_s += 10 * CLAIM_S
        assert ledger.claim_report(hash_of(1), "a") is other.claim_report(hash_of(1), "b") is None

    def test_no_report_of_an_unpaid_row_is_claimed(self, ledger: Ledger) -> None:
        """Else the trace would tell of a payment that never was."""
        ledger.open_payment(intent(1), None)
        assert ledger.claim_report(hash_of(1), "a") is None
        assert ledger.claim_report(hash_of(9), "a") is None

    def test_unpaid_rows_are_not_told_of(self, ledger: Ledger) -> None:
        """Else the trace would tell of payments that never were."""
        for n in range(3):
            ledger.open_payment(intent(n), None)
        fail(ledger, 1)
        die(ledger, 2)
        assert ledger.unreported() == []

    def test_learned_paths_are_bounded(self, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
        """Else a server with endless URLs would fill the disk."""
        monkeypatch.setattr(server_facts, "MAX_LEARNED_PATHS", 3)
        ledger = make_ledger()
        for n in range(11):
            ledger.learn(ORIGIN, f"/{n}", "s")
            learned = ledger.learned(ORIGIN)
            assert learned[f"/{n}"] == "s"
            assert len(learned) <= 3
        ledger.learn("https://b.example", "/", "other")
        ledger.learn(ORIGIN, "/10", "changed")
        assert make_ledger().learned(ORIGIN)["/10"] == "changed"
        assert ledger.learned("https://b.example") == {"/": "other"}

    # -- reading ----------------------------------------------------------------------------------------------------------

    def test_payments_come_oldest_first_each_once(
        self, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a report over many payments would leave some out, or count some twice."""
        monkeypatch.setattr(readings, "PAGE_ROWS", 4)
        clock = Clock()
        ledger = make_ledger(clock)
        for n in range(21):  # five of each moment: pages end within one
            clock.now_s = NOON_S + n // 5
            ledger.open_payment(intent(n, origin=ORIGIN if n % 2 else "https://b.example"), None)
            if n % 3 == 0:
                settle(ledger, n)
        rows = list(ledger.payments())
        assert [(r.created_at, r.payment_hash) for r in rows] == sorted((r.created_at, r.payment_hash) for r in rows)
        assert {r.payment_hash for r in rows} == {hash_of(n) for n in range(21)}
        assert len(rows) == 21
        expected = [r for r in rows if r.origin == ORIGIN and r.state is PaymentState.SETTLED]
        assert list(ledger.payments(state="settled", origin=ORIGIN)) == expected
        assert list(ledger.payments(state=PaymentState.OPEN)) == [r for r in rows if r.state is PaymentState.OPEN]
        assert list(ledger.payments(origin="https://c.example")) == []
        assert [r.payment_hash for r in ledger.unfinished()] == [r.payment_hash for r in rows if r.unfinished]
        with pytest.raises(ValueError):
            list(ledger.payments(state="lost"))

    def test_payments_are_found_by_their_age_from_either_end(
        self, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else the newest payments of a long ledger would be found only after all the others."""
        monkeypatch.setattr(readings, "PAGE_ROWS", 4)
        clock = Clock()
        ledger = make_ledger(clock)
        for n in range(21):
            clock.now_s = NOON_S + n // 5
            ledger.open_payment(intent(n, origin=ORIGIN if n % 2 else "https://b.example"), None)
        rows = list(ledger.payments())
        assert list(ledger.payments(newest_first=True)) == rows[::-1]
        assert list(ledger.payments(newest_first=True, origin=ORIGIN)) == [r for r in rows if r.origin == ORIGIN][::-1]
        since = datetime.fromtimestamp(NOON_S + 2, timezone.utc)
        late = [r for r in rows if r.created_at >= since]
        assert 0 < len(late) < len(rows)
        assert list(ledger.payments(since=since)) == late
        assert list(ledger.payments(since=since, newest_first=True)) == late[::-1]
        assert list(ledger.payments(since=since + timedelta(days=1))) == []

    def test_payments_are_found_by_the_start_of_their_hash(self, ledger: Ledger) -> None:
        """Else people would have to copy 64 digits from a table that has no room for them."""
        for n in range(40):
            ledger.open_payment(intent(n), None)
        hashes = sorted(hash_of(n) for n in range(40))
        for beginning in (*(each[:8] for each in hashes), hashes[0], "0", "f", "a"):
            expected = [each for each in hashes if each.startswith(beginning)]
            assert [row.payment_hash for row in ledger.payments_named(beginning, 40)] == expected
        assert [row.payment_hash for row in ledger.payments_named("", 3)] == hashes[:3]
        assert ledger.payments_named("0" * 64, 3) == []

    def test_a_report_under_way_blocks_nobody(self, make_ledger: Callable[..., Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
        """Else a forgotten iterator would keep every session from buying."""
        monkeypatch.setattr(readings, "PAGE_ROWS", 2)
        ledger = make_ledger()
        for n in range(5):
            ledger.open_payment(intent(n), None)
        report = ledger.payments()
        next(report)
        assert ledger.open_payment(intent(5), None)[1]
        assert make_ledger().open_payment(intent(6), None)[1]
        assert len(list(report)) >= 4

    def test_no_secret_in_a_rows_repr(self, ledger: Ledger) -> None:
        """Else a log line or a traceback would hand out a paid token."""
        made = intent(1, token="s3cret-token")
        row, _ = ledger.open_payment(made, None)
        settled = settle(ledger, 1)
        for shown in (repr(made), repr(row), repr(settled), repr(Change(state=PaymentState.SETTLED, preimage=preimage(1)))):
            assert "s3cret" not in shown
            assert preimage(1).hex() not in shown
            assert repr(preimage(1)) not in shown

    def test_closing_is_no_end(self, ledger: Ledger) -> None:
        """Else a session used after close() would fail in the middle of a purchase."""
        ledger.open_payment(intent(1), None)
        ledger.close()
        ledger.close()
        assert ledger.exists()
        assert ledger.open_payment(intent(2), None)[1]
        assert len(list(ledger.payments())) == 2

    def test_looking_whether_it_exists_makes_nothing(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else free traffic would leave a ledger behind."""
        ledger = make_ledger()
        assert not ledger.exists()
        ledger.close()
        assert not make_ledger().exists()

    # -- amounts ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("amount_msat", [2_100_000_000_000_000_000, 2**62, 2**63, 2**70])
    @pytest.mark.parametrize("fee_cap_msat", [0, 2**61, 2**70])
    def test_amounts_beyond_all_bitcoin_are_refused_or_held_exactly(
        self, ledger: Ledger, amount_msat: int, fee_cap_msat: int
    ) -> None:
        """Else an absurd invoice would overflow into a small number, and be paid."""
        huge = intent(1, amount_msat=amount_msat, fee_cap_msat=fee_cap_msat)
        with pytest.raises((BudgetError, LedgerError)):
            ledger.open_payment(huge, draw(limits()))
        assert ledger.payment(hash_of(1)) is None
        try:
            row, _ = ledger.open_payment(huge, None)
        except LedgerError:
            assert ledger.payment(hash_of(1)) is None
        else:
            assert (row.amount_msat, row.max_fee_msat) == (amount_msat, fee_cap_msat)
        assert ledger.open_payment(intent(2), draw(limits()))[1]
        assert held_msat(ledger) == (11_000, 0)

    def test_totals_end_before_they_overflow(self, ledger: Ledger) -> None:
        """Else the total of an envelope without limits would turn into a float, and from then on be wrong."""
        amount_msat = 2 * 10**15  # 20 000 bitcoin
        for n in range(2):
            assert ledger.open_payment(intent(n, amount_msat=amount_msat, fee_cap_msat=0), draw(limits()))[1]
            settle(ledger, n)
        for n in range(2, 5):
            with pytest.raises(BudgetError):
                ledger.open_payment(intent(n, amount_msat=amount_msat, fee_cap_msat=0), draw(limits()))
        assert held_msat(ledger) == (0, 2 * amount_msat)

    @pytest.mark.parametrize("amount_msat", [0, -1])
    def test_an_amount_that_is_none_is_refused(self, ledger: Ledger, amount_msat: int) -> None:
        """Else a reservation of nothing, or less, would cover a payment."""
        with pytest.raises(LedgerError):
            ledger.open_payment(intent(1, amount_msat=amount_msat, fee_cap_msat=0), draw(limits()))
        assert list(ledger.payments()) == []

    def test_a_fee_beyond_counting_leaves_the_row_unfinished(self, ledger: Ledger) -> None:
        """Else a node's nonsense would turn the totals into nonsense."""
        ledger.open_payment(intent(1), draw(limits()))
        with pytest.raises(LedgerError):
            settle(ledger, 1, fee_msat=2**80)
        assert held_msat(ledger) == (11_000, 0)
        assert len(ledger.unfinished()) == 1

    def test_the_ledgers_clock_is_real_by_default(self, ledger: Ledger) -> None:
        """Else hours and days would never pass."""
        row, _ = ledger.open_payment(intent(1), None)
        assert abs(row.created_at.timestamp() - time.time()) < PATIENCE_S


class LedgerContract(RowsContract, LimitsContract, LookupsContract, SpendingContract, ChargesContract, ArchiveContract):
    """All that a ledger promises."""
