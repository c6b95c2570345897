"""What every ledger promises about charges. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from routeweiler_sync.ledger import lookups
from routeweiler_sync.ledger.charges import PRESENT_S
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.server_facts import REFUSED_AT_ONCE
from routeweiler_sync.ledger.types import PaymentRow

from .ledger_builders import NOON_S, ORIGIN, Clock, at_once, die, draw, hash_of, held_msat, intent, limits, settle

PAGE = "page"


def charge(n: int, *, presenter: str | None = "one", **changes: Any) -> Any:
    """The n-th purchase, a charge. All of them are for one request."""
    values = {"scope": "/page", "scheme": "Payment", "resource_digest": PAGE, "single_use": True, "presenter": presenter}
    return intent(n, **values | changes)


class ChargesContract:
    """A charge opens one request, once."""

    @pytest.fixture
    def ledger(self, make_ledger: Callable[..., Ledger]) -> Ledger:
        return make_ledger()

    def test_two_calls_may_pay_for_one_request(self, ledger: Ledger) -> None:
        """Else one of them would wait for the other's payment, which opens one request only."""
        for n, who in ((1, "one"), (2, "two")):
            row, is_new = ledger.open_payment(charge(n, presenter=who), draw(limits()))
            assert (is_new, row.single_use, row.presenter, row.payment_hash) == (True, True, who, hash_of(n))
        assert held_msat(ledger) == (22_000, 0)
        settle(ledger, 1)
        settle(ledger, 2)
        assert [row.payment_hash for row in ledger.owed(ORIGIN, PAGE)] == [hash_of(1), hash_of(2)]

    def test_a_charge_that_no_call_has_comes_before_a_new_one(self, ledger: Ledger) -> None:
        """Else a request would be paid for again beside a payment that nobody presents."""
        ledger.open_payment(charge(1), draw(limits()))
        settle(ledger, 1)
        ledger.release_charge(hash_of(1), "one")
        row, is_new = ledger.open_payment(charge(2, presenter="two"), draw(limits()))
        assert (is_new, row.payment_hash) == (False, hash_of(1))
        assert held_msat(ledger) == (0, 10_000)

    def test_a_refused_charge_comes_before_a_new_one_whoever_has_it(self, ledger: Ledger) -> None:
        """Else a server that never delivers would be paid by every call that comes while another one tries."""
        ledger.open_payment(charge(1), draw(limits()))
        settle(ledger, 1)
        ledger.note_undelivered(hash_of(1), refused=True)
        assert not ledger.open_payment(charge(2, presenter="two"), draw(limits()))[1]
        ledger.forget(hash_of(1))
        assert ledger.open_payment(charge(2, presenter="two"), draw(limits()))[1]

    def test_a_charge_that_no_call_has_is_found_among_many_that_calls_have(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else no call for the request would get on: it may buy none beside it, and can't find it."""
        monkeypatch.setattr(lookups, "MAX_OWED", 3)
        for n in range(1, 7):
            ledger.open_payment(charge(n, presenter=f"call {n}"), None)
        settle(ledger, 5)
        ledger.release_charge(hash_of(5), "call 5")
        assert [row.payment_hash for row in ledger.owed(ORIGIN, PAGE)] == [hash_of(5), hash_of(1), hash_of(2)]

    def test_one_call_gets_a_charge(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else two requests would go out with one payment, and one of them be refused."""
        make_ledger().open_payment(charge(1), None)
        settle(make_ledger(), 1)
        make_ledger().release_charge(hash_of(1), "one")
        names = [f"call {n}" for n in range(12)]
        ledgers = [make_ledger() for _ in range(3)]
        claims = at_once([lambda n=n: ledgers[n % 3].claim_charge(hash_of(1), names[n]) for n in range(12)])
        (got,) = [row for row in claims if row is not None]
        assert isinstance(got, PaymentRow)
        assert got.presenter in names
        assert got.presented_until is not None

    def test_a_claim_ends_with_its_call_or_its_time(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else what a dead process has paid for could never be presented."""
        clock = Clock()
        ledger = make_ledger(clock=clock)
        ledger.open_payment(charge(1), None)
        settle(ledger, 1)
        assert ledger.claim_charge(hash_of(1), "two") is None
        assert ledger.claim_charge(hash_of(1), "one") is not None
        ledger.release_charge(hash_of(1), "two")
        assert ledger.claim_charge(hash_of(1), "two") is None
        assert ledger.claim_charge(hash_of(1), "two", instead_of="another") is None
        assert ledger.claim_charge(hash_of(1), "two", instead_of="one") is not None
        clock.now_s = NOON_S + PRESENT_S - 1
        assert ledger.claim_charge(hash_of(1), "three") is None
        clock.now_s = NOON_S + PRESENT_S
        assert ledger.claim_charge(hash_of(1), "three") is not None

    @pytest.mark.parametrize("delivered", [True, False])
    def test_a_spent_charge_is_owed_no_more(self, ledger: Ledger, *, delivered: bool) -> None:
        """Else it would be presented again, and refused."""
        ledger.open_payment(charge(1), draw(limits()))
        settle(ledger, 1, fee_msat=5)
        ledger.note_undelivered(hash_of(1), refused=True)
        ledger.spend_charge(hash_of(1), delivered=delivered, why="used up by an answer of status 500")
        row = ledger.payment(hash_of(1))
        assert row is not None
        assert (row.state.value, row.accepted, row.presenter, row.owed) == ("retired", delivered, None, False)
        assert row.failure_code == (None if delivered else "receipt")
        assert ledger.owed(ORIGIN, PAGE) == []
        assert ledger.claim_charge(hash_of(1), "two") is None
        assert ledger.open_payment(charge(2), draw(limits()))[1]
        assert held_msat(ledger)[1] == 10_005

    def test_a_forgotten_charge_stays_forgotten(self, ledger: Ledger) -> None:
        """Else an answer that comes late would make the user's decision undone."""
        ledger.open_payment(charge(1), None)
        settle(ledger, 1)
        ledger.forget(hash_of(1))
        ledger.spend_charge(hash_of(1), delivered=True)
        row = ledger.payment(hash_of(1))
        assert row is not None
        assert (row.state.value, row.failure_code) == ("retired", "forgotten")

    def test_no_token_is_looked_for_among_charges(self, ledger: Ledger) -> None:
        """Else a charge would be offered unasked, or for another request."""
        ledger.open_payment(charge(1), None)
        settle(ledger, 1)
        ledger.open_payment(charge(2, presenter="two"), None)
        assert ledger.live(ORIGIN) == ledger.live(ORIGIN, "/page") == []
        assert ledger.standing(ORIGIN, PAGE) is None
        assert ledger.newest_accepted(ORIGIN) is None
        ledger.mark(hash_of(1), accepted=True)
        assert ledger.newest_accepted(ORIGIN) is None
        assert ledger.page_tokens(ORIGIN, PAGE) == []
        token = intent(3, scope="/page", resource_digest=PAGE)
        assert ledger.open_payment(token, None)[1], "a token for the same page has nothing to do with them"

    def test_a_token_that_stands_for_the_page_comes_before_a_charge(self, ledger: Ledger) -> None:
        """Else one page would be paid for by both schemes."""
        ledger.open_payment(intent(1, resource_digest=PAGE), None)
        row, is_new = ledger.open_payment(charge(2), None)
        assert (row.payment_hash, is_new) == (hash_of(1), False)
        die(ledger, 1)
        assert ledger.open_payment(charge(2), None)[1]

    def test_an_abandoned_charge_that_is_paid_after_all_is_owed(self, ledger: Ledger) -> None:
        """Else its money would be gone for nothing, although its server may take it."""
        ledger.open_payment(charge(1), draw(limits()))
        ledger.forget(hash_of(1), abandon=True)
        ledger.open_payment(charge(2, presenter="two"), draw(limits()))
        settle(ledger, 2)
        assert settle(ledger, 1).owed
        assert held_msat(ledger) == (0, 20_000)

    def test_errors_to_charges_dont_close_an_origin_but_refusals_do(self, ledger: Ledger) -> None:
        """Lost connections say nothing about a server. One that refuses what was paid for gets no second payment."""
        for n in range(1, 5):
            ledger.open_payment(charge(n, resource_digest=f"page {n}"), None)
            settle(ledger, n)
            ledger.note_undelivered(hash_of(n), refused=False)
        assert ledger.undelivered(ORIGIN) is None
        ledger.note_undelivered(hash_of(2), refused=True)
        assert ledger.undelivered(ORIGIN) is None, "a lost answer may have used it up"
        ledger.note_undelivered(hash_of(3), refused=True, why=REFUSED_AT_ONCE)
        row = ledger.undelivered(ORIGIN)
        assert row is not None
        assert row.payment_hash == hash_of(3)
        ledger.spend_charge(hash_of(1), delivered=True)
        assert ledger.undelivered(ORIGIN) is None
