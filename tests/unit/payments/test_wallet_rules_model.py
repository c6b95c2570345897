"""The real purchase table, model-checked: no order of buyers, crashes, broken streams and late orders pays twice or loses money.

`tests.support.purchase_model` is the world; the mutations below show that its checker has teeth.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.types import Change, PaymentRow
from routeweiler_sync.payments import wallet_rules
from routeweiler_sync.payments.wallet_rules import WALLET_RULES, NextStep, Rule, WalletEvent
from tests.support import purchase_model as purchase_world
from tests.support.ledger_builders import draw, hash_of, intent, limits, preimage
from tests.support.purchase_model import DEAD, FAILED, OPEN, SETTLED, Book, Row, World, canonical, explore, faults, start, steps

pytestmark = pytest.mark.model

DEEP = "ROUTEWEILER_DEEP_TESTS"
SMALL = start(invoices=2, buyers=2, crashes=1, breaks=1, refusals=1)
#: With a wallet that pays every order, and may settle what it called failed.
LOOSE = start(invoices=2, buyers=2, crashes=1, breaks=1, refusals=0, promises=False)
TINY = start(invoices=2, buyers=2, crashes=1, breaks=0, refusals=1)

# -- the real table ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(start(invoices=2, buyers=2, crashes=2, breaks=1, refusals=1), id="two buyers"),
        pytest.param(start(invoices=3, buyers=2, crashes=1, breaks=1, refusals=0), id="three invoices"),
        pytest.param(start(invoices=2, buyers=3, crashes=1, breaks=0, refusals=0), id="three buyers"),
        pytest.param(start(invoices=3, buyers=2, crashes=2, breaks=2, refusals=1, promises=False), id="a wallet without promises"),
    ],
)
def test_no_interleaving_breaks_a_promise(world: World) -> None:
    """Else some order of crashes and late messages would pay twice, pay what no budget covers, or never come to an end."""
    found = explore(world)
    assert found.broken == {}
    assert found.worlds > 10_000


@pytest.mark.skipif(DEEP not in os.environ, reason=f"set {DEEP} to walk further: minutes, and a few GB")
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(start(invoices=2, buyers=2, crashes=3, breaks=2, refusals=1), id="more faults"),
        pytest.param(start(invoices=3, buyers=2, crashes=2, breaks=1, refusals=1), id="three invoices"),
        pytest.param(start(invoices=2, buyers=3, crashes=1, breaks=1, refusals=1), id="three buyers"),
    ],
)
def test_no_longer_interleaving_breaks_a_promise(world: World) -> None:
    """A longer walk may break a promise that no short one does: more buyers, more replies, more orders."""
    assert explore(world).broken == {}


@pytest.mark.parametrize("seed", range(4))
def test_no_random_walk_of_a_crowd_breaks_a_promise(seed: int) -> None:
    """Else what needs four buyers and many faults to go wrong would go wrong in a fleet, and nowhere else."""
    dice, walks = random.Random(seed), 2_000 if DEEP in os.environ else 60
    for _ in range(walks):
        world = start(invoices=4, buyers=4, crashes=8, breaks=5, refusals=3)
        path: list[str] = []
        while len(path) < 400:
            following = list(steps(world))
            lively = [(what, after) for what, after in following if "expires" not in what and "often enough" not in what]
            if not following:
                break
            what, world = dice.choice(lively if lively and dice.random() < 0.95 else following)
            world = canonical(world)
            path.append(what)
            assert not faults(world), " → ".join(path)


# -- the checker's teeth ----------------------------------------------------------------------------------------------------

Mutation = Callable[[pytest.MonkeyPatch], None]
UNFINISHED = (OPEN, FAILED)


def cells(*events: WalletEvent, state: Any, act: NextStep) -> Mutation:
    """The table with other rules for ``events``; ``state`` None leaves the row's as it is."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        for event in events:
            for row_state in UNFINISHED:
                patch.setitem(WALLET_RULES, (row_state, event), Rule(state=state or row_state, next_step=act, why="a mutation"))

    return mutate


def reading(change: Callable[[PaymentRow, NextStep, WalletAnswer, WalletEvent], WalletEvent]) -> Mutation:
    """Words read otherwise."""
    read = wallet_rules.read

    def mutate(patch: pytest.MonkeyPatch) -> None:
        def changed(row: PaymentRow, asked: NextStep, answer: WalletAnswer, **outlived: bool) -> WalletEvent:
            return change(row, asked, answer, read(row, asked, answer, **outlived))

        patch.setattr(wallet_rules, "read", changed)

    return mutate


def failed_is_always_final(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    return WalletEvent.FAILED_FOR_GOOD if answer.reply is WalletReply.FAILED else event


def failed_is_final_beside_one_send(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    unanswered = row.sends_unanswered - wallet_rules.answered(asked, answer)
    return WalletEvent.FAILED_FOR_GOOD if answer.reply is WalletReply.FAILED and unanswered <= 1 else event


def not_found_is_like_expired(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    return WalletEvent.GONE if event is WalletEvent.NOT_FOUND else event


def silence_counts_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wallet_rules, "answered", lambda asked, answer: int(asked is NextStep.SEND))


def the_first_send_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(purchase_world, "Row", lambda *values: Row(*values) if values else Row(OPEN, 0, 0))


def sends_of_ended_rows_are_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Book, "count_send", lambda book, i: book.put(i, book.rows[i]._replace(ever=2, unanswered=2)))


def a_failed_row_frees_its_scope(patch: pytest.MonkeyPatch) -> None:
    def live(book: Book) -> int | None:
        return next((i for i, row in enumerate(book.rows) if row is not None and row.state in (OPEN, SETTLED)), None)

    patch.setattr(Book, "live", live)


def failed_returns_the_reservation(patch: pytest.MonkeyPatch) -> None:
    change = Book.change

    def uncovering(book: Book, i: int, wanted: Change) -> Book:
        after = change(book, i, wanted)
        row = after.rows[i]
        assert row is not None
        return after.put(i, row._replace(covered=row.state not in (DEAD, FAILED)))

    patch.setattr(Book, "change", uncovering)


@pytest.mark.parametrize(
    ("mutate", "breaks"),
    [
        pytest.param(reading(failed_is_always_final), {"once", "covered"}, id="no count of sends: FAILED is always final"),
        pytest.param(
            cells(WalletEvent.FAILED_OWN_SEND, WalletEvent.FAILED_SEEN, state=DEAD, act=NextStep.RAISE_FAILED),
            {"once", "covered"},
            id="a new invoice after FAILED with unanswered sends",
        ),
        pytest.param(
            cells(WalletEvent.NOT_FOUND, state=DEAD, act=NextStep.RAISE_EXPIRED),
            {"once", "covered"},
            id="our clock gives up on NOT_FOUND",
        ),
        pytest.param(
            cells(WalletEvent.REFUSED_BESIDE, state=DEAD, act=NextStep.RAISE_REFUSED),
            {"once", "covered"},
            id="REFUSED is always final",
        ),
        pytest.param(
            cells(WalletEvent.EXPIRED, state=DEAD, act=NextStep.RAISE_EXPIRED),
            {"once", "covered"},
            id="no last look after EXPIRED",
        ),
        pytest.param(reading(not_found_is_like_expired), {"once", "covered"}, id="NOT_FOUND is final without EXPIRED"),
        pytest.param(reading(failed_is_final_beside_one_send), {"once", "covered"}, id="one unanswered send is overlooked"),
        pytest.param(silence_counts_off, {"once", "covered"}, id="silence counts a send off"),
        pytest.param(the_first_send_is_not_counted, {"once", "covered"}, id="the first send isn't counted before it leaves"),
        pytest.param(sends_of_ended_rows_are_counted, {"once", "covered"}, id="an ended row is sent again"),
        pytest.param(failed_returns_the_reservation, {"covered"}, id="FAILED returns the reservation"),
        pytest.param(a_failed_row_frees_its_scope, {"once"}, id="a failed row frees its scope"),
        pytest.param(
            cells(WalletEvent.IN_FLIGHT, state=SETTLED, act=NextStep.HAND_OVER),
            {"booked"},
            id="in flight is booked as if it were paid",
        ),
    ],
)
def test_a_table_that_pays_twice_is_found_out(monkeypatch: pytest.MonkeyPatch, mutate: Mutation, breaks: set[str]) -> None:
    """Else the walk above would say that all is well whatever the rules were."""
    mutate(monkeypatch)
    assert set(explore(SMALL, all_of_it=False).broken) & breaks


def so_far_is_final(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    return WalletEvent.FAILED_FOR_GOOD if answer.reply is WalletReply.FAILED_SO_FAR else event


def so_far_is_as_lnd_s(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    return WalletEvent.NOT_FOUND if event is WalletEvent.UNPAID_SO_FAR else event


def expired_is_enough(row: PaymentRow, asked: NextStep, answer: WalletAnswer, event: WalletEvent) -> WalletEvent:
    return WalletEvent.OUTLIVED if event is WalletEvent.UNPAID_SO_FAR else event


@pytest.mark.parametrize(
    ("mutate", "breaks"),
    [
        pytest.param(reading(so_far_is_final), {"once", "covered"}, id="failed so far is final"),
        pytest.param(reading(so_far_is_as_lnd_s), {"once"}, id="failed so far is sent again"),
        pytest.param(reading(expired_is_enough), {"once", "covered"}, id="failed so far ends a row without the long wait"),
        pytest.param(
            cells(WalletEvent.OUTLIVED, state=None, act=NextStep.RAISE_PENDING), {"finish"}, id="a row that nothing ever ends"
        ),
    ],
)
def test_a_wallet_without_promises_needs_each_of_its_rules(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutation, breaks: set[str]
) -> None:
    """Else the rules for such wallets could be dropped, and the walk over them would say that all is well."""
    assert explore(LOOSE).broken == {}
    mutate(monkeypatch)
    assert set(explore(LOOSE, all_of_it="finish" in breaks).broken) & breaks


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(reading(failed_is_always_final), id="FAILED is always final"),
        pytest.param(cells(WalletEvent.NOT_FOUND, state=DEAD, act=NextStep.RAISE_EXPIRED), id="our clock gives up on NOT_FOUND"),
        pytest.param(cells(WalletEvent.REFUSED_BESIDE, state=DEAD, act=NextStep.RAISE_REFUSED), id="REFUSED is always final"),
        pytest.param(cells(WalletEvent.EXPIRED, state=DEAD, act=NextStep.RAISE_EXPIRED), id="no last look after EXPIRED"),
    ],
)
def test_each_promise_is_checked(monkeypatch: pytest.MonkeyPatch, mutate: Mutation) -> None:
    """Else only the promise that breaks first would be watched."""
    mutate(monkeypatch)
    assert explore(TINY).broken.keys() >= {"once", "covered"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(cells(WalletEvent.GONE, state=None, act=NextStep.RAISE_PENDING), id="an expired invoice is never given up"),
        pytest.param(cells(WalletEvent.PAID, state=None, act=NextStep.RAISE_PENDING), id="a payment is never booked"),
        pytest.param(
            cells(WalletEvent.FAILED_SEEN, state=FAILED, act=NextStep.RAISE_PENDING), id="a failed row is never sent again"
        ),
    ],
)
def test_a_table_that_never_ends_is_found_out(monkeypatch: pytest.MonkeyPatch, mutate: Mutation) -> None:
    """Else a scope could stick for ever to a purchase that nothing ends, and the walk would call that well."""
    mutate(monkeypatch)
    assert "finish" in explore(TINY).broken


def test_the_way_to_a_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a broken rule would have to be debugged by guessing."""
    cells(WalletEvent.EXPIRED, state=DEAD, act=NextStep.RAISE_EXPIRED)(monkeypatch)
    way = explore(SMALL, all_of_it=False).broken["covered"].split(" → ")
    assert way[0] == "opens"
    assert any("expires" in step for step in way)


# -- the double -------------------------------------------------------------------------------------------------------------


def deciding(row: PaymentRow, asked: NextStep, answer: WalletAnswer) -> Change:
    return wallet_rules.decide(row, asked, answer).change


@pytest.mark.parametrize("seed", range(12))
def test_the_double_does_what_the_ledger_does(tmp_path: Path, seed: int) -> None:
    """Else the walk would check a ledger that isn't ours."""
    dice, ledger, book = random.Random(seed), Ledger.open(tmp_path / "ledger.db"), Book((None, None, None))
    did: set[str] = set()
    for _ in range(150):
        i = dice.randrange(3)
        row = book.rows[i]
        deed = dice.choice(["open", "count", "take", "take", "take"])
        if row is None or deed == "open":
            book, standing, is_new = book.open_payment(i)
            real, really_new = ledger.open_payment(intent(i, scope="s"), draw(limits(cap_minor_units=10**6)))
            assert (real.payment_hash, really_new) == (hash_of(standing), is_new)
        elif deed == "count":
            counted = book.count_send(i)
            assert (ledger.count_send(hash_of(i)) is None) == (counted is None)
            book = counted or book
        else:
            asked = dice.choice([NextStep.SEND, NextStep.TRACK, NextStep.LAST_LOOK])
            if asked is NextStep.SEND and not row.unanswered:
                continue
            reply = dice.choice(
                [reply for reply in WalletReply if reply not in (WalletReply.WRONG_PREIMAGE, WalletReply.SUCCEEDED)] * 4
                + [WalletReply.SUCCEEDED]
            )
            answer = WalletAnswer(reply=reply, preimage=preimage(i) if reply is WalletReply.SUCCEEDED else None)
            step = wallet_rules.decide(purchase_world.seen(row), asked, answer)
            if row.state is DEAD and step.settles and book.live() is not None:
                continue  # abandoned, then paid beside another: the ledger contract's
            changed = ledger.change(hash_of(i), partial(deciding, asked=asked, answer=answer))
            book = book.change(i, step.change)
            assert changed.preimage is None or changed.preimage == preimage(i).hex()
        did.add(deed)
        for n, mine in enumerate(book.rows):
            real_row = ledger.payment(hash_of(n))
            assert (mine is None) == (real_row is None)
            if mine is not None and real_row is not None:
                covered = bool(real_row.reserved_micro or real_row.settled_micro)
                assert mine == Row(real_row.state, real_row.sends_ever, real_row.sends_unanswered, covered)
        live = book.live()
        assert [r.payment_hash for r in ledger.live("https://api.example", "s")] == ([] if live is None else [hash_of(live)])
    assert did == {"open", "count", "take"}
    ledger.close()
