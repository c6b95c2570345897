"""What every ledger keeps of payments that are moved to an archive. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.audit import NodeAccount, Report, compare
from routeweiler_sync.errors import ChallengeMismatchError, LedgerError
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.ledger import archive as archive_module
from routeweiler_sync.ledger.archive import Archived
from routeweiler_sync.ledger.ledger import ABANDONED, Ledger
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState

from .ledger_builders import NOON_S, ORIGIN, Clock, at_once, die, draw, fail, hash_of, intent, limits, preimage, put, settle
from .ledger_charges_contract import charge

DAY_S = 86_400.0
BEFORE = timedelta(days=400)
OTHER = "https://b.example:8443"
#: How a payment ends, and how it may stay: see `PastMaker`.
MOVED = ("retired", "forgotten", "dead", "outlived", "expired", "spent charge", "untraced")
KEPT = (
    "open", "failed", "live", "expired, never accepted", "abandoned", "paid after all", "owed charge", "unreported", "in report",
    "ended lately",
)  # fmt: skip


def make_past(ledger: Ledger, clock: Clock, kind: str, n: int, **changes: Any) -> None:
    """The n-th payment, begun 500 days ago and left as ``kind`` says."""
    clock.now_s = NOON_S - 500 * DAY_S
    want: Any = charge if "charge" in kind else intent
    changes = {"origin": OTHER if n % 2 else ORIGIN, **changes}
    if kind.startswith("expired"):
        changes["valid_until"] = int(clock.now_s) + 3600
    if "charge" in kind:
        changes["resource_digest"] = f"page {n}"
    assert ledger.open_payment(want(n, **changes), draw(limits(), session_started_s=clock.now_s))[1]
    if kind in ("open", "failed", "dead", "outlived", "abandoned", "paid after all"):
        if kind == "failed":
            fail(ledger, n)
        if kind == "dead":
            die(ledger, n)
        if kind == "outlived":
            put(ledger, hash_of(n), Change(state=PaymentState.DEAD, failure_code="outlived", failure_text=""))
        if kind in ("abandoned", "paid after all"):
            put(ledger, hash_of(n), ABANDONED)
        if kind == "paid after all":  # beside another purchase for its scope: retired at once, and never offered
            assert ledger.open_payment(intent(n + 1_000, scope=f"scope-{n}", origin=changes["origin"]), None)[1]
            assert settle(ledger, n).state is PaymentState.RETIRED
            ledger.mark(hash_of(n), reported=True)
            die(ledger, n + 1_000)
        return
    settle(ledger, n, fee_msat=n)
    if kind == "in report":
        assert ledger.claim_report(hash_of(n), "a call") is not None
    elif kind != "unreported":
        ledger.mark(hash_of(n), accepted="never" not in kind and "charge" not in kind, reported=True, traced=kind != "untraced")
    if kind == "spent charge":
        ledger.spend_charge(hash_of(n), delivered=True)
    if kind == "forgotten":
        ledger.forget(hash_of(n))
    if kind == "ended lately":
        clock.now_s = NOON_S - 390 * DAY_S
    if kind in ("retired", "untraced", "unreported", "in report", "ended lately"):
        ledger.retire(hash_of(n))
    if kind == "in report":  # a call of this moment reports it: its claim was renewed
        clock.now_s = NOON_S
        assert ledger.claim_report(hash_of(n), "a call") is not None


def make_all(ledger: Ledger, clock: Clock) -> dict[str, int]:
    """A payment of each kind. Return the number of each."""
    numbers = {kind: n for n, kind in enumerate((*MOVED, *KEPT), start=1)}
    for kind, n in numbers.items():
        make_past(ledger, clock, kind, n)
    clock.now_s = NOON_S
    return numbers


def audited(ledger: Ledger, *archives: Ledger, node: NodeAccount | None = None) -> Report:
    return compare(ledger.snapshot(archives), trace=None, node=node, now_s=time.time())


def node_of(rows: Mapping[str, PaymentRow]) -> NodeAccount:
    """The list of the node that has made all paid ``rows``."""
    paid = [
        NodePayment(
            payment_hash=row.payment_hash,
            status="SUCCEEDED",
            amount_msat=row.amount_msat,
            fee_msat=row.fee_msat,
            failure_reason=None,
            created_at_ns=0,
        )
        for row in rows.values()
        if row.settled_at is not None
    ]
    return NodeAccount.of("02" * 33, paid)


def rows_of(ledger: Ledger) -> dict[str, PaymentRow]:
    return {row.payment_hash: row for row in ledger.payments()}


class ArchiveContract:
    """What has ended may leave the ledger. What it has cost, and that it was paid, stays known."""

    def test_only_what_has_ended_for_good_is_moved(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else a payment that may still be made, or a token that was paid for, would be gone from where it is looked for."""
        clock, file = Clock(), tmp_path / "a.db"
        ledger = make_ledger(clock)
        numbers = make_all(ledger, clock)
        before = rows_of(ledger)
        would = ledger.archive("", before=BEFORE, dry_run=True)
        assert rows_of(ledger) == before
        assert not file.exists()
        moved = ledger.archive(file, before=BEFORE)
        gone = before.keys() - rows_of(ledger).keys()
        expected = {hash_of(numbers[kind]) for kind in MOVED} | {hash_of(numbers["paid after all"] + 1_000)}
        assert gone == expected
        assert would == moved == Archived(payments=8, paid=5, spent_msat=5 * 10_000 + 1 + 2 + 5 + 6 + 7)
        with contextlib.closing(Ledger.open(file)) as archive:
            assert rows_of(archive) == {name: row for name, row in before.items() if name in gone}, "as they were"
            assert {row.token for row in archive.payments()} == {""}
            assert {row.preimage for row in archive.payments()} - {None} == {preimage(n).hex() for n in (1, 2, 5, 6, 7)}
        assert ledger.archive(file, before=BEFORE) == Archived()
        assert ledger.moved() == moved

    def test_sums_stay_and_the_audit_agrees_with_and_without_the_archive(
        self, make_ledger: Callable[..., Ledger], tmp_path: Path
    ) -> None:
        """Else limits would forget what was spent, or the audit call an honest ledger false and an own payment foreign."""
        clock, file = Clock(), tmp_path / "a.db"
        ledger = make_ledger(clock)
        make_all(ledger, clock)
        node = node_of(rows_of(ledger))
        spent, by_origin = ledger.spending(), ledger.spending(origin=OTHER)
        held = replace(ledger.envelope("e"))
        whole = audited(ledger, node=node)
        assert whole.agrees
        ledger.archive(file, before=BEFORE)
        assert (ledger.spending(), ledger.spending(origin=OTHER)) == (spent, by_origin)
        assert ledger.envelope("e") == held
        since = datetime.fromtimestamp(NOON_S - 450 * DAY_S, timezone.utc)
        assert ledger.spending(since=since).payments == 0
        assert ledger.spending(until=since) == ledger.spending()
        with pytest.raises(LedgerError, match="archive"):
            ledger.spending(since=datetime.fromtimestamp(NOON_S - 501 * DAY_S, timezone.utc))
        alone = audited(ledger, node=node)
        assert (alone.agrees, alone.foreign, alone.payments) == (True, 0, whole.payments - 8)
        assert any("archives that aren't given: 8 payments" in note for note in alone.notes)
        with contextlib.closing(Ledger.open(file)) as archive:
            both = audited(ledger, archive, node=node)
            assert replace(both, notes=(), open=()) == replace(whole, notes=(), open=())
            assert not any("archive" in note for note in both.notes)
        with ledger._store.transaction() as tx:
            tx.execute("UPDATE envelopes SET settled_micro = settled_micro - 1000000")
        assert not audited(ledger).agrees, "an envelope that forgets a payment is seen without the archive too"

    def test_an_archived_invoice_is_never_paid_again(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else a server could have an old invoice, or a new one of the same payment hash, paid a second time."""
        clock = Clock()
        ledger = make_ledger(clock)
        numbers = make_all(ledger, clock)
        ledger.archive(tmp_path / "a.db", before=BEFORE)
        spent = ledger.envelope("e")
        for kind in MOVED:
            again: Any = charge if "charge" in kind else intent
            for n in (numbers[kind],):
                assert ledger.archived(hash_of(n)) == ledger.archived(hash_of(n)[:10]) == 1
                with pytest.raises(ChallengeMismatchError, match="archive") as refused:
                    ledger.open_payment(again(n, scope="anything", bolt11="lnbcrt-new"), draw(limits()))
                assert refused.value.spent is False
                with pytest.raises(ChallengeMismatchError, match="archive"):
                    ledger.rehearse(again(n, scope="anything"), draw(limits()))
                with pytest.raises(LedgerError, match="archive"):
                    ledger.retire(hash_of(n))
                ledger.mark(hash_of(n), accepted=True)
        assert ledger.envelope("e") == spent, "nothing is reserved"
        assert ledger.archived(hash_of(999)) == 0
        assert ledger.open_payment(intent(999), draw(limits()))[1]

    def test_an_origin_that_once_delivered_is_still_known_for_it(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else two errors in a row would end all purchases at a server of years' standing."""
        clock = Clock()
        ledger = make_ledger(clock)
        make_past(ledger, clock, "retired", 2, origin=ORIGIN)
        clock.now_s = NOON_S
        for n in (10, 12, 14):
            ledger.open_payment(intent(n, origin=ORIGIN), None)
            settle(ledger, n)
            ledger.note_undelivered(hash_of(n), refused=False)
        assert ledger.undelivered(ORIGIN) is None
        assert ledger.archive(tmp_path / "a.db", before=BEFORE).payments == 1
        assert ledger.undelivered(ORIGIN) is None

    def test_many_move_in_short_steps_beside_those_that_stay(
        self, make_ledger: Callable[..., Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else buyers would wait for the whole of it, or a page of what stays would end the run."""
        monkeypatch.setattr(archive_module, "BATCH_ROWS", 3)
        clock = Clock()
        ledger = make_ledger(clock)
        for n in range(1, 21):
            make_past(ledger, clock, "live" if 4 <= n <= 11 else "retired", n)
        clock.now_s = NOON_S
        told: list[int] = []
        assert ledger.archive(tmp_path / "a.db", before=BEFORE, progress=lambda moved: told.append(moved.payments)).payments == 12
        assert told[-1] == 12
        assert max(after - before for before, after in zip([0, *told], told, strict=False)) <= 3
        assert len(rows_of(ledger)) == 8

    def test_what_comes_to_life_meanwhile_stays(
        self, make_ledger: Callable[..., Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a payment that its node has made after all, at that very moment, would be archived as one that was never made."""
        clock, file = Clock(), tmp_path / "a.db"
        ledger, other = make_ledger(clock), make_ledger(clock)
        make_past(ledger, clock, "dead", 2)
        make_past(ledger, clock, "retired", 4)
        clock.now_s = NOON_S
        write = archive_module._write
        waiting: list[Callable[[], object]] = [lambda: settle(other, 2), lambda: other.mark(hash_of(4), accepted=True)]

        def write_late(*args: Any) -> None:
            write(*args)
            if waiting:
                waiting.pop()()

        monkeypatch.setattr(archive_module, "_write", write_late)
        assert ledger.archive(file, before=BEFORE).payments == 1
        assert waiting == []
        assert [row.state for row in ledger.payments()] == [PaymentState.SETTLED]
        with contextlib.closing(Ledger.open(file)) as archive:
            assert rows_of(archive)[hash_of(4)].accepted_again, "as it was at the end"
            assert (audited(ledger, archive).agrees, audited(ledger, archive).payments) == (True, 2), "each counts once"
        assert ledger.spending().payments == 2
        assert audited(ledger).agrees

    def test_a_copy_from_before_it_was_paid_counts_nothing(
        self, make_ledger: Callable[..., Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else an audit would call an honest ledger false, by the order in which its archives are named."""
        clock = Clock()
        ledger = make_ledger(clock)
        make_past(ledger, clock, "dead", 2)
        clock.now_s = NOON_S
        with monkeypatch.context() as stopped:
            stopped.setattr(archive_module, "_remove", lambda *args: 1 / 0)
            with contextlib.suppress(ZeroDivisionError):
                ledger.archive(tmp_path / "a.db", before=BEFORE)
        settle(ledger, 2)  # its node has made it after all
        ledger.mark(hash_of(2), accepted=True, reported=True)
        ledger.retire(hash_of(2))
        clock.now_s += 500 * DAY_S
        assert ledger.archive(tmp_path / "b.db", before=BEFORE).paid == 1
        with (
            contextlib.closing(Ledger.open(tmp_path / "a.db")) as older,
            contextlib.closing(Ledger.open(tmp_path / "b.db")) as newer,
        ):
            assert [len(rows_of(older)), len(rows_of(newer))] == [1, 1]
            for archives in ((older, newer), (newer, older)):
                assert (audited(ledger, *archives).agrees, audited(ledger, *archives).paid) == (True, 1)

    def test_two_runs_at_once_move_each_payment_once(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else sums would count a payment twice, or one of the two would fail."""
        clock, file = Clock(), tmp_path / "a.db"
        ledger = make_ledger(clock)
        for n in range(2, 42, 2):
            make_past(ledger, clock, "retired", n)
        clock.now_s = NOON_S
        spent = ledger.spending()
        runs = at_once([lambda: make_ledger(clock).archive(file, before=BEFORE) for _ in range(3)])
        assert sum(each.payments for each in runs) == 20
        assert (ledger.spending(), ledger.moved().payments) == (spent, 20)
        with contextlib.closing(Ledger.open(file)) as archive:
            assert len(rows_of(archive)) == 20
            assert audited(ledger, archive).agrees

    def test_a_time_that_is_not_long_past_is_refused(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else a slip of the pen would take away what calls of this hour look at."""
        ledger = make_ledger()
        for before in (timedelta(days=29), timedelta(), datetime.now(timezone.utc) + timedelta(days=1)):
            with pytest.raises(ValueError, match="30 days"):
                ledger.archive(tmp_path / "a.db", before=before)
        assert ledger.archive(tmp_path / "a.db", before=BEFORE) == Archived()
        assert not ledger.exists()
        assert not (tmp_path / "a.db").exists()

    def test_room_is_given_back(self, make_ledger: Callable[..., Ledger], tmp_path: Path) -> None:
        """Else a ledger would never get smaller; and it must be usable afterwards, by all who have it open."""
        clock = Clock()
        ledger, other = make_ledger(clock), make_ledger(clock)
        make_all(ledger, clock)
        before = rows_of(other)
        ledger.archive(tmp_path / "a.db", before=BEFORE)
        ledger.vacuum()
        assert rows_of(other).items() <= before.items()
        assert other.open_payment(intent(999), None)[1]
