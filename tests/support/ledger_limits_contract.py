"""What every ledger promises about limits. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from routeweiler_sync._core.money import Rate
from routeweiler_sync.budgets.fmv import StaticRate, rate_for
from routeweiler_sync.budgets.schema import DAY_S, HOUR_S, SAFE_DEFAULT, BudgetEnvelope
from routeweiler_sync.errors import (
    BudgetError,
    BudgetExceededError,
    EnvelopeExpiredError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
)
from routeweiler_sync.ledger.envelopes import BUCKET_S, Draw
from routeweiler_sync.ledger.ledger import Ledger

from .ledger_builders import NOON_S, SAT, Clock, at_once, die, draw, fail, hash_of, held_msat, intent, limits, settle

LIMITS = ("cap_minor_units", "per_call_minor_units", "per_hour_minor_units", "per_day_minor_units")
SHARED_LIMITS = tuple(name for name in LIMITS if name != "per_call_minor_units")
WINDOWS = {"per_hour_minor_units": HOUR_S, "per_day_minor_units": DAY_S}

Make = Callable[..., Ledger]


def dollars(price: int | str) -> Rate:
    return rate_for("usd", StaticRate(price))


class LimitsContract:
    """Reserved + settled, routing fees included, is never above a limit, whoever races whom."""

    # -- one purchase -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", LIMITS)
    @pytest.mark.parametrize(
        ("amount_msat", "fee_cap_msat", "max_fee_msat"),
        [
            (10_000, 0, 0),
            (10_000, 10_000, 0),  # the amount alone fits: free routes only
            (9_999, 10_000, 1),
            (6_000, 10_000, 4_000),
            (6_000, 4_000, 4_000),
            (6_000, 3_999, 3_999),
            (1, 9_999, 9_999),
            (10_001, 0, None),
            (10_001, 10_000, None),
            (11_000, 0, None),
        ],
    )
    def test_the_fee_limit_shrinks_to_what_fits(
        self, make_ledger: Make, name: str, amount_msat: int, fee_cap_msat: int, max_fee_msat: int | None
    ) -> None:
        """Else a 10-sat limit couldn't pay a 10-sat invoice, or routing would pass the limit."""
        ledger = make_ledger()
        wanted, ten_sat = intent(1, amount_msat=amount_msat, fee_cap_msat=fee_cap_msat), draw(limits(**{name: 10}))
        if max_fee_msat is None:
            with pytest.raises(BudgetExceededError) as refused:
                ledger.open_payment(wanted, ten_sat)
            assert refused.value.spent is False
            assert list(ledger.payments()) == []
        else:
            row, is_new = ledger.open_payment(wanted, ten_sat)
            assert (is_new, row.max_fee_msat) == (True, max_fee_msat)
            assert held_msat(ledger) == (amount_msat + max_fee_msat, 0)

    @pytest.mark.parametrize("name", LIMITS)
    @pytest.mark.parametrize("amount_sat", [6, 11])
    def test_only_a_window_that_rolls_advises_to_wait(self, make_ledger: Make, name: str, amount_sat: int) -> None:
        """Who waits for a cap, or for a limit that is below the price, waits for ever."""
        ledger, ten_sat = make_ledger(), replace(draw(limits(**{name: 10})), spent_in_call_msat=6_000)
        if name != "per_call_minor_units":
            ledger.open_payment(intent(1, amount_msat=6_000, fee_cap_msat=0), ten_sat)
        with pytest.raises(BudgetExceededError) as refused:
            ledger.open_payment(intent(2, amount_msat=amount_sat * 1_000, fee_cap_msat=0), ten_sat)
        rolls = name in ("per_hour_minor_units", "per_day_minor_units") and amount_sat <= 10
        assert ("wait" in str(refused.value)) is ("wait" in refused.value.shell_text) is rolls
        option = "--" + name.removesuffix("_minor_units").replace("_", "-")
        assert f"routeweiler-sync budget set e {option} N" in refused.value.shell_text

    def test_a_frozen_envelope_says_how_to_thaw_it(self, make_ledger: Make) -> None:
        """A freeze without a way out makes people delete the ledger."""
        ledger, budget = make_ledger(), draw(limits(cap_minor_units=10))
        ledger.open_payment(intent(1, amount_msat=1_000, fee_cap_msat=0), budget)
        id_ = next(iter(ledger.envelopes())).id
        ledger.freeze(id_)
        with pytest.raises(EnvelopeFrozenError) as refused:
            ledger.open_payment(intent(2, amount_msat=1_000, fee_cap_msat=0), budget)
        with pytest.raises(EnvelopeFrozenError) as unsent:
            ledger.count_send(next(iter(ledger.payments())).payment_hash)
        for error in (refused.value, unsent.value):
            assert f"session.ledger.thaw({id_!r})" in str(error)
            assert f"routeweiler-sync budget thaw {id_}" in error.shell_text

    def test_the_tightest_limit_decides(self, make_ledger: Make) -> None:
        """Else the looser of two limits would be the one that holds."""
        ledger = make_ledger()
        for n, tightest in enumerate(LIMITS):
            row, _ = ledger.open_payment(intent(n), draw(limits(tightest, **{**dict.fromkeys(LIMITS, 1_000), tightest: 10})))
            assert (row.max_fee_msat, held_msat(ledger, tightest)) == (0, (10_000, 0))

    @pytest.mark.parametrize("name", SHARED_LIMITS)
    @pytest.mark.parametrize("end", [None, fail, settle])
    def test_what_is_reserved_or_spent_counts(self, make_ledger: Make, name: str, end: Any) -> None:
        """Else many purchases, each within the limit, would pass it together."""
        ledger, envelope = make_ledger(), draw(limits(**{name: 25}))
        ledger.open_payment(intent(1), envelope)  # 11 sat reserved, 10 sat when settled
        if end is not None:
            end(ledger, 1)
        left_msat = 25_000 - sum(held_msat(ledger))
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2, amount_msat=left_msat + 1, fee_cap_msat=0), envelope)
        row, _ = ledger.open_payment(intent(3, amount_msat=left_msat), envelope)
        assert row.max_fee_msat == 0
        assert sum(held_msat(ledger)) == 25_000
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(4, amount_msat=1, fee_cap_msat=0), envelope)

    @pytest.mark.parametrize("name", SHARED_LIMITS)
    def test_what_is_returned_can_be_spent(self, make_ledger: Make, name: str) -> None:
        """Else failures and unused fee limits would eat the budget."""
        ledger, envelope = make_ledger(), draw(limits(**{name: 20}))
        ledger.open_payment(intent(1, amount_msat=10_000, fee_cap_msat=10_000), envelope)
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2), envelope)
        settle(ledger, 1, fee_msat=1_000)
        ledger.open_payment(intent(2, amount_msat=9_000), envelope)
        die(ledger, 2)
        assert ledger.open_payment(intent(3, amount_msat=9_000), envelope)[1]

    def test_what_the_call_has_paid_before_counts_for_its_own_limit_alone(self, make_ledger: Make) -> None:
        """Else a call that is redirected from paywall to paywall would pay its limit at each, or be counted twice in the hour."""
        ledger = make_ledger()
        for name, fits_msat in (("per_call_minor_units", 6_000), ("per_hour_minor_units", 10_000), ("cap_minor_units", 10_000)):
            later_hop = Draw(envelope=limits(name, **{name: 10}), rate=SAT, session_started_s=NOON_S, spent_in_call_msat=4_000)
            with pytest.raises(BudgetExceededError):
                ledger.open_payment(intent(1, amount_msat=fits_msat + 1, fee_cap_msat=0), later_hop)
            row, _ = ledger.open_payment(intent(fits_msat + len(name), amount_msat=fits_msat), later_hop)
            assert row.max_fee_msat == 0

    @pytest.mark.parametrize("name", LIMITS)
    def test_a_limit_of_nothing_allows_nothing(self, make_ledger: Make, name: str) -> None:
        """Else 0 would mean "no limit"."""
        with pytest.raises(BudgetExceededError):
            make_ledger().open_payment(intent(1, amount_msat=1, fee_cap_msat=0), draw(limits(**{name: 0})))

    def test_without_an_envelope_nothing_is_counted_or_limited(self, make_ledger: Make) -> None:
        """Else "no limit, in so many words" would be limited by somebody else's envelope, or use it up."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits(cap_minor_units=11)))
        row, _ = ledger.open_payment(intent(2, amount_msat=10**12, fee_cap_msat=10**9), None)
        assert (row.max_fee_msat, row.envelope_id, row.currency, row.reserved_micro) == (10**9, None, None, 0)
        settled = settle(ledger, 2, fee_msat=77)
        assert (settled.fee_msat, settled.settled_micro) == (77, 0)
        assert [(e.id, held_msat(ledger)) for e in ledger.envelopes()] == [("e", (11_000, 0))]

    # -- what is told -----------------------------------------------------------------------------------------------------

    def test_each_limits_headroom_is_told_and_is_what_a_purchase_finds(self, make_ledger: Make) -> None:
        """Else a user would be told of room that isn't there, or look for the wrong limit to raise."""
        clock = Clock()
        ledger = make_ledger(clock)
        envelope = draw(limits(cap_minor_units=100, per_call_minor_units=40, per_hour_minor_units=50, per_day_minor_units=70))
        ledger.open_payment(intent(1, amount_msat=30_000, fee_cap_msat=1_000), envelope)
        settle(ledger, 1, fee_msat=500)
        clock.now_s += HOUR_S + BUCKET_S
        ledger.open_payment(intent(2, amount_msat=10_000, fee_cap_msat=1_000), envelope)
        row = ledger.envelope("e")
        assert row.headrooms_minor_units == {
            "cap_minor_units": Decimal("58.5"),
            "per_call_minor_units": 40,
            "per_hour_minor_units": 39,
            "per_day_minor_units": Decimal("28.5"),
        }
        assert row.headroom_minor_units == Decimal("28.5")
        assert [row] == list(ledger.envelopes()) == [ledger.thaw("e")]
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(3, amount_msat=28_501, fee_cap_msat=0), envelope)
        ledger.open_payment(intent(3, amount_msat=28_500, fee_cap_msat=0), envelope)
        assert ledger.envelope("e").headroom_minor_units == 0
        settle(ledger, 2)
        clock.now_s += DAY_S + BUCKET_S
        left = ledger.envelope("e").headrooms_minor_units
        assert (left["per_hour_minor_units"], left["per_day_minor_units"]) == (Decimal("21.5"), Decimal("41.5"))

    def test_a_headroom_is_never_below_nothing(self, make_ledger: Make) -> None:
        """Else a lowered limit would be told as a debt."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits(cap_minor_units=100)))
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2), draw(limits(cap_minor_units=5)))
        assert ledger.envelope("e").headroom_minor_units == 0

    def test_without_limits_there_is_no_headroom_to_tell(self, make_ledger: Make) -> None:
        """Else "no limit" would be told as "nothing left"."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits(per_call_minor_units=11)))
        row = ledger.envelope("e")
        assert (row.headroom_minor_units, row.headrooms_minor_units) == (None, {"per_call_minor_units": 11})

    # -- races ------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", SHARED_LIMITS)
    def test_no_race_passes_a_limit(self, make_ledger: Make, name: str) -> None:
        """Else two buyers who look at the same time would each find room for the last sat."""
        buyers, limit_msat = 8, 60_000
        envelope = draw(limits(**{name: limit_msat // 1000}))
        handles, reader = [make_ledger(), make_ledger()], make_ledger()
        handles[0].open_payment(intent(0, amount_msat=1, fee_cap_msat=0), envelope)
        stop = threading.Event()
        seen: list[int] = []

        def look() -> None:
            while not stop.is_set():
                seen.append(sum(held_msat(reader)))

        def buy(buyer: int) -> None:
            dice, ledger = random.Random(buyer), handles[buyer % 2]
            for n in range(1 + buyer * 100, 13 + buyer * 100):
                try:
                    amount_msat, fee_cap_msat = dice.randrange(1, 20_000), dice.randrange(3_000)
                    row, _ = ledger.open_payment(intent(n, amount_msat=amount_msat, fee_cap_msat=fee_cap_msat), envelope)
                except BudgetExceededError:
                    continue
                end = dice.choice([die, die, fail, settle])
                end(ledger, n, fee_msat=dice.randint(0, row.max_fee_msat)) if end is settle else end(ledger, n)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        at_once([partial(buy, b) for b in range(buyers)])
        stop.set()
        watcher.join()
        assert seen
        assert max(seen) <= limit_msat
        rows = list(reader.payments())
        unfinished = sum(r.amount_msat + r.max_fee_msat for r in rows if r.unfinished)
        spent = sum(r.amount_msat + r.fee_msat for r in rows if r.settled_at)
        assert held_msat(reader) == (unfinished, spent)

    # -- windows ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", WINDOWS)
    @pytest.mark.parametrize("offset_s", [0.0, 0.001, 1.0, 150.0, 299.0, 299.999])
    def test_a_spend_counts_for_its_window_and_hardly_longer(self, make_ledger: Make, name: str, offset_s: float) -> None:
        """Else more would be spent in an hour (or a day) than the user allowed, or a budget stay shut."""
        clock, window_s = Clock(), WINDOWS[name]
        ledger, envelope = make_ledger(clock), draw(limits(**{name: 10}))
        clock.now_s = NOON_S + offset_s
        ledger.open_payment(intent(1), envelope)
        settle(ledger, 1)
        for later_s in (0, 1, BUCKET_S, window_s / 2, window_s - 1, window_s - 0.001):
            clock.now_s = NOON_S + offset_s + later_s
            with pytest.raises(BudgetExceededError):
                ledger.open_payment(intent(2, amount_msat=1, fee_cap_msat=0), envelope)
        clock.now_s = NOON_S + offset_s + window_s + BUCKET_S
        assert ledger.open_payment(intent(3), envelope)[1]

    @pytest.mark.parametrize("name", WINDOWS)
    def test_a_window_begins_with_the_settlement(self, make_ledger: Make, name: str) -> None:
        """Else a payment that was in flight for an hour would count for nothing when it is made."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), draw(limits(**{name: 11}))
        ledger.open_payment(intent(1), envelope)
        clock.now_s += 3 * DAY_S
        with pytest.raises(BudgetExceededError):  # however old: a reservation may become a spend at any moment
            ledger.open_payment(intent(2), envelope)
        settle(ledger, 1, fee_msat=1_000)
        clock.now_s += WINDOWS[name] - 1
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2, amount_msat=1, fee_cap_msat=0), envelope)

    @pytest.mark.parametrize("name", WINDOWS)
    @pytest.mark.parametrize("back_s", [1, BUCKET_S, HOUR_S, DAY_S, 30 * DAY_S])
    def test_a_clock_that_is_set_back_frees_nothing(self, make_ledger: Make, name: str, back_s: int) -> None:
        """Else setting the clock back (or a bad NTP answer) would give the budget twice."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), draw(limits(**{name: 10}))
        ledger.open_payment(intent(1), envelope)
        settle(ledger, 1)
        clock.now_s -= back_s
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2, amount_msat=1, fee_cap_msat=0), envelope)

    @pytest.mark.parametrize("name", WINDOWS)
    @pytest.mark.parametrize("ahead_s", [DAY_S, 2 * DAY_S, 400 * DAY_S])
    def test_a_clock_that_was_ahead_for_a_while_has_forgotten_nothing(self, make_ledger: Make, name: str, ahead_s: int) -> None:
        """Else a clock that runs ahead for some spends, and is set right, would give the budget twice."""
        clock = Clock()
        ledger, before, meanwhile = make_ledger(clock), draw(limits(**{name: 10})), draw(limits(cap_minor_units=10**9))
        ledger.open_payment(intent(1), before)
        settle(ledger, 1)
        for n in range(2, 12):
            clock.now_s = NOON_S + ahead_s + n * 2 * BUCKET_S
            ledger.open_payment(intent(n, amount_msat=1, fee_cap_msat=0), meanwhile)
            settle(ledger, n)
        with ledger._store.transaction() as tx:  # what was spent ahead of time counts as well, and isn't what this is about
            tx.execute("DELETE FROM spends WHERE bucket > ?", (NOON_S // BUCKET_S + 1,))
        clock.now_s = NOON_S + 60
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(12, amount_msat=1, fee_cap_msat=0), before)

    def test_a_clock_that_was_ahead_once_has_forgotten_nothing_of_a_whole_day(self, make_ledger: Make) -> None:
        """Else one spend by a clock that is far ahead leaves the last few minutes of the day's spending, and frees the rest."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), draw(limits(per_day_minor_units=10))
        for n in range(10):
            clock.now_s = NOON_S + n * 2 * HOUR_S
            ledger.open_payment(intent(n, amount_msat=500, fee_cap_msat=0), envelope)
            settle(ledger, n)
        with ledger._store.transaction() as tx:  # small spends, in all the buckets of these hours
            for bucket in range(int(NOON_S) // BUCKET_S + 1, int(clock.now_s) // BUCKET_S):
                tx.execute("INSERT INTO spends (envelope_id, bucket, micro) VALUES ('e', ?, 0) ON CONFLICT DO NOTHING", (bucket,))
        back_s, clock.now_s = clock.now_s, NOON_S + 400 * DAY_S
        ledger.open_payment(intent(10, amount_msat=500, fee_cap_msat=0), envelope)
        settle(ledger, 10)
        clock.now_s = back_s
        assert ledger.envelope("e").used_minor_units["per_day_minor_units"] == Decimal("5.5")

    @pytest.mark.parametrize(("name", "ago_s"), [("per_hour_minor_units", 1_800), ("per_day_minor_units", 20 * HOUR_S)])
    def test_a_clock_that_was_ahead_for_long_crowds_nothing_out(self, make_ledger: Make, name: str, ago_s: int) -> None:
        """Else days of spending by a clock that was ahead would push out of the account what is spent now, by the right one."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), draw(limits(**{name: 10}))
        ledger.open_payment(intent(1, amount_msat=5_000, fee_cap_msat=0), envelope)
        ledger.open_payment(intent(2, amount_msat=5_000, fee_cap_msat=0), envelope)
        with ledger._store.transaction() as tx:
            for n in range(1, 2_000):
                tx.execute("INSERT INTO spends (envelope_id, bucket, micro) VALUES ('e', ?, 0)", (NOON_S // BUCKET_S + 500 + n,))
        settle(ledger, 1)
        clock.now_s += ago_s
        settle(ledger, 2)
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(3, amount_msat=1, fee_cap_msat=0), envelope)
        clock.now_s = NOON_S + WINDOWS[name] + BUCKET_S
        assert ledger.open_payment(intent(3, amount_msat=5_000, fee_cap_msat=0), envelope)[1]

    def test_the_account_of_the_windows_is_bounded(self, make_ledger: Make) -> None:
        """Else years of spending would fill the ledger with buckets that no window reaches."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), draw(limits(per_day_minor_units=10**9))
        with ledger._store.transaction() as tx:
            for n in range(1, 5_000):
                tx.execute("INSERT INTO spends (envelope_id, bucket, micro) VALUES ('e', ?, 1)", (NOON_S // BUCKET_S - n,))
        ledger.open_payment(intent(0), envelope)
        settle(ledger, 0)
        with ledger._store.read() as tx:
            assert DAY_S // BUCKET_S < tx.execute("SELECT count(*) AS n FROM spends")[0]["n"] < 1_000

    @pytest.mark.parametrize("seed", range(6))
    def test_rolling_windows_agree_with_a_plain_list_of_spends(self, make_ledger: Make, seed: int) -> None:
        """Else a rarely met order of purchases and pauses would let a window be passed, or shut a budget that has room."""
        dice, clock = random.Random(seed), Clock()
        allowed_sat = {"per_hour_minor_units": 40, "per_day_minor_units": 100}
        ledger, envelope = make_ledger(clock), draw(limits(**allowed_sat))
        spends: list[tuple[float, int]] = []

        def spent_msat(name: str, extra_s: int) -> int:
            return sum(msat for at_s, msat in spends if at_s > clock.now_s - WINDOWS[name] - extra_s)

        for n in range(120):
            clock.now_s += dice.choice([0, 1, 200, 299, 301, 1_500, HOUR_S, 5 * HOUR_S])
            amount_msat = dice.randrange(1, 25_000)
            room = min(allowed_sat[name] * 1000 - spent_msat(name, 0) for name in WINDOWS)
            sure = min(allowed_sat[name] * 1000 - spent_msat(name, BUCKET_S) for name in WINDOWS)
            try:
                ledger.open_payment(intent(n, amount_msat=amount_msat, fee_cap_msat=0), envelope)
            except BudgetExceededError:
                assert amount_msat > sure, "refused, though it fits even where a window counts a bucket longer"
            else:
                assert amount_msat <= room, "a window was passed"
                clock.now_s += dice.choice([0, 10])
                settle(ledger, n)
                spends.append((clock.now_s, amount_msat))
        assert len(spends) > 10

    # -- grants, freezing, changes ----------------------------------------------------------------------------------------

    def test_a_grant_ends_and_a_new_session_has_a_new_one(self, make_ledger: Make) -> None:
        """Else a budget for a day would be one for ever, or a long-running session would renew its own."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), limits(ttl_seconds=100, cap_minor_units=10)
        old, begun_s = draw(envelope, session_started_s=NOON_S - 50), NOON_S
        ledger.open_payment(intent(1), old)
        settle(ledger, 1)
        clock.now_s = begun_s + 99.9
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2), draw(envelope, session_started_s=begun_s + 99))
        for now_s, started_s in ((100, -50), (100, 99.9), (1_000, 99.9)):
            clock.now_s = begun_s + now_s
            with pytest.raises(EnvelopeExpiredError):
                ledger.open_payment(intent(2), draw(envelope, session_started_s=begun_s + started_s))
        clock.now_s = begun_s + 1_000
        assert ledger.open_payment(intent(2), draw(envelope, session_started_s=begun_s + 100))[1]
        settle(ledger, 2)
        row = ledger.envelope("e")
        assert row.granted_at is not None
        assert row.granted_at.timestamp() == begun_s + 1_000
        assert [row.settled_minor_units, row.grant_settled_minor_units, row.headroom_minor_units] == [20, 10, 0]
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(3), draw(envelope, session_started_s=begun_s + 1_000))

    def test_a_new_grant_forgives_no_reservation(self, make_ledger: Make) -> None:
        """Else what an old session still has in flight would be spent on top of the new grant."""
        clock = Clock()
        ledger, envelope = make_ledger(clock), limits(ttl_seconds=100, cap_minor_units=11)
        ledger.open_payment(intent(1), draw(envelope))
        clock.now_s += 200
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2, amount_msat=1, fee_cap_msat=0), draw(envelope, session_started_s=clock.now_s))

    def test_frozen_means_no_purchase_by_anybody(self, make_ledger: Make) -> None:
        """Else the emergency brake wouldn't brake the other processes."""
        one, other, envelope = make_ledger(), make_ledger(), limits(cap_minor_units=100)
        one.open_payment(intent(1), draw(envelope))
        assert other.freeze("e").frozen
        for given in (envelope, "e", limits(cap_minor_units=200)):
            with pytest.raises(EnvelopeFrozenError):
                one.open_payment(intent(2), draw(given))
        settle(one, 1)  # what is under way ends, and is booked
        assert held_msat(other) == (0, 10_000)
        assert not other.thaw("e").frozen
        assert one.open_payment(intent(2), draw("e"))[1]
        for unknown in (one.freeze, one.thaw, one.envelope):
            with pytest.raises(EnvelopeNotFoundError):
                unknown("nobody's")

    def test_the_default_envelope_can_be_frozen_before_it_is_used(self, make_ledger: Make) -> None:
        """Else the brake would fail just where nothing has been spent yet."""
        ledger = make_ledger()
        assert ledger.freeze(SAFE_DEFAULT.id).frozen
        with pytest.raises(EnvelopeFrozenError):
            ledger.open_payment(intent(1), draw(SAFE_DEFAULT))
        ledger.thaw(SAFE_DEFAULT.id)
        assert ledger.open_payment(intent(1), draw(SAFE_DEFAULT))[1]

    def test_changed_limits_hold_at_once_and_totals_stay(self, make_ledger: Make) -> None:
        """Else raising a limit would need a new budget, or give the old one anew."""
        one, other = make_ledger(), make_ledger()
        one.open_payment(intent(1), draw(limits(cap_minor_units=11)))
        settle(one, 1)
        with pytest.raises(BudgetExceededError):
            other.open_payment(intent(2), draw("e"))
        other.open_payment(intent(2, fee_cap_msat=0), draw(limits(cap_minor_units=20)))
        assert one.envelope("e").limits.cap_minor_units == 20
        assert held_msat(one) == (10_000, 10_000)
        with pytest.raises(BudgetExceededError):
            one.open_payment(intent(3, amount_msat=1, fee_cap_msat=0), draw("e"))

    def test_limits_that_are_set_hold_at_once_and_totals_stay(self, make_ledger: Make) -> None:
        """Else whoever lowers a limit from outside would stop nothing, or begin the budget anew."""
        one, other = make_ledger(), make_ledger()
        made = other.set_limits("e", lambda found: limits(cap_minor_units=11) if found is None else pytest.fail("it isn't there"))
        assert (made.limits.cap_minor_units, made.settled_minor_units, made.frozen) == (11, 0, False)
        one.open_payment(intent(1), draw("e"))
        settle(one, 1)
        row = other.set_limits("e", lambda found: replace(found or pytest.fail("it is there"), cap_minor_units=5))
        assert (row.limits.cap_minor_units, row.headroom_minor_units) == (5, 0)
        assert row.used_minor_units["cap_minor_units"] == 10
        with pytest.raises(BudgetExceededError):
            one.open_payment(intent(2, amount_msat=1, fee_cap_msat=0), draw("e"))
        other.set_limits("e", lambda found: replace(found or limits(), cap_minor_units=None, per_day_minor_units=20))
        assert one.open_payment(intent(2, fee_cap_msat=0), draw("e"))[1]
        with pytest.raises(BudgetError, match="can't be converted"):
            other.set_limits("e", lambda found: limits(cap_currency="usd"))
        assert one.envelope("e").limits == limits(per_day_minor_units=20)

    def test_limits_that_are_set_at_once_are_all_set(self, make_ledger: Make) -> None:
        """Else of two administrators, the one who set the cap would find it gone."""
        ledgers = [make_ledger() for _ in LIMITS]

        def setting(ledger: Ledger, name: str) -> Callable[[], object]:
            return lambda: ledger.set_limits("e", lambda found: replace(found or limits(), **{name: 7}))

        at_once([setting(ledger, name) for ledger, name in zip(ledgers, LIMITS, strict=True)])
        assert ledgers[0].envelope("e").limits == limits(**dict.fromkeys(LIMITS, 7))

    def test_lowered_limits_hold_for_everybody_though_their_first_draw_is_refused(self, make_ledger: Make) -> None:
        """Else who lowers a limit to stop the spending stops only himself: sessions that name the envelope would spend on."""
        one, other = make_ledger(), make_ledger()
        one.open_payment(intent(1), draw(limits(cap_minor_units=1_000)))
        with pytest.raises(BudgetExceededError):
            other.open_payment(intent(2), draw(limits(cap_minor_units=5)))
        with pytest.raises(BudgetExceededError):
            one.open_payment(intent(3), draw("e"))
        assert one.envelope("e").limits.cap_minor_units == 5

    def test_envelopes_are_told_by_id(self, make_ledger: Make) -> None:
        """Else `budget show` would leave one out, or a mistyped id would be a budget without limits."""
        ledger = make_ledger()
        given = BudgetEnvelope(
            "b", cap_minor_units=9, allowed_origins_glob=["*.example"], owner_agent_id="me", ttl_seconds=5, per_hour_minor_units=8
        )
        ledger.open_payment(intent(1, amount_msat=1_000), draw(given))
        ledger.open_payment(intent(2), draw(limits("a")))
        assert [envelope.id for envelope in ledger.envelopes()] == ["a", "b"]
        assert ledger.envelope("b").limits == given
        with pytest.raises(EnvelopeNotFoundError):
            ledger.open_payment(intent(3), draw("B"))
        assert ledger.payment(hash_of(3)) is None

    # -- currencies -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("old", "new"), [(("sat", SAT), ("usd", dollars(50_000))), (("usd", dollars(50_000)), ("sat", SAT))])
    def test_an_envelope_keeps_its_currency(self, make_ledger: Make, old: tuple[str, Rate], new: tuple[str, Rate]) -> None:
        """Else totals in sat would be read as cents: limits off by orders of magnitude."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), draw(limits(cap_currency=old[0], cap_minor_units=1_000), rate=old[1]))
        before = ledger.envelope("e")
        for currency, rate in (new, (new[0], old[1]), (old[0], new[1])):
            with pytest.raises(BudgetError):
                ledger.open_payment(intent(2), draw(limits(cap_currency=currency, cap_minor_units=1_000), rate=rate))
            assert ledger.envelope("e") == before
        assert ledger.payment(hash_of(2)) is None

    def test_a_10_sat_call_does_not_cost_a_cent(self, make_ledger: Make) -> None:
        """Else a hundred calls of half a cent's worth would use up a dollar."""
        ledger, envelope = make_ledger(), limits(cap_currency="usd", cap_minor_units=10)
        for n in range(10):  # 10 sat at 50 000 $: half a cent
            row, _ = ledger.open_payment(intent(n, fee_cap_msat=0), draw(envelope, rate=dollars(50_000)))
            assert (row.currency, row.btc_price, row.rate_quality) == ("usd", Decimal(50_000), "static")
            settle(ledger, n)
        assert ledger.envelope("e").settled_minor_units == Decimal(5)
        row, _ = ledger.open_payment(intent(10, amount_msat=100_000), draw(envelope, rate=dollars(50_000)))
        assert row.max_fee_msat == 0
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(11, amount_msat=1, fee_cap_msat=0), draw(envelope, rate=dollars(50_000)))

    def test_fiat_rounds_up_to_the_millionth(self, make_ledger: Make) -> None:
        """Else the smallest payments would cost nothing, and any number of them fit under any limit."""
        ledger, envelope = make_ledger(), limits(cap_currency="usd", cap_minor_units=1)
        row, _ = ledger.open_payment(intent(1, amount_msat=1, fee_cap_msat=0), draw(envelope, rate=dollars("0.01")))
        assert row.reserved_micro == 1  # it is worth a ten-millionth of a millionth
        assert settle(ledger, 1).settled_micro == 1

    def test_the_fiat_limit_holds_exactly(self, make_ledger: Make) -> None:
        """Else rounding would let a limit in cents be passed by a few msat each time."""
        ledger, rate = make_ledger(), dollars("65432.10")
        envelope = limits(cap_currency="usd", per_call_minor_units=3)
        most_msat = int(Decimal(3) / 100 / Decimal("65432.10") * 100_000_000_000)
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(1, amount_msat=most_msat + 1, fee_cap_msat=0), draw(envelope, rate=rate))
        row, _ = ledger.open_payment(intent(1, amount_msat=most_msat - 5, fee_cap_msat=1_000), draw(envelope, rate=rate))
        assert row.max_fee_msat == 5
        assert row.reserved_micro <= 3_000_000

    def test_a_payment_is_booked_at_the_rate_it_was_reserved_at(self, make_ledger: Make) -> None:
        """Else a rate that moves while a payment is in flight would book more than was reserved."""
        ledger, envelope = make_ledger(), limits(cap_currency="usd", cap_minor_units=100)
        ledger.open_payment(intent(1), draw(envelope, rate=dollars(50_000)))
        ledger.open_payment(intent(2), draw(envelope, rate=dollars(90_000)))
        assert settle(ledger, 1, fee_msat=1_000).settled_micro == 550_000
        row = ledger.envelope("e")
        assert (row.settled_minor_units, row.reserved_minor_units) == (Decimal("0.55"), Decimal("0.99"))

    def test_a_yen_is_a_yen(self, make_ledger: Make) -> None:
        """Else a currency without cents would be off by a hundred."""
        rate = rate_for("jpy", StaticRate({"jpy": 10_000_000}))
        row, _ = make_ledger().open_payment(intent(1, fee_cap_msat=0), draw(limits(cap_currency="jpy"), rate=rate))
        assert row.reserved_micro == 1_000_000

    def test_a_draw_on_an_envelope_nobody_limits_is_counted(self, make_ledger: Make) -> None:
        """Else a limit that is added later would start from nothing."""
        ledger = make_ledger()
        ledger.open_payment(intent(1), Draw(envelope=limits(), rate=Rate(currency="sat"), session_started_s=0))
        settle(ledger, 1, fee_msat=999)
        assert held_msat(ledger) == (0, 10_999)
        with pytest.raises(BudgetExceededError):
            ledger.open_payment(intent(2), draw(limits(per_day_minor_units=20)))
