"""The audit finds every kind of difference that can be made by hand, and none where there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync._core.money import Rate, minor_units
from routeweiler_sync.audit import Difference, Kind, NodeAccount, Report, compare, confirmed
from routeweiler_sync.audit.external_checks import UNTOLD_GRACE_S
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.ledger import snapshot as books
from routeweiler_sync.ledger.ledger import CLAIM_S, Ledger
from routeweiler_sync.ledger.sqlite import SqliteStore
from routeweiler_sync.trace.reader import ReportedPayment, TraceAccount
from tests.support.ledger_builders import NOON_S, SAT, Clock, die, draw, fail, hash_of, intent, limits, preimage, settle

PUBKEY = "02" * 33
DAILY = limits("e", per_day_minor_units=1_000_000)
EURO = Rate(currency="eur", btc_price=Decimal("61234.56"), quality="static")


class World:
    """A ledger with payments of every state, and the accounts that a faithful trace and node would give of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.clock = Clock()
        self.ledger = Ledger(SqliteStore(self.path), clock=self.clock)
        self.buy(1, fee_msat=1_000)
        self.buy(2, fee_msat=0)
        self.ledger.forget(hash_of(2))
        self.buy(3, envelope=None)
        self.buy(4, envelope=limits("euros", cap_currency="eur", cap_minor_units=10_000), rate=EURO, fee_msat=700)
        self.buy(5, proved=False)
        self.open(6)
        die(self.ledger, 6)
        for n in (1, 2, 3, 4, 5):
            self.ledger.mark(hash_of(n), reported=True)
        self.trace = self.told()
        self.node = self.paid()

    def open(self, n: int, envelope: Any = DAILY, rate: Rate = SAT) -> None:
        self.ledger.open_payment(intent(n), None if envelope is None else draw(envelope, rate=rate))

    def buy(self, n: int, *, fee_msat: int = 0, proved: bool = True, **kwargs: Any) -> None:
        self.open(n, **kwargs)
        settle(self.ledger, n, fee_msat=fee_msat, proved=proved)

    def told(self) -> TraceAccount:
        paid = [row for row in self.ledger.snapshot().payments.values() if row.paid]
        return TraceAccount(
            files=("trace",),
            payments={
                row.payment_hash: (
                    ReportedPayment(
                        amount_msat=row.amount_msat,
                        fee_msat=row.fee_msat,
                        booked_minor_units=None if row.currency is None else minor_units(row.settled_micro),
                        currency=row.currency,
                        proof=row.preimage,
                    ),
                )
                for row in paid
            },
            since_s=NOON_S - 1,
            lines=len(paid),
            unreadable=0,
        )

    def paid(self) -> NodeAccount:
        paid = [row for row in self.ledger.snapshot().payments.values() if row.paid]
        return NodeAccount.of(PUBKEY, [there(row.payment_hash, fee_msat=row.fee_msat) for row in paid])

    def with_node(self, payment: NodePayment) -> None:
        self.node = NodeAccount(pubkey=PUBKEY, payments={**self.node.payments, payment.payment_hash: payment})

    def with_telling(self, n: int, **changes: Any) -> None:
        (told,) = self.trace.payments[hash_of(n)]
        self.trace = replace(self.trace, payments={**self.trace.payments, hash_of(n): (replace(told, **changes),)})

    def without_telling(self, n: int) -> None:
        self.trace = replace(self.trace, payments={h: told for h, told in self.trace.payments.items() if h != hash_of(n)})

    def edit(self, sql: str, *parameters: object) -> None:
        """Change the ledger as somebody with a database tool would."""
        connection = sqlite3.connect(self.path)
        with connection:
            assert connection.execute(sql, parameters).rowcount == 1
        connection.close()

    def audit(self, now_s: float = NOON_S + UNTOLD_GRACE_S) -> Report:
        return compare(self.ledger.snapshot(), trace=self.trace, node=self.node, now_s=now_s)

    def kinds(self) -> list[tuple[Kind, str | None, str | None]]:
        return [found.key for found in self.audit().differences]


def there(payment_hash: str, status: str = "SUCCEEDED", amount_msat: int = 10_000, fee_msat: int = 0) -> NodePayment:
    return NodePayment(
        payment_hash=payment_hash,
        status=status,
        amount_msat=amount_msat,
        fee_msat=fee_msat,
        failure_reason=None,
        created_at_ns=0,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.ledger.close()


def test_accounts_that_agree_show_no_difference(world: World) -> None:
    """An audit that cries wolf isn't read any more."""
    report = world.audit()
    assert report.agrees, report.differences
    assert (report.payments, report.paid, report.spent_msat) == (6, 5, 51_700)
    assert (report.trace_compared, report.node_compared, report.foreign) == (5, 6, 0)
    assert not report.open
    assert ["without proof" in note for note in report.notes] == [True]


def test_what_rows_have_in_common_is_held_once(world: World) -> None:
    """Else an audit of millions of payments takes half as much memory again."""
    world.ledger.close()
    rows = list(world.ledger.snapshot().payments.values())
    for name in ("origin", "node_pubkey", "envelope_id", "currency"):
        values = [getattr(row, name) for row in rows]
        assert len({id(value) for value in values}) == len(set(values)) < len(rows)


# The ledger with itself


@pytest.mark.parametrize("column", ["reserved_micro", "settled_micro"])
@pytest.mark.parametrize("id", ["e", "euros"])
def test_a_total_that_isnt_its_payments_sum_is_found(world: World, column: str, id: str) -> None:
    """Limits are held against the total: a budget would allow more, or less, than was meant."""
    world.edit(f"UPDATE envelopes SET {column} = {column} + 1 WHERE id = ?", id)
    assert world.kinds() == [(Kind.ENVELOPE_TOTAL, None, id)]


@pytest.mark.parametrize(
    "sql", ["UPDATE spends SET micro = micro - 1 WHERE envelope_id = 'e'", "DELETE FROM spends WHERE envelope_id = 'e'"]
)
def test_a_bucket_that_isnt_its_payments_sum_is_found(world: World, sql: str) -> None:
    """Hour and day limits are held against the buckets."""
    world.edit(sql)
    assert world.kinds() == [(Kind.ENVELOPE_WINDOW, None, "e")]


def test_a_bucket_without_payments_is_found(world: World) -> None:
    """A spend that nobody made keeps the budget from what it allows."""
    world.edit("INSERT INTO spends (envelope_id, bucket, micro) VALUES ('e', 7, 5)")
    assert world.kinds() == [(Kind.ENVELOPE_WINDOW, None, "e")]


@pytest.mark.slow
def test_old_buckets_may_be_gone(world: World) -> None:
    """The ledger itself drops them: years of purchases are no difference."""
    for n in range(100, 720):
        world.clock.now_s += 600
        world.buy(n)
    assert len(world.ledger.snapshot().envelopes["e"].spends_micro) < 620
    world.trace, world.node = world.told(), world.paid()
    report = world.audit()
    assert report.agrees, report.differences
    assert report.spent_msat == 51_700 + 620 * 10_000


def test_an_envelope_that_is_gone_is_found(world: World) -> None:
    """Its limits are gone with it: the next purchase would begin from nothing."""
    world.edit("DELETE FROM envelopes WHERE id = 'e'")
    assert (Kind.ENVELOPE_TOTAL, None, "e") in world.kinds()


@pytest.mark.parametrize(
    "change",
    ["settled_micro = settled_micro + 1", "reserved_micro = 1", "settled_at_ms = NULL", "fee_msat = fee_msat + 1"],
)
def test_a_row_that_contradicts_itself_is_found(world: World, change: str) -> None:
    """What a payment costs a budget is its amount and fee at its rate, to the millionth."""
    for n in (1, 4):
        world.edit(f"UPDATE payments SET {change} WHERE payment_hash = ?", hash_of(n))
        assert (Kind.ROW_AMOUNT, hash_of(n)) in [key[:2] for key in world.kinds()]


def test_a_reservation_that_isnt_amount_and_most_fee_is_found(world: World) -> None:
    """Less would let others pass the limit when it is paid; the envelope agreeing with it doesn't make it right."""
    world.open(7)
    assert world.audit().agrees
    world.edit("UPDATE payments SET reserved_micro = reserved_micro - 1 WHERE payment_hash = ?", hash_of(7))
    world.edit("UPDATE envelopes SET reserved_micro = reserved_micro - 1 WHERE id = 'e'")
    assert world.kinds() == [(Kind.ROW_AMOUNT, hash_of(7), "e")]


@pytest.mark.parametrize("damaged", [preimage(9).hex(), "no hex"])
def test_a_preimage_that_doesnt_fit_is_found(world: World, damaged: str) -> None:
    """The token opens nothing any more; and the audit mustn't stop at the first such row, as `Ledger.payments` does."""
    world.edit("UPDATE payments SET preimage = ? WHERE payment_hash = ?", damaged, hash_of(1))
    report = world.audit()
    assert (Kind.ROW_PREIMAGE, hash_of(1), None) in [found.key for found in report.differences]
    assert all(secret not in str(report) + repr(world.ledger.snapshot()) for secret in (damaged, preimage(1).hex()))


def test_two_live_rows_of_one_need_are_found(world: World) -> None:
    """The index that makes one purchase of many attempts would be missing."""
    connection = sqlite3.connect(world.path)
    connection.execute("DROP INDEX payments_one_live_per_scope")
    connection.close()
    world.edit("UPDATE payments SET scope = 'scope-1' WHERE payment_hash = ?", hash_of(3))
    (found,) = world.audit().differences
    assert found.kind is Kind.TWO_LIVE_ROWS
    assert {found.payment_hash, found.says[1][1].partition(",")[0]} == {hash_of(1), hash_of(3)}


# The ledger with the trace


@pytest.mark.parametrize(
    "changes",
    [{"amount_msat": 10_001}, {"fee_msat": 1_001}, {"booked_minor_units": Decimal("11.000001")}, {"currency": "usd"}],
)
def test_a_trace_line_with_another_amount_is_found(world: World, changes: dict[str, Any]) -> None:
    """Whoever sums the trace gets another spend than the budget."""
    world.with_telling(1, **changes)
    assert world.kinds() == [(Kind.TRACE_AMOUNT, hash_of(1), None)]


def test_two_trace_lines_that_differ_are_found(world: World) -> None:
    """A payment may be told twice; but then alike."""
    (told,) = world.trace.payments[hash_of(1)]
    world.trace = replace(world.trace, payments={**world.trace.payments, hash_of(1): (told, replace(told, fee_msat=1))})
    assert world.kinds() == [(Kind.TRACE_AMOUNT, hash_of(1), None)]


@pytest.mark.parametrize("proof", [preimage(9).hex(), "no hex"])
def test_a_proof_that_doesnt_fit_is_found(world: World, proof: str) -> None:
    """The trace is the payer's proof of payment."""
    world.with_telling(1, proof=proof)
    (found,) = world.audit().differences
    assert (found.kind, found.payment_hash) == (Kind.TRACE_PROOF, hash_of(1))
    assert proof not in str(found)


def test_a_proof_that_the_ledger_has_lost_is_found(world: World) -> None:
    """The token could be used again if somebody knew of it."""
    world.with_telling(5, proof=preimage(5).hex())
    (found,) = world.audit().differences
    assert found.kind is Kind.TRACE_PROOF
    assert "lacks" in found.what
    assert "forget" in found.advice
    assert preimage(5).hex() not in str(found)


def test_a_proof_that_doesnt_fit_is_not_said_to_be_in_a_ledger_that_has_none(world: World) -> None:
    """Who relies on that advice looks for a proof of payment where there is none."""
    world.with_telling(5, proof=preimage(9).hex())
    (found,) = world.audit().differences
    assert found.kind is Kind.TRACE_PROOF
    assert "node's list" in found.advice
    world.with_telling(5, proof=None)
    world.with_telling(1, proof=preimage(9).hex())
    (found,) = world.audit().differences
    assert "ledger has" in found.advice


def test_a_redacted_trace_is_compared_but_for_its_proofs(world: World) -> None:
    """Redaction is no difference; but that proofs weren't looked at has to be said."""
    for n in (1, 2, 3, 4, 5):
        world.with_telling(n, proof=None)
    report = world.audit()
    assert report.agrees
    assert any(note.startswith("Reported without proof") and "4 payments" in note for note in report.notes)
    world.with_telling(2, proof=None, fee_msat=1)
    assert world.kinds() == [(Kind.TRACE_AMOUNT, hash_of(2), None)]


@pytest.mark.parametrize("n", [6, 99])
def test_a_trace_line_of_a_payment_that_isnt_booked_is_found(world: World, n: int) -> None:
    """Money was spent, so the trace says, that no budget counts."""
    told = ReportedPayment(amount_msat=10_000, fee_msat=0, booked_minor_units=None, currency=None, proof=None)
    world.trace = replace(world.trace, payments={**world.trace.payments, hash_of(n): (told,)})
    assert world.kinds() == [(Kind.TOLD_NOT_BOOKED, hash_of(n), None)]


def test_a_payment_that_left_the_trace_is_found(world: World) -> None:
    """A line that was taken out is missing from every sum."""
    world.without_telling(1)
    assert world.kinds() == [(Kind.MISSING_IN_TRACE, hash_of(1), None)]


def test_a_payment_of_a_call_without_a_trace_is_said_and_no_difference(world: World) -> None:
    """A ledger that programs with and without a trace share would never agree, and the audit wouldn't be read any more."""
    world.buy(7)
    world.with_node(there(hash_of(7)))
    world.ledger.mark(hash_of(7), reported=True, traced=False)
    for telling in range(2):
        report = world.audit()
        assert report.agrees
        assert report.trace_compared == 5
        assert any(note == "Made by calls without a trace, so not compared with it: 1 payment (10 sat)." for note in report.notes)
        world.ledger.mark(hash_of(7), reported=True, accepted=bool(telling))  # by a later call that has one: it tells of a reuse


def test_a_payment_of_a_call_without_a_trace_that_a_trace_has_is_compared(world: World) -> None:
    """A line with a wrong amount would be passed over."""
    world.buy(7, fee_msat=5)
    world.with_node(there(hash_of(7), fee_msat=5))
    world.ledger.mark(hash_of(7), reported=True, traced=False)
    world.trace = world.told()
    assert world.audit().trace_compared == 6
    world.with_telling(7, fee_msat=6)
    assert world.kinds() == [(Kind.TRACE_AMOUNT, hash_of(7), None)]


@pytest.mark.parametrize("step_s", [-86_400.0, 86_400.0], ids=["back", "ahead"])
def test_a_clock_that_was_wrong_for_a_while_is_no_difference(world: World, step_s: float) -> None:
    """A laptop that wakes up with a wrong clock would have its budgets called damaged."""
    world.clock.now_s += step_s
    world.buy(7, fee_msat=3)
    world.clock.now_s -= step_s
    world.buy(8, fee_msat=4)
    for n in (7, 8):
        world.ledger.mark(hash_of(n), reported=True)
    world.trace, world.node = world.told(), world.paid()
    for now_s in (NOON_S, NOON_S + step_s, NOON_S - step_s):
        report = world.audit(now_s)
        assert report.agrees, report.differences


def test_a_payment_that_no_trace_has_told_of_is_found(world: World) -> None:
    """Its call ended in a crash; `recover` tells of it, if somebody knows to call it. A call under way is no crash."""
    world.buy(7)
    world.with_node(there(hash_of(7)))
    assert world.audit(NOON_S + UNTOLD_GRACE_S - 1).agrees
    assert world.kinds() == [(Kind.UNTOLD, hash_of(7), None)]


def test_a_payment_that_a_live_process_is_about_to_tell_of_is_no_difference(world: World) -> None:
    """A slow page would be called a crash."""
    world.buy(7)
    world.with_node(there(hash_of(7)))
    world.clock.now_s += 10 * UNTOLD_GRACE_S
    assert world.kinds() == [(Kind.UNTOLD, hash_of(7), None)]
    assert world.ledger.claim_report(hash_of(7), "somebody") is not None
    late_s = world.clock.now_s + 1
    assert world.audit(late_s).agrees

    def audit(is_dead: bool) -> list[Kind]:
        snapshot = world.ledger.snapshot()
        report = compare(
            snapshot, trace=world.trace, node=world.node, now_s=late_s, is_dead=lambda name: is_dead and name == "somebody"
        )
        return [found.kind for found in report.differences]

    assert audit(is_dead=False) == []
    assert audit(is_dead=True) == [Kind.UNTOLD]
    assert [found.kind for found in world.audit(late_s + CLAIM_S).differences] == [Kind.UNTOLD]


def test_what_is_older_than_the_trace_is_said_and_not_guessed(world: World) -> None:
    """A log that was rotated is no lost payment; and nobody knows that it is none."""
    world.without_telling(1)
    world.trace = replace(world.trace, since_s=NOON_S + 1)
    report = world.audit()
    assert report.agrees
    assert report.trace_compared == 4
    assert any(note.startswith("Older than") and "1 payment (11 sat)" in note for note in report.notes)
    world.trace = replace(world.trace, payments={}, since_s=None, lines=0)
    report = world.audit()
    assert report.agrees
    assert report.trace_compared == 0


def test_lines_that_cant_be_read_are_counted_in_the_report(world: World) -> None:
    """They might have told of a payment."""
    world.trace = replace(world.trace, unreadable=2)
    assert any("2 lines" in note for note in world.audit().notes)


# The ledger with the node


def test_what_the_node_paid_and_no_budget_counts_comes_first(world: World) -> None:
    """The gravest: a limit that isn't held. It must not stand behind a hundred smaller things."""
    world.without_telling(1)
    world.with_node(there(hash_of(6)))
    first, second = world.audit().differences
    assert first.key == (Kind.PAID_NOT_BOOKED, hash_of(6), "e")
    assert second.kind is Kind.MISSING_IN_TRACE


def test_what_the_node_paid_while_the_ledger_doesnt_know_is_found(world: World) -> None:
    """recover() books it: the user must hear of it."""
    world.open(7)
    world.with_node(there(hash_of(7)))
    (found,) = world.audit().differences
    assert found.kind is Kind.PAID_NOT_BOOKED
    assert "recover()" in found.advice


@pytest.mark.parametrize("status", [None, "FAILED", "IN_FLIGHT"])
def test_what_is_booked_and_not_paid_is_found(world: World, status: str | None) -> None:
    """A token that was never paid for, or a node that has lost its records."""
    world.node = NodeAccount(pubkey=PUBKEY, payments={h: p for h, p in world.node.payments.items() if h != hash_of(1)})
    if status is not None:
        world.with_node(there(hash_of(1), status))
    assert world.kinds() == [(Kind.BOOKED_NOT_PAID, hash_of(1), "e")]


@pytest.mark.parametrize("changes", [{"amount_msat": 10_001, "fee_msat": 1_000}, {"fee_msat": 1_001}])
def test_other_amounts_at_the_node_are_found(world: World, changes: dict[str, int]) -> None:
    """The node's word is what was spent."""
    world.with_node(there(hash_of(1), **changes))
    assert world.kinds() == [(Kind.NODE_AMOUNT, hash_of(1), "e")]


def test_a_fee_that_the_wallet_doesnt_tell_is_not_judged(world: World) -> None:
    """The whole limit was booked then: no audit of such a wallet would ever agree."""
    world.with_node(replace(there(hash_of(1)), fee_msat=None))
    assert world.audit().agrees
    world.with_node(replace(there(hash_of(1)), fee_msat=None, amount_msat=10_001))
    (found,) = world.audit().differences
    assert found.kind is Kind.NODE_AMOUNT
    assert dict(found.says)["node"] == "SUCCEEDED, 10.001 sat"


def test_another_nodes_payments_are_told_and_not_judged(world: World) -> None:
    """Only its own node knows of a payment: another's silence proves nothing."""
    world.node = NodeAccount(pubkey="03" * 33, payments={})
    report = world.audit()
    assert report.agrees
    assert report.node_compared == 0
    assert any(note.startswith("From other nodes than") and "6 payments" in note for note in report.notes)


def test_payments_of_others_over_the_same_node_are_no_difference(world: World) -> None:
    """A node pays for people and other programs too; what they failed to pay counts for nothing."""
    world.with_node(there(hash_of(50), fee_msat=5))
    world.with_node(there(hash_of(51), "FAILED"))
    report = world.audit()
    assert report.agrees
    assert (report.foreign, report.foreign_msat) == (1, 10_005)


@pytest.mark.parametrize("status", [None, "FAILED", "IN_FLIGHT"])
def test_an_unfinished_payment_is_told_with_the_nodes_word(world: World, status: str | None) -> None:
    """Its reservation stands: no difference, but somebody has to end it."""
    world.open(7)
    fail(world.ledger, 7)
    if status is not None:
        world.with_node(there(hash_of(7), status))
    report = world.audit()
    assert report.agrees
    (told,) = report.open
    assert (told.payment_hash, told.max_fee_msat) == (hash_of(7), 1_000)
    assert (told.node or "").startswith(status or "no such payment")


def test_what_was_abandoned_and_may_still_be_paid_is_told(world: World) -> None:
    """The user said that it won't be paid; the node doesn't say so."""
    world.with_node(there(hash_of(6), "IN_FLIGHT"))
    report = world.audit()
    assert report.agrees
    assert [told.payment_hash for told in report.open] == [hash_of(6)]


def test_a_payment_that_is_listed_twice_counts_as_listed_last() -> None:
    """lnd lists a payment anew when it is tried anew, while the pages are read."""
    node = NodeAccount.of(PUBKEY, [there(hash_of(1), "FAILED"), there(hash_of(1))])
    assert node.payments[hash_of(1)].status == "SUCCEEDED"


# Two looks


def test_only_what_two_looks_find_is_a_difference(world: World) -> None:
    """What is paid, booked and told while the accounts are taken differs for that moment."""
    lasting = Difference(kind=Kind.NODE_AMOUNT, what="", says=(), advice="", payment_hash=hash_of(1))
    passing = replace(lasting, kind=Kind.PAID_NOT_BOOKED, payment_hash=hash_of(2))
    fresh = replace(lasting, payment_hash=hash_of(3))
    agreeing = world.audit()
    looks = [replace(agreeing, differences=(passing, lasting)), replace(agreeing, differences=(lasting, fresh))]
    pauses: list[int] = []
    report = confirmed(lambda: looks.pop(0), lambda: pauses.append(len(looks)))
    assert report.differences == (lasting,)
    assert pauses == [1]


def test_agreement_is_looked_at_once(world: World) -> None:
    """The node's list may be long."""
    looks = [world.audit()]
    assert confirmed(lambda: looks.pop(0), lambda: pytest.fail("no pause is needed")).agrees


def test_every_page_of_a_long_ledger_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payments left out would look like totals that are too high."""
    monkeypatch.setattr(books, "PAGE_ROWS", 2)
    assert len(world.ledger.snapshot().payments) == 6
    assert world.audit().agrees
