"""Promise 7 between processes: a payment is reported by one call of one of them, whoever dies and whoever uses its token."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Routeweiler, TraceSink
from routeweiler_sync.ledger.ledger import CLAIM_S
from routeweiler_sync.payments import report_claims
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.http_server import server
from tests.support.shop import challenge_line

pytestmark = pytest.mark.timeout(120)

#: A program that buys a page. ``dies`` says at what point of its call it ends without a further word.
BUYER = """
import os, sys
from routeweiler_sync import Routeweiler, TraceSink
from routeweiler_sync.funding.lightning import Funding, LndClient
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.paywall.call_record import CallRecord
url, ledger, trace, kind, dies, host, port, macaroon, cert = sys.argv[1:]
if dies == "before its line":
    CallRecord._write_events = lambda *args: os._exit(9)
if dies == "after its line":
    Ledger.mark = lambda ledger, payment_hash, accepted=False, reported=False, **_: os._exit(9) if reported else None
client = LndClient(host, int(port), macaroon_path=macaroon, tls_cert_path=cert)
session = Routeweiler(
    funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
    ledger=ledger, trace_sink=getattr(TraceSink, kind)(trace),
)
print(session.get(url).status_code, flush=True)
"""


class Seller:
    """A server whose token opens all its pages. If it ``holds``, its next page comes only when `go` is set."""

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd, self.holds, self.go, self.asked = lnd, False, threading.Event(), threading.Event()

    def answer(self, request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        if not request.headers.get("Authorization"):
            return 402, [("WWW-Authenticate", challenge_line(self.lnd, 10_000, "all")[1])], b""
        if self.holds:
            self.holds = False
            self.asked.set()
            self.go.wait(60)
        return 200, [], b"page"


@pytest.fixture
def seller(lnd: FakeLnd) -> Iterator[tuple[Seller, str]]:
    made = Seller(lnd)
    with server(made.answer) as url:
        yield made, url
        made.go.set()


@pytest.fixture(params=["jsonl", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trace(tmp_path: Path, kind: str) -> Path:
    return tmp_path / f"trace.{kind}"


def reports(trace: Path, kind: str) -> list[bool]:
    """Whether each event with a payment reports it, oldest first."""
    if kind == "jsonl":
        texts = trace.read_text().splitlines()
    else:
        with contextlib.closing(sqlite3.connect(trace)) as database:
            texts = [text for (text,) in database.execute("SELECT payload FROM trace_events ORDER BY rowid")]
    payments = [json.loads(text)["payment"] for text in texts]
    return [not payment["reused"] for payment in payments if payment]


def buyer(lnd: FakeLnd, books: Books, trace: Path, kind: str, url: str, dies: str = "") -> subprocess.Popen[str]:
    client = lnd.client()
    where = [client.grpc_host, str(client.grpc_port), str(lnd.macaroon_path), str(lnd.tls_cert_path)]
    arguments = [url, str(books.ledger_path), str(trace), kind, dies, *where]
    return subprocess.Popen([sys.executable, "-c", BUYER, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def user(make_session: Callable[..., Routeweiler], trace: Path, kind: str) -> Routeweiler:
    """A session of another process than the buyer's, which uses the token."""
    return make_session(trace_sink=getattr(TraceSink, kind)(trace))


@pytest.mark.parametrize("how", ["a call", "recover"])
def test_who_uses_a_token_while_its_buyer_waits_for_the_page_doesnt_report_it(
    lnd: FakeLnd, books: Books, seller: Any, user: Routeweiler, trace: Path, kind: str, how: str
) -> None:
    """Else a payment counts twice as soon as two processes share a token."""
    shop, url = seller
    shop.holds = True
    waiting = buyer(lnd, books, trace, kind, f"{url}/page")
    assert shop.asked.wait(60)
    if how == "a call":
        response = user.get(f"{url}/page")
        assert response.payment.reused is True
    else:
        user.recover()
    shop.go.set()
    assert waiting.communicate(timeout=60)[0] == "200\n"
    assert user.get(f"{url}/page").status_code == 200
    assert reports(trace, kind).count(True) == 1
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("how", ["a call", "recover"])
@pytest.mark.parametrize("dies", ["killed", "before its line", "after its line"])
def test_a_payment_whose_buyer_has_died_is_reported_once(
    lnd: FakeLnd, books: Books, seller: Any, user: Routeweiler, trace: Path, kind: str, dies: str, how: str
) -> None:
    """Else a crash leaves a payment that no trace knows of, or one that counts twice."""
    shop, url = seller
    shop.holds = dies == "killed"
    dying = buyer(lnd, books, trace, kind, f"{url}/page", dies)
    if dies == "killed":
        assert shop.asked.wait(60)
        dying.send_signal(signal.SIGKILL)
    dying.communicate(timeout=60)
    assert dying.returncode in (9, -9)
    for _ in range(2):
        if how == "recover":
            user.recover()
        else:
            assert user.get(f"{url}/page").status_code == 200
    assert reports(trace, kind).count(True) == 1
    assert books.ledger.unreported() == []
    assert len(lnd.payments) == 1


def test_a_claim_of_another_machine_holds_until_it_runs_out(
    lnd: FakeLnd, books: Books, seller: Any, user: Routeweiler, trace: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing here can know whether a process of another machine still runs: only its lease says when it may be replaced."""
    _, url = seller
    buyer(lnd, books, trace, kind, f"{url}/page", "before its line").communicate(timeout=60)
    with contextlib.closing(sqlite3.connect(books.ledger_path)) as database:
        database.execute("UPDATE payments SET claimant = 'elsewhere:1/1/1/1'")
        database.commit()
    assert user.get(f"{url}/page").status_code == 200
    assert reports(trace, kind) == [False]
    later = time.time() + CLAIM_S + 60
    monkeypatch.setattr(user._payer.ledger, "_clock", lambda: later)
    assert user.get(f"{url}/page").status_code == 200
    assert user.get(f"{url}/page").status_code == 200
    assert reports(trace, kind) == [False, True, False]


def test_a_report_that_couldnt_be_written_is_left_to_any_other_process(
    lnd: FakeLnd, books: Books, seller: Any, user: Routeweiler, trace: Path, kind: str, tmp_path: Path
) -> None:
    """Else nobody would report it before the claim runs out, though the process that has it goes on."""
    _, url = seller
    broken = tmp_path / "folder"
    broken.mkdir()
    assert buyer(lnd, books, broken, kind, f"{url}/page").communicate(timeout=60)[0] == "200\n"
    assert [row.claimant for row in books.rows] == [None]
    assert user.get(f"{url}/page").status_code == 200
    assert reports(trace, kind) == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_call_that_two_processes_finish_after_a_fork_reports_its_payment_once(
    lnd: FakeLnd, books: Books, seller: Any, user: Routeweiler, trace: Path, kind: str
) -> None:
    """A hook, or the program around it, forks while a call has paid and isn't over: both processes end it with a line."""
    _, url = seller
    children: list[int] = []

    def fork(response: Any, **kwargs: Any) -> None:
        response.content  # noqa: B018  (read here, since both processes have the connection)
        children.append(os.fork())
        if children == [0]:
            raise ConnectionError  # as if the child's call failed

    try:
        status = user.get(f"{url}/page", hooks={"response": fork}).status_code
    except BaseException:
        if children == [0]:
            os._exit(0)
        raise
    assert os.waitpid(children[0], 0)[1] == 0
    assert status == 200
    assert sorted(reports(trace, kind)) == [False, True]


def test_a_process_that_has_got_the_number_of_a_dead_one_isnt_taken_for_it() -> None:
    """Else the claim of a dead process holds for as long as some other program has its number."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = report_claims.this_claimant().split("/")
    try:
        started = report_claims._started(child.pid)
        assert not report_claims.is_dead("/".join([mine[0], str(child.pid), started, "x"]))
        if started:
            assert report_claims.is_dead("/".join([mine[0], str(child.pid), "1" + started, "x"]))
        assert not report_claims.is_dead("/".join(["elsewhere", "1", "1", "x"]))
        assert not report_claims.is_dead(report_claims.this_claimant())
        assert not report_claims.is_dead("nonsense")
    finally:
        child.kill()
        child.wait()
    assert report_claims.is_dead("/".join([mine[0], str(child.pid), started, "x"]))
