"""``routeweiler-sync payments`` and ``tokens``: what a user of the shell does about payments that hang and refused tokens."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from routeweiler_sync import PaymentPendingError, Routeweiler
from routeweiler_sync.cli.ledgers import command_text
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, Command

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def stuck(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> str:
    """The hash of a payment whose order may still arrive."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    lnd.clear_faults()
    return str(books.rows[0].payment_hash)


@pytest.fixture
def held(make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd) -> str:
    """The hash of a payment that the node has under way."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError) as raised:
        make_session(payment_timeout=1).get(paywall.url)
    return str(raised.value.payment_hash)


def test_a_pending_payment_names_the_commands_that_there_are(
    command: Command, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """The user of a shell can't call session.recover(), and a command that doesn't exist is worse than none."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    payment_hash = books.rows[0].payment_hash
    assert b"routeweiler-sync payments recover" in command.err
    assert f"routeweiler-sync payments abandon {payment_hash}".encode() in command.err
    assert b"session." not in command.err
    assert b"forget(" not in command.err


def test_an_abandoned_payment_frees_its_reservation(command: Command, stuck: str, paywall: Paywall, books: Books) -> None:
    """Sats would stay reserved for ever, and the page could never be bought again."""
    assert command("payments", "list", "--unfinished", "--json") == 0
    assert [(row["paymentHash"], row["state"]) for row in command.json] == [(stuck, "open")]
    assert command("payments", "abandon", stuck) == 0
    assert stuck.encode() in command.out
    assert books.rows[0].state == "dead"
    assert command("budget", "show", "--json") == 0
    assert command.json[0]["reservedMinorUnits"] == "0"
    assert command("payments", "abandon", stuck) == 3, "it has ended"
    assert command("get", paywall.url) == 0


def test_what_the_wallet_has_paid_isnt_abandoned(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books, held: str) -> None:
    """The money has left and the token is there to be had: to end the row would have the next call pay a second time."""
    lnd.release()
    lnd.wait_for(lambda node: node.payments[0].status == "SUCCEEDED")
    assert command("payments", "abandon", held, "--json") == 3
    assert command.out == b""
    assert b"is paid" in command.err
    assert b"routeweiler-sync payments recover" in command.err
    assert books.rows[0].state == "open", "nothing was changed"
    assert command("payments", "recover") == 0
    assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 1
    books.check()


def test_what_the_wallet_still_pays_is_abandoned_with_a_warning(command: Command, lnd: FakeLnd, books: Books, held: str) -> None:
    """lnd may keep a payment in flight for ever, so only the user can end it; but who does must hear that it may be paid twice."""
    assert command("payments", "abandon", held, "--json") == 0
    assert [(row["paymentHash"], row["state"]) for row in command.json] == [(held, "dead")]
    for said in (b"still has it under way", b"paid twice", b"routeweiler-sync payments recover"):
        assert said in command.err
    lnd.release()
    lnd.wait_for(lambda node: node.payments[0].status == "SUCCEEDED")
    assert command("payments", "recover") == 0
    assert books.rows[0].settled_at is not None
    books.check()


def test_abandon_says_that_no_wallet_was_asked(command: Command, books: Books, held: str, tmp_path: Path) -> None:
    """Silence would be read as the wallet's word that the payment won't be made. Another node's word would be as false."""
    with FakeLnd() as other:
        cases: list[tuple[dict[str, str], bytes]] = [
            (NO_NODE, b"No wallet is configured"),
            ({"LND_GRPC_HOST": "127.0.0.1:1"}, b"127.0.0.1:1"),
            ({"ROUTEWEILER_NETWORK": "moon"}, b"moon"),
            (other.environ, b"names another wallet"),
        ]
        for number, (environ, why) in enumerate(cases):
            copied = tmp_path / f"copy-{number}.db"
            with closing(sqlite3.connect(books.ledger_path)) as source, closing(sqlite3.connect(copied)) as target:
                source.backup(target)
            assert command("payments", "abandon", held, "--ledger", str(copied), **environ) == 0
            assert b"wasn't asked" in command.err
            assert why in command.err
            assert f"routeweiler-sync payments recover --ledger {copied}".encode() in command.err
            assert held.encode() in command.out
    assert books.rows[0].state == "open"


def test_recover_asks_the_node_and_books_its_answer(
    command: Command, paywall: Paywall, lnd: FakeLnd, books: Books, make_session: Callable[..., Routeweiler]
) -> None:
    """A payment that the node has made would stay unbooked until the page is asked for again."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1).get(paywall.url)
    lnd.release()
    lnd.wait_for(lambda node: node.payments[0].status == "SUCCEEDED")
    assert command("payments", "recover", "--json") == 0
    assert [row["state"] for row in command.json] == ["settled"]
    assert len(lnd.payments) == 1
    books.check()


def test_recover_says_what_stays_unfinished(command: Command, stuck: str, books: Books) -> None:
    """'Done' for a payment that may still be made is a lie."""
    assert command("payments", "recover") == 5
    assert stuck.encode() in command.err
    assert command("payments", "recover", **NO_NODE) == 3
    assert b"ROUTEWEILER_LNDCONNECT" in command.err
    assert books.rows[0].state == "open"


def test_a_paid_token_isnt_abandoned_but_can_be_forgotten(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A wrong hash would lose a token that was paid for."""
    assert command("get", paywall.url) == 0
    payment_hash = books.rows[0].payment_hash
    assert command("payments", "abandon", payment_hash) == 3
    assert books.rows[0].state == "settled"
    assert command("payments", "recover", **NO_NODE) == 0, "nothing is unfinished: no node is needed"
    assert command("tokens", "list") == 0
    assert payment_hash.encode() in command.out
    assert command("tokens", "forget", payment_hash, "--json") == 0
    assert books.rows[0].state == "retired"
    assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 2


def test_a_charge_that_is_owed_is_shown_with_what_to_do(command: Command, lnd: FakeLnd, books: Books) -> None:
    """Paid, and nothing to show for it: the user of a shell must hear that the same request gets it, and that it is no token."""
    with Paywall(lnd, scheme="Payment", form="pympp") as paywall:
        paywall.cut_next("before")
        assert command("get", paywall.url) != 0
        (row,) = books.rows
        assert command("tokens", "list", "--json") == 0
        assert command.json == []
        assert command("payments", "list") == 0
        assert row.payment_hash.encode() in command.out
        assert b"Make the same request again" in command.err
        assert f"tokens forget {row.payment_hash[:16]}".encode() in command.err
        assert command("payments", "list", "--undelivered", "--json") == 0
        assert [(each["paymentHash"], each["singleUse"], each["undelivered"]) for each in command.json] == [
            (row.payment_hash, True, True)
        ]
        assert command("payments", "show", row.payment_hash) == 0
        assert b"isn't answered yet" in command.out
        assert b"Payment: for one request" in command.out
        assert row.preimage is not None
        assert row.preimage.encode() not in command.out + command.err
        assert command("get", "--dry-run", paywall.url) == 0
        assert b"a payment that was made for this request earlier would be presented" in command.out
        assert command("get", paywall.url) == 0
        assert command("payments", "list", "--undelivered") == 0
        assert b"No payment matches" in command.out + command.err
        assert command("payments", "show", row.payment_hash) == 0
        assert b"which the server has answered" in command.out
        assert command("get", "--dry-run", "--json", paywall.url) == 0
        assert (command.json["verdict"]["outcome"], command.json["quote"]["scheme"]) == ("pay", "Payment")
        assert command("get", "--dry-run", paywall.url) == 0
        assert b"Payment: one payment for one request" in command.out
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize("args", [("payments", "abandon"), ("tokens", "forget")])
def test_a_hash_that_there_is_not_is_wrong_usage(command: Command, stuck: str, args: tuple[str, str]) -> None:
    """A misspelt hash must not look like success."""
    assert command(*args, "0" * 64) == 2
    assert command(*args, "banana") == 2


def test_an_unfinished_payments_token_isnt_forgotten(command: Command, stuck: str, books: Books) -> None:
    """To forget is for tokens; ending a payment that may still be made takes a word of its own."""
    assert command("tokens", "forget", stuck) == 5
    assert f"routeweiler-sync payments abandon {stuck}".encode() in command.err
    assert books.rows[0].state == "open"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@db.example/shop",
        "postgres://me:hunter2@db.example/shop",
        "postgresql://db.example/shop?user=me&password=hunter2",
        "postgresql://me@db.example/shop?sslpassword=hunter2",
    ],
)
def test_no_command_to_copy_has_the_password_of_the_ledger(url: str) -> None:
    """``payments show --json`` is kept in logs, and repeats how the ledger was named."""
    text = command_text("payments", "recover", ledger=url)
    assert "hunter2" not in text
    assert text.startswith("routeweiler-sync payments recover --ledger ")
    assert "db.example/shop" in text
    assert command_text("budget", "thaw", "lab", ledger="a b.db") == "routeweiler-sync budget thaw lab --ledger 'a b.db'"
