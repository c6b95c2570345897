"""What every ledger promises about looking up what a purchase needs. Part of `tests.support.ledger_contract.LedgerContract`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.lookups import Found
from routeweiler_sync.ledger.server_facts import REFUSED_AT_ONCE

from .ledger_builders import NOON_S, ORIGIN, Clock, die, fail, hash_of, held_msat, intent, limits, settle

OTHER = "https://other.example"


def found(ledger: Ledger, *, origin: str = ORIGIN, scope: str = "s", page: str = "a", n: int = 1) -> Found:
    return ledger.found(origin=origin, scope=scope, resource_digest=page, payment_hash=hash_of(n))


def history(ledger: Ledger, clock: Clock) -> None:
    """Payments of every kind, for two pages of two origins: tokens in each state, and charges."""
    for n in range(1, 13):
        clock.now_s += 1
        origin, page = (ORIGIN, OTHER)[n % 2], "ab"[n // 2 % 2]
        earlier = tuple(map(hash_of, range(n)))
        new = intent(n, origin=origin, scope=f"s{n}", resource_digest=page, known_tokens=earlier)
        if not ledger.open_payment(new, None)[1]:
            continue  # another one stands for the page
        (settle, settle, settle, die, settle, fail)[n % 6](ledger, n)
        if n % 3:
            ledger.mark(hash_of(n), accepted=True)
        if n % 4 == 0:
            ledger.retire(hash_of(n))
    for n in range(20, 26):
        clock.now_s += 1
        charge = intent(n, scope="c", resource_digest="c", single_use=True, presenter=f"call {n}")
        if ledger.open_payment(charge, None)[1] and n % 2:
            settle(ledger, n)
        if n % 3:
            ledger.release_charge(hash_of(n), f"call {n}")


class LookupsContract:
    """What a purchase looks up."""

    def test_one_look_finds_what_each_question_alone_would_find(self, make_ledger: Callable[..., Ledger]) -> None:
        """Else a call would buy what it has, or use what stands for another page."""
        clock = Clock(NOON_S)
        ledger = make_ledger(clock=clock)
        history(ledger, clock)
        kinds: set[str] = set()
        for origin in (ORIGIN, OTHER):
            for page in ("a", "b", "c", ""):
                for n in (*range(1, 13), 20, 99):
                    seen = found(ledger, origin=origin, scope=f"s{n}", page=page, n=n)
                    live = ledger.live(origin, f"s{n}")
                    assert seen.live == (live[0] if live else None)
                    assert seen.same_invoice == ledger.payment(hash_of(n))
                    assert seen.undelivered == ledger.undelivered(origin)
                    assert seen.standing == ledger.standing(origin, page)
                    assert list(seen.page_tokens) == (ledger.page_tokens(origin, page) if page else [])
                    assert list(seen.owed) == (ledger.owed(origin, page) if page else [])
                    kinds |= {name for name in ("live", "same_invoice", "standing", "page_tokens", "owed") if getattr(seen, name)}
        assert len(kinds) == 5, "the history hasn't all that there may be"

    def test_an_origin_that_has_delivered_nothing_is_seen_in_the_same_look(self, ledger: Ledger) -> None:
        """Else it would be paid page after page."""
        for n in (1, 2):
            ledger.open_payment(intent(n, scope=f"s{n}", resource_digest=str(n)), None)
            settle(ledger, n)
            assert found(ledger, n=9).undelivered is None
            ledger.note_undelivered(hash_of(n), refused=n == 2, why=REFUSED_AT_ONCE)
        row = found(ledger, n=9).undelivered
        assert row is not None
        assert row.payment_hash == hash_of(2), "the refused one comes first"
        assert found(ledger, origin=OTHER).undelivered is None
        ledger.open_payment(intent(3, scope="s3", resource_digest="3"), None)
        settle(ledger, 3)
        ledger.mark(hash_of(3), accepted=True)
        assert found(ledger, n=9).undelivered is None, "it has accepted one"

    def test_a_damaged_row_is_in_the_way_only_of_what_needs_it(self, ledger: Ledger) -> None:
        """Else one damaged payment for a page would keep its live token from being used."""
        for n in (1, 2):
            ledger.open_payment(intent(n, scope=f"s{n}", resource_digest="a", known_tokens=(hash_of(1),)), None)
            settle(ledger, n)
            ledger.mark(hash_of(n), accepted=True)
        ledger._store.run(lambda tx: tx.execute("UPDATE payments SET preimage = ? WHERE payment_hash = ?", ("00" * 32, hash_of(1))))
        seen = found(ledger, scope="s2", n=9)
        assert seen.live == ledger.payment(hash_of(2))
        with pytest.raises(LedgerError, match="damaged"):
            _ = seen.page_tokens

    def test_a_deferred_statement_is_part_of_its_transaction(self, ledger: Ledger) -> None:
        """Else a reservation could be without its payment, or a payment without its reservation."""
        ledger.bring(limits())
        reserve = "UPDATE envelopes SET reserved_micro = reserved_micro + ? WHERE id = ?"

        def reserves(*amounts_micro: int, reads: bool = False) -> Any:
            def work(tx: Any) -> Any:
                for each in amounts_micro:
                    tx.defer(reserve, (each, "e"))
                return tx.execute("SELECT reserved_micro FROM envelopes WHERE id = ?", ("e",)) if reads else None

            return work

        assert ledger._store.run(reserves(3_000_000, 4_000_000, reads=True))[0]["reserved_micro"] == 7_000_000
        ledger._store.run(reserves(1_000_000))
        assert held_msat(ledger) == (8_000, 0)
        for reads in (True, False):
            with pytest.raises(LedgerError):  # the database's own check refuses a negative reservation
                ledger._store.run(reserves(2_000_000, -20_000_000, reads=reads))
            assert held_msat(ledger) == (8_000, 0)
        ledger._store.run(reserves(-8_000_000))
        assert held_msat(ledger) == (0, 0), "the connection is in order after a failure"

    def test_values_of_deferred_statements_are_values_whatever_they_contain(self, ledger: Ledger) -> None:
        """Else a server's text could become part of a statement."""
        ledger.open_payment(intent(1), None)
        for text in ("it's", "\\'; DROP TABLE payments; --", 'a "b" %s ? $1 {}', "ü\n\t€", ""):

            def work(tx: Any, text: str = text) -> None:
                tx.defer("UPDATE payments SET failure_text = ? WHERE payment_hash = ?", (text, hash_of(1)))

            ledger._store.run(work)
            row = ledger.payment(hash_of(1))
            assert row is not None
            assert row.failure_text == text
