"""What every ledger says about what was spent. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from routeweiler_sync.errors import BudgetError, EnvelopeNotFoundError
from routeweiler_sync.ledger.ledger import ABANDONED, Ledger
from routeweiler_sync.ledger.spending import Spending

from .ledger_builders import NOON_S, ORIGIN, Clock, die, draw, fail, hash_of, intent, limits, put, settle

OTHER = "https://b.example:8443"
NOON = datetime.fromtimestamp(NOON_S, timezone.utc)


def buy(ledger: Ledger, n: int, *, origin: str = ORIGIN, fee_msat: int = 0, amount_msat: int = 10_000, proved: bool = True) -> None:
    """One payment, from its order to its settlement."""
    ledger.open_payment(intent(n, origin=origin, amount_msat=amount_msat, fee_cap_msat=fee_msat), None)
    settle(ledger, n, fee_msat=fee_msat, proved=proved)


class SpendingContract:
    """The bill is what was paid, to the msat: no more, no less."""

    def test_nothing_was_spent_yet(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else the first look at the bill would be an error, or would leave files behind."""
        ledger = make_ledger()
        assert ledger.spending() == Spending() == ledger.spending(since=timedelta(days=1), origin=ORIGIN)
        assert (list(ledger.payments()), list(ledger.envelopes())) == ([], [])
        assert not ledger.exists()

    def test_payments_and_fees_are_summed_up_by_origin(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else the bill wouldn't say where the money went."""
        ledger = make_ledger()
        for n, fee_msat in enumerate((0, 1_001, 7)):
            buy(ledger, n, fee_msat=fee_msat)
        buy(ledger, 3, origin=OTHER, amount_msat=2_000_000_000_000, fee_msat=1)
        spent = ledger.spending()
        mine = Spending(total_msat=31_008, fees_msat=1_008, payments=3)
        other = Spending(total_msat=2_000_000_000_001, fees_msat=1, payments=1)
        assert (spent.total_msat, spent.fees_msat, spent.payments, spent.calls) == (2_000_000_031_009, 1_009, 4, None)
        assert list(spent.by_origin.items()) == [(OTHER, other), (ORIGIN, mine)]
        assert ledger.spending(origin=ORIGIN).by_origin == {ORIGIN: mine}
        for each in (OTHER, f"{OTHER}/page?a=b", "HTTPS://B.example:8443"):
            assert ledger.spending(origin=each).by_origin == {OTHER: other}
        assert ledger.spending(origin="https://c.example") == Spending()

    def test_what_was_paid_counts_and_what_was_not_does_not(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else the bill would hold money that never left, or leave out money that did."""
        ledger = make_ledger()
        for n in range(7):
            ledger.open_payment(intent(n), None)
        fail(ledger, 1)
        die(ledger, 2)
        settle(ledger, 3)
        settle(ledger, 4, proved=False)  # the node gave no preimage that fits, but the money is gone
        settle(ledger, 5)
        ledger.forget(hash_of(5))
        put(ledger, hash_of(6), ABANDONED)
        assert (ledger.spending().payments, ledger.spending().total_msat) == (3, 30_000)
        settle(ledger, 6)  # the node has paid what the user had abandoned
        assert (ledger.spending().payments, ledger.spending().total_msat) == (4, 40_000)

    def test_since_is_a_moment_a_day_or_how_long_ago(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else the bill of a month would be that of another time."""
        clock = Clock()
        ledger = make_ledger(clock)
        for n, back in enumerate((timedelta(days=3), timedelta(hours=1), timedelta())):
            clock.now_s = NOON_S - back.total_seconds()
            buy(ledger, n)
        berlin = timezone(timedelta(hours=1))
        for since, payments in (
            (None, 3),
            (NOON, 1),
            (NOON.astimezone(berlin), 1),
            (NOON.replace(tzinfo=berlin), 2),  # an hour earlier
            (NOON + timedelta(milliseconds=1), 0),
            (timedelta(), 1),
            (timedelta(minutes=59), 1),
            (timedelta(hours=1), 2),
            (timedelta.max, 3),
            (NOON.astimezone().replace(tzinfo=None), 1),  # without a zone: the local time of this machine
            ((NOON - timedelta(hours=1)).astimezone().replace(tzinfo=None), 2),
            (NOON.astimezone().date() - timedelta(days=1), 2),
            (NOON.astimezone().date() + timedelta(days=1), 0),
            (date.min, 3),
            (date.max, 0),
            (datetime.min, 3),  # noqa: DTZ901  (a time without a zone is meant)
            (datetime.max, 0),  # noqa: DTZ901
            (datetime.min.replace(tzinfo=timezone.utc), 3),
        ):
            assert ledger.spending(since=since).payments == payments, since
            assert ledger.spending(since=since, origin=ORIGIN).payments == payments, since

    def test_until_is_the_moment_before_which_it_ends(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a payment at midnight would be on the bills of two months, or of none."""
        clock = Clock()
        ledger = make_ledger(clock)
        days = [NOON - timedelta(days=back) for back in (3, 2, 1, 0)]
        for n, day in enumerate(days):
            clock.now_s = day.timestamp()
            buy(ledger, n, origin=(ORIGIN, OTHER)[n % 2])
        for since, until, wanted in (
            (None, None, days),
            (days[1], days[3], days[1:3]),
            (days[1], days[1], []),
            (None, days[2], days[:2]),
            (None, days[2] + timedelta(milliseconds=1), days[:3]),
            (None, days[2].astimezone().replace(tzinfo=None), days[:2]),  # without a zone: the local time of this machine
            (None, timedelta(days=1), days[:2]),
            (timedelta(days=2), timedelta(days=1), days[1:2]),
            (None, days[2].astimezone().date(), days[:2]),
            (date.min, date.max, days),
        ):
            case = (since, until)
            assert ledger.spending(since=since, until=until).payments == len(wanted), case
            assert ledger.spending(until=until, origin=ORIGIN).payments <= len(days), case
            by_agent = ledger.spending_by_agent(since=since, until=until)
            assert sum(each.payments for each in by_agent.values()) == len(wanted), case
            listed = [row.created_at for row in ledger.payments(since=since, until=until)]
            assert listed == wanted, case
            assert [row.created_at for row in ledger.payments(since=since, until=until, newest_first=True)] == wanted[::-1], case
        whole = sum(ledger.spending(since=a, until=b).payments for a, b in zip(days, [*days[1:], None], strict=True))
        assert whole == len(days), "each payment is in one part of the time"

    @pytest.mark.parametrize("until", ["2026-01-01", 1.5, timedelta(seconds=-1), NOON - timedelta(days=1)])
    def test_an_end_that_is_none_or_before_the_beginning_is_refused(
        self, make_ledger: Callable[..., Ledger], until: object
    ) -> None:
        """Else two dates in the wrong order would give a bill of nothing."""
        for question in ("spending", "spending_by_agent", "payments"):
            with pytest.raises(ValueError, match="until"):
                list(getattr(make_ledger(), question)(since=NOON, until=until))

    @pytest.mark.parametrize("question", ["spending", "payments", "unfinished", "release_charge"])
    def test_a_wrong_argument_is_reported_of_the_class_that_users_know(
        self, make_ledger: Callable[..., Ledger], question: str
    ) -> None:
        """A TypeError of Readings.spending() sends the reader to a class that no page names."""
        with pytest.raises(TypeError, match=rf"^Ledger\.{question}\(\)"):
            getattr(make_ledger(), question)(sinse=NOON)

    @pytest.mark.parametrize("since", ["2026-01-01", 1_700_000_000, 1.5, True, timedelta(seconds=-1)])
    def test_what_is_no_time_is_refused(self, make_ledger: Callable[..., Ledger], since: object) -> None:
        """Else a date that was written wrong would give a bill of nothing."""
        with pytest.raises(ValueError, match="since"):
            make_ledger().spending(since=since)  # type: ignore[arg-type]

    @pytest.mark.parametrize("origin", ["b.example", "", "ftp://b.example", b"https://b.example", 7])
    def test_what_is_no_server_is_refused(self, make_ledger: Callable[..., Ledger], origin: object) -> None:
        """Else a server that was named wrong would seem to have cost nothing."""
        with pytest.raises(ValueError, match="origin"):
            make_ledger().spending(origin=origin)  # type: ignore[arg-type]

    # -- the envelope in force --------------------------------------------------------------------------------------------

    def test_a_budget_that_was_never_used_is_whole(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a look at the budget before the first purchase would be an error, or would create it."""
        ledger = make_ledger()
        row = ledger.in_force(limits(per_call_minor_units=5, cap_minor_units=100), session_started_s=NOON_S)
        assert row.headrooms_minor_units == {"per_call_minor_units": 5, "cap_minor_units": 100}
        assert (row.headroom_minor_units, row.frozen, row.granted_at) == (100, False, None)
        assert not ledger.exists()
        buy(ledger, 1)
        assert ledger.in_force(limits(cap_minor_units=7), session_started_s=NOON_S).headroom_minor_units == 7
        assert list(ledger.envelopes()) == []
        with pytest.raises(EnvelopeNotFoundError):
            ledger.in_force("e", session_started_s=NOON_S)

    def test_the_limits_in_force_are_those_of_the_session(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a session with new limits would be told what the old ones leave."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits(per_day_minor_units=50)))
        settle(ledger, 1, fee_msat=500)
        ledger.open_payment(intent(2), draw(limits(per_day_minor_units=50)))
        new = ledger.in_force(limits(per_hour_minor_units=1_000), session_started_s=NOON_S)
        assert new.used_minor_units == {"per_hour_minor_units": Decimal("21.5")}
        assert (new.settled_minor_units, new.reserved_minor_units) == (Decimal("10.5"), 11)
        assert ledger.in_force("e", session_started_s=NOON_S) == ledger.envelope("e")
        with pytest.raises(BudgetError):
            ledger.in_force(limits(cap_minor_units=1, cap_currency="usd"), session_started_s=NOON_S)

    def test_a_grant_that_has_ended_counts_for_older_sessions_only(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a new session would be told that its budget is used up, though its next purchase starts a new grant."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), limits(cap_minor_units=50, ttl_seconds=60)
        ledger.open_payment(intent(1), draw(envelope))
        settle(ledger, 1)
        clock.now_s += 61
        assert ledger.in_force(envelope, session_started_s=NOON_S).headroom_minor_units == 40
        renewed = ledger.in_force(envelope, session_started_s=clock.now_s)
        assert (renewed.headroom_minor_units, renewed.granted_at) == (50, None)
        assert renewed.settled_minor_units == 10
