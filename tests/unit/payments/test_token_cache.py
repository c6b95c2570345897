"""Which token goes along unasked: by the design's three rules, to its own origin alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.payments import token_cache as tokens
from routeweiler_sync.payments.token import Token
from routeweiler_sync.payments.token_cache import TokenCache
from tests.support.ledger_builders import ORIGIN, PATIENCE_S, die, draw, fail, hash_of, intent, limits, preimage, settle


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def book_of(ledger: Ledger) -> TokenCache:
    return TokenCache(lambda: ledger)


def bought(ledger: Ledger, n: int, **changes: Any) -> Token:
    ledger.open_payment(intent(n, **changes), draw(limits()))
    held = Token.of(settle(ledger, n, fee_msat=500))
    assert held is not None
    return held


def test_a_path_gets_the_token_it_was_learned_to_need(ledger: Ledger) -> None:
    """Else every call would first be refused, and carry the wrong token to begin with."""
    one, two = bought(ledger, 1), bought(ledger, 2)
    ledger.learn(ORIGIN, "/elsewhere", "scope-2")
    book = book_of(ledger)
    assert book.token_for_path(ORIGIN, "/pages/1") == (one, False)
    assert book.token_for_path(ORIGIN, "/pages/2") == (two, False)
    assert book.token_for_path(ORIGIN, "/elsewhere") == (two, False)


def test_an_unknown_path_gets_the_only_live_token_as_a_guess(ledger: Ledger) -> None:
    """Else a service of many paths would cost a 402 for each of them."""
    one = bought(ledger, 1)
    assert book_of(ledger).token_for_path(ORIGIN, "/unheard/of") == (one, True)


def test_between_two_tokens_nothing_is_guessed(ledger: Ledger) -> None:
    """Else a token would be shown to pages that have nothing to do with it."""
    bought(ledger, 1)
    bought(ledger, 2)
    assert book_of(ledger).token_for_path(ORIGIN, "/unheard/of") is None


def test_a_path_known_to_need_another_token_gets_none(ledger: Ledger) -> None:
    """Else the wrong token would go along each time, though the path has said which it needs."""
    bought(ledger, 1)
    ledger.learn(ORIGIN, "/other", "a scope without a token")
    assert book_of(ledger).token_for_path(ORIGIN, "/other") is None


@pytest.mark.parametrize(
    "origin",
    ["http://api.example", "https://api.example:8443", "https://api.example.evil", "https://b.api.example", "https://example", ""],
)
def test_no_other_origin_gets_the_token(ledger: Ledger, origin: str) -> None:
    """Else a token would leak to a server that could use it in our place."""
    held, book = bought(ledger, 1), book_of(ledger)
    assert book.token_for_path(origin, "/pages/1") is None
    book.put(held, "/pages/1")
    assert book.token_for_path(origin, "/pages/1") is None
    assert book.token_for_path(ORIGIN, "/pages/1") == (held, False)


@pytest.mark.parametrize("end", [None, fail, die, "unproved", "forgotten"])
def test_only_live_tokens_go_along(ledger: Ledger, end: Any) -> None:
    """Else an unpaid, failed or given-up purchase would be shown as if it were a token."""
    ledger.open_payment(intent(1), None)
    if end == "unproved":
        row = settle(ledger, 1, proved=False)
        assert Token.of(row) is None
        assert Token.unproved(row).preimage == b""
    elif end == "forgotten":
        settle(ledger, 1)
        ledger.forget(hash_of(1))
    elif end is not None:
        end(ledger, 1)
    book = book_of(ledger)
    assert book.token_for_path(ORIGIN, "/pages/1") is None
    assert book.token_for_path(ORIGIN, "/unheard/of") is None


def test_a_row_without_token_does_not_keep_the_only_one_from_being_guessed(ledger: Ledger) -> None:
    """Else an unfinished purchase would make every page of a live token cost a 402."""
    held = bought(ledger, 1)
    ledger.open_payment(intent(2), None)
    assert book_of(ledger).token_for_path(ORIGIN, "/unheard/of") == (held, True)


def test_a_missing_ledger_is_not_made_by_looking(tmp_path: Path) -> None:
    """Else free traffic would leave a ledger behind."""
    path = tmp_path / "folder" / "ledger.db"
    assert book_of(Ledger.open(path)).token_for_path(ORIGIN, "/") is None
    assert not path.parent.exists()


@pytest.mark.parametrize("fails_at", ["open", "read"])
def test_free_traffic_does_not_need_a_ledger_that_works(tmp_path: Path, fails_at: str) -> None:
    """Else a damaged ledger would stop pages that cost nothing."""
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 100)

    def ledger() -> Ledger:
        if fails_at == "open":
            raise LedgerError("no such thing")
        return Ledger.open(tmp_path / "ledger.db")

    book = TokenCache(ledger)
    assert book.token_for_path(ORIGIN, "/") is None
    assert book.token_for_path(ORIGIN, "/") is None


def test_the_ledger_is_asked_once_for_each_origin(ledger: Ledger) -> None:
    """Else every free request would pay for a look into the database."""
    held, asked = bought(ledger, 1), list[int]()
    book = TokenCache(lambda: asked.append(1) or ledger)  # type: ignore[func-returns-value]
    for _ in range(5):
        assert book.token_for_path(ORIGIN, "/") == (held, True)
        assert book.token_for_path("https://free.example", "/") is None
    assert len(asked) == 2


def test_memory_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crawler's session would grow with every host that it meets."""
    monkeypatch.setattr(tokens, "MAX_ORIGINS", 10)
    held, book = bought(ledger, 1), book_of(ledger)
    for n in range(50):
        book.token_for_path(f"https://h{n}.example", "/")
        assert len(book._origins) <= 10
    assert book.token_for_path(ORIGIN, "/") == (held, True)


def test_what_is_bought_is_known_at_once(ledger: Ledger) -> None:
    """Else the next call would meet a 402 for a token that the session holds."""
    book = book_of(ledger)
    assert book.token_for_path(ORIGIN, "/pages/1") is None
    held = bought(ledger, 1)
    assert book.token_for_path(ORIGIN, "/pages/1") is None  # another's purchase is found on the 402
    book.put(held, "/pages/1")
    assert book.token_for_path(ORIGIN, "/pages/1") == (held, False)
    assert book.token_for_path(ORIGIN, "/x") == (held, True)
    assert book.knows_path(held, "/pages/1")
    assert not book.knows_path(held, "/x")
    book.put(held)
    assert book.token_for_path(ORIGIN, "/x") == (held, True)


def test_a_dropped_token_stays_away_and_takes_no_newer_one_along(ledger: Ledger) -> None:
    """Else a retired token would be sent again and again, or the one just bought be forgotten."""
    old = bought(ledger, 1, scope="s")
    book = book_of(ledger)
    assert book.token_for_path(ORIGIN, "/") == (old, True)
    book.drop(old)
    assert book.token_for_path(ORIGIN, "/") is None
    ledger.forget(old.payment_hash)
    new = bought(ledger, 2, scope="s")
    book.put(new, "/pages/2")
    book.drop(old)
    assert book.token_for_path(ORIGIN, "/pages/2") == (new, False)
    TokenCache(lambda: ledger).drop(new)


def test_what_is_noted_stays_and_stays_with_its_token(ledger: Ledger) -> None:
    """Else a token that was taken would be doubted each time, or a new one be trusted for its predecessor's sake."""
    old, book = bought(ledger, 1, scope="s"), book_of(ledger)
    book.put(old, "/")
    assert book.note(old, accepted=True) == replace(old, accepted=True)
    assert book.note(old, reported=True) == replace(old, accepted=True, reported=True)
    assert book.note(old) == replace(old, accepted=True, reported=True)
    assert book.token_for_path(ORIGIN, "/") == (replace(old, accepted=True, reported=True), False)
    new = replace(old, payment_hash=hash_of(2))
    book.put(new, "/")
    assert book.note(old, accepted=True) == replace(old, accepted=True)
    assert book.token_for_path(ORIGIN, "/") == (new, False)
    assert book_of(ledger).note(new, accepted=True) == replace(new, accepted=True)


def test_a_purchase_during_the_first_look_is_not_lost(ledger: Ledger) -> None:
    """Else two threads' first calls would leave a session without the token it has just bought, a 402 for every page."""
    looking, go_on = threading.Event(), threading.Event()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(ledger, name)

        def learned(self, origin: str, **limit: int) -> dict[str, str]:
            found = ledger.learned(origin, **limit)
            if threading.current_thread() is first:
                looking.set()
                assert go_on.wait(PATIENCE_S)
            return found

    slow: Any = Slow()
    bought(ledger, 9, origin="https://b.example")
    book = TokenCache(lambda: slow)
    first = threading.Thread(target=book.token_for_path, args=(ORIGIN, "/"), daemon=True)
    first.start()
    assert looking.wait(PATIENCE_S)
    held = bought(ledger, 1)
    book.put(held, "/")
    go_on.set()
    first.join(PATIENCE_S)
    assert book.token_for_path(ORIGIN, "/") == (held, False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_in_the_middle_of_a_note_can_note(ledger: Ledger) -> None:
    """Else a worker forked at the wrong moment would hang at its first purchase."""
    held, book = bought(ledger, 1), book_of(ledger)
    book.put(held)
    inside, go_on = threading.Event(), threading.Event()

    class Blocking:
        origin, payment_hash = ORIGIN, "x"

        @property
        def scope(self) -> str:
            if threading.current_thread() is noting:
                inside.set()
                assert go_on.wait(PATIENCE_S)
            return "elsewhere"

    blocking: Any = Blocking()
    noting = threading.Thread(target=book.put, args=(blocking,), daemon=True)
    noting.start()
    assert inside.wait(PATIENCE_S)
    pid = os.fork()
    if pid == 0:
        note = threading.Thread(target=book.put, args=(held, "/"), daemon=True)
        note.start()
        note.join(PATIENCE_S / 10)
        os._exit(int(note.is_alive()))
    go_on.set()
    noting.join(PATIENCE_S)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_token_tells_what_was_booked_and_shows_no_secret(ledger: Ledger) -> None:
    """Else the trace wouldn't add up with the ledger, or a log line would hand out the token."""
    held = bought(ledger, 1, token="s3cret")
    assert (held.amount_msat, held.fee_msat, held.amount_minor_units, held.currency) == (10_000, 500, Decimal("10.5"), "sat")
    assert (held.token, held.preimage, held.scheme) == ("s3cret", preimage(1), "L402")
    assert "s3cret" not in repr(held)
    assert repr(preimage(1)) not in repr(held)
    ledger.open_payment(intent(2), None)
    unlimited = Token.of(settle(ledger, 2))
    assert unlimited is not None
    assert (unlimited.amount_minor_units, unlimited.currency) == (None, None)


# -- origins with many tokens ----------------------------------------------------------------------------------------------------


def sells_much(ledger: Ledger, count: int) -> list[str]:
    """Buy at many pages, with every end; learn what some paths need. Return all paths, and one that nothing is known of."""
    clock = [1_000.0]
    ledger._clock = lambda: clock[0]
    for n in range(count):
        clock[0] += 1
        new = intent(n, path=f"/pages/{n % (count - 2)}")  # two paths have two tokens each
        ledger.open_payment(new, None)
        end: Any = (settle, settle, settle, fail, die)[n % 5] if n % 7 else settle
        end(ledger, n)
        if n % 11 == 3:
            ledger.forget(hash_of(n), abandon=True)
        if n % 4 == 0:
            ledger.learn(ORIGIN, f"/learned/{n}", f"scope-{n - n % 3}")
    ledger.learn(ORIGIN, "/pages/1", "scope-7")
    return [f"/pages/{n}" for n in range(count)] + [f"/learned/{n}" for n in range(0, count, 4)] + ["/unheard/of"]


@pytest.mark.parametrize("count", [3, 9, 40])
@pytest.mark.parametrize(("few", "asked"), [(1, 0), (1, 1_000), (2, 3), (8, 8), (8, 1_000)])
def test_a_path_gets_the_same_token_however_much_was_read(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, count: int, few: int, asked: int
) -> None:
    """Else a page's own token would stay at home, or another go along, at a server where much was bought."""
    paths = sells_much(ledger, count)

    def tokens_of(book: TokenCache) -> list[object]:
        got: list[object] = [(path, book.token_for_path(ORIGIN, path)) for path in paths]
        book.unlearn(ORIGIN, "/pages/2")
        got += [book.token_for_path(ORIGIN, "/pages/2"), book.has_served_others(ORIGIN)]
        return got

    monkeypatch.setattr(tokens, "FEW", 10_000)
    expected = tokens_of(book_of(ledger))
    monkeypatch.setattr(tokens, "FEW", few)
    monkeypatch.setattr(tokens, "MAX_PATHS_ASKED", asked)
    assert tokens_of(book_of(ledger)) == expected
    paths.reverse()
    book = book_of(ledger)
    assert tokens_of(book)[: len(paths)] == expected[: len(paths)][::-1]


def test_of_two_tokens_for_a_path_the_newest_goes_along(ledger: Ledger) -> None:
    """Else an old token is shown first each time, and refused."""
    clock = [1_000.0]
    ledger._clock = lambda: clock[0]
    for n in (5, 3, 4):
        clock[0] += 1
        bought(ledger, n, path="/page")
    found = book_of(ledger).token_for_path(ORIGIN, "/page")
    assert found is not None
    assert found[0].scope == "scope-4"


def test_a_fresh_session_reads_few_of_many_tokens(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each short-lived worker reads all that was ever bought at a server: a thousand pages by a thousand workers."""
    held = [bought(ledger, n) for n in range(60)]
    read = list[str]()
    of = Token.of
    monkeypatch.setattr(tokens.Token, "of", lambda row: read.append(row.path) or of(row))  # type: ignore[func-returns-value]
    book = book_of(ledger)
    assert book.token_for_path(ORIGIN, "/pages/50") == (held[50], False)
    assert book.token_for_path(ORIGIN, "/unheard/of") is None
    assert len(read) <= tokens.FEW + 2
    monkeypatch.setattr(tokens, "MAX_OFFERED", 5)
    for token in held:
        ledger.mark(token.payment_hash, accepted=True)
    clock = [time.time() + 100]
    ledger._clock = lambda: clock[0]
    newest = bought(ledger, 99)
    ledger.mark(newest.payment_hash, accepted=True)
    read.clear()
    assert book.others(ORIGIN, "/stream")[0].payment_hash == newest.payment_hash, "another process has bought it since"
    assert len(read) <= 2 * tokens.MAX_OFFERED


def test_the_ledger_is_asked_for_a_few_paths_and_then_for_all(ledger: Ledger) -> None:
    """Else a long crawl of free pages at a server that sells others would pay for a look into the database for each."""
    held, asked = [bought(ledger, n) for n in range(30)], list[int]()
    book = TokenCache(lambda: asked.append(1) or ledger)  # type: ignore[func-returns-value]
    for n in range(200):
        assert book.token_for_path(ORIGIN, f"/free/{n}") is None
    for n in range(30):
        assert book.token_for_path(ORIGIN, f"/pages/{n}") == (held[n], False)
    assert len(asked) == 1 + tokens.MAX_PATHS_ASKED + 1


# -- what an origin's tokens open ----------------------------------------------------------------------------------------------


def test_a_token_that_was_offered_in_vain_isnt_guessed_with_there_again(ledger: Ledger) -> None:
    """Else each visit to a free page costs a second request, and shows it the token."""
    one = bought(ledger, 1)
    book = book_of(ledger)
    book.note_useless(one, "/free")
    assert book.is_useless(one, "/free")
    assert book.token_for_path(ORIGIN, "/free") is None
    assert book.token_for_path(ORIGIN, "/other") == (one, True)
    ledger.retire(hash_of(1))
    book.drop(one)
    two = bought(ledger, 2)
    book.put(two)
    assert book.token_for_path(ORIGIN, "/free") == (two, True), "a new token may open it"


def test_the_tokens_for_a_path_that_sells_none_come_newest_first(ledger: Ledger) -> None:
    """Else old tokens of other pages are shown before the one that was just bought."""
    clock = [1_000.0]
    ledger._clock = lambda: clock[0]
    held = []
    for n in (3, 1, 2):
        clock[0] += 1
        held.append(bought(ledger, n))
    book = book_of(ledger)
    assert book.others(ORIGIN, "/stream") == held[::-1]
    book.note_useless(held[2], "/stream")
    ledger.forget(held[0].payment_hash)
    assert book.others(ORIGIN, "/stream") == [held[1]]
    assert book.has_others(f"{ORIGIN}/stream")
    assert not book.has_others("https://b.example/stream")
    assert not book.has_others("mailto:somebody")


def test_another_process_purchase_is_seen_a_while_later(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a session that met the server before never finds it; or each 401 costs a look into the ledger."""
    book = book_of(ledger)
    assert book.others(ORIGIN, "/stream") == []
    one = bought(ledger, 1)
    assert book.others(ORIGIN, "/stream") == []
    monkeypatch.setattr(book._origins[ORIGIN], "refreshed", None)
    assert book.others(ORIGIN, "/stream") == [one]


def test_an_origin_sells_by_path_after_two_vain_trials_and_none_that_served(ledger: Ledger) -> None:
    """Else a token goes out for each further path for nothing; or a token for everything is bought for each."""
    book = book_of(ledger)
    for expected in (False, True):
        book.note_vain_trials(ORIGIN, 1)
        assert book.sells_by_path(ORIGIN) == expected
    book.note_trial_served(ORIGIN)
    assert not book.sells_by_path(ORIGIN)


def test_an_error_is_taken_for_a_refusal_once_a_minute_and_not_where_it_was_none(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an application that is down is asked twice by each call, or paid for each of its pages."""
    one = bought(ledger, 1)
    book = book_of(ledger)
    assert book.takes_error_for_refusal(ORIGIN, "/a", 503)
    book.note_error_asked_about(ORIGIN, "/a")
    assert not book.takes_error_for_refusal(ORIGIN, "/a", 503)
    assert book.takes_error_for_refusal(ORIGIN, "/a", 404)
    assert book.takes_error_for_refusal(ORIGIN, "/b", 503)
    monkeypatch.setattr(tokens, "ERRORS_APART_S", 0.0)
    book.note_error_asked_about(ORIGIN, "/a")
    assert book.takes_error_for_refusal(ORIGIN, "/a", 503)
    book.note_own_error(ORIGIN, 404, is_own=True)
    assert not book.takes_error_for_refusal(ORIGIN, "/b", 404)
    assert book.takes_error_for_refusal(ORIGIN, "/b", 403)
    book.note_used_up(ORIGIN)
    assert book.takes_error_for_refusal(ORIGIN, "/b", 404), "tokens are used up there, so it may be about one"
    book.note_served(book.note(one, accepted=True))
    assert not book.takes_error_for_refusal(ORIGIN, "/b", 404)
    book.note_own_error(ORIGIN, 404, is_own=False)
    assert book.takes_error_for_refusal(ORIGIN, "/b", 404)


def test_a_token_that_has_served_at_a_single_use_origin_stays_at_home(ledger: Ledger) -> None:
    """Else it is refused each time; but one that was paid for and never served has to go."""
    one = bought(ledger, 1)
    for _ in range(3):
        ledger.note_used_up(ORIGIN)
    book = book_of(ledger)
    assert book.used_up_in_a_row(ORIGIN) == 3
    assert book.token_for_path(ORIGIN, "/pages/1") == (one, False)
    served = book.note(one, accepted=True)
    assert book.token_for_path(ORIGIN, "/pages/1") is None
    assert book.others(ORIGIN, "/stream") == []
    book.note_served(served)
    assert book.token_for_path(ORIGIN, "/pages/1") == (served, False)


def test_what_is_remembered_of_paths_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a crawler's memory grows with each page."""
    monkeypatch.setattr(tokens, "MAX_PATHS", 10)
    one = bought(ledger, 1)
    book = book_of(ledger)
    for number in range(50):
        book.note_useless(one, f"/{number}")
        book.note_error_asked_about(ORIGIN, f"/{number}")
    for number in range(200):
        book.note_useless(replace(one, payment_hash=hash_of(number)), "/49")
    entry = book._origins[ORIGIN]
    assert len(entry.useless) == len(entry.errors_until) == 10
    assert len(entry.useless["/49"]) <= tokens.MAX_USELESS_TOKENS
