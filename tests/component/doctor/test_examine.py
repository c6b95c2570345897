"""The examination, on the fake lnd: whatever is broken, its cause is named, nothing is paid or changed, and it ends in time."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from routeweiler_sync import BudgetEnvelope, Funding, FundingError, LndClient, Routeweiler
from routeweiler_sync.doctor.checkup import examine
from routeweiler_sync.doctor.findings import Finding, Verdict
from routeweiler_sync.errors import PaymentPendingError
from routeweiler_sync.funding.lnd import rights
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.wallet import ChannelBalance, NodeInfo, PaymentStatus
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._lnd_service import Service
from tests.support.ledger_builders import draw, intent

KEY = "02" * 33
Examine = Callable[..., list[Finding]]


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def payer(lnd: FakeLnd) -> str:
    """The path of a macaroon that can pay and show the balance, and no more."""
    return lnd.bake_macaroon(*rights.PAYING, rights.BALANCE)


@pytest.fixture
def environ(lnd: FakeLnd, payer: str, ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets variables; None unsets one. To begin with, all is well."""
    for name in list(os.environ):
        if re.match(r"ROUTEWEILER_|LND_|POLAR_|REQUESTS_CA|CURL_CA|.*_proxy$", name, re.IGNORECASE):
            monkeypatch.delenv(name)

    def set_(**variables: str | None) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)

    set_(**lnd.environ | {"LND_MACAROON_PATH": payer, "ROUTEWEILER_LEDGER": str(ledger_path)})
    return set_


@pytest.fixture
def found(environ: Callable[..., None]) -> Examine:
    """Examines, and returns what isn't ok. Each such finding has advice."""

    def run(**arguments: Any) -> list[Finding]:
        findings = [each for each in examine(**arguments) if each.verdict is not Verdict.OK]
        assert all(each.advice for each in findings)
        return findings

    return run


def only(findings: list[Finding], check: str, verdict: Verdict, *texts: str) -> None:
    """This is all that was found, and it has each of ``texts`` (regular expressions)."""
    assert [each.check for each in findings] == [check], findings
    assert findings[0].verdict is verdict
    for text in texts:
        assert re.search(text, f"{findings[0].what} {findings[0].advice}"), findings[0]


def test_all_is_well(lnd: FakeLnd, found: Examine, ledger_path: Path) -> None:
    """Nothing is paid, nothing reserved and nothing created: else nobody would dare to run it."""
    assert found() == []
    assert lnd.payments == []
    assert [order.bolt11 for order in lnd.orders] == ["-"]
    assert list(ledger_path.parent.iterdir()) == []


def test_the_node_of_an_lndconnect_uri(lnd: FakeLnd, environ: Callable[..., None], found: Examine) -> None:
    """The URI holds the macaroon: it must not be repeated."""
    macaroon = Path(lnd.macaroon_path).read_bytes().hex()
    environ(LND_GRPC_HOST=None, LND_TLS_CERT_PATH=None, LND_MACAROON_PATH=None, ROUTEWEILER_LNDCONNECT=lnd.lndconnect_uri)
    text = "more than paying needs: .* any right, spend the coins of the node's wallet, and change its channels and delete"
    only(found(), "rights", Verdict.WARNING, text)
    environ(ROUTEWEILER_LNDCONNECT=lnd.lndconnect_uri[:-1] + "!")
    findings = found()
    only(findings, "wallet", Verdict.WRONG, "lndconnect URI can't be used", "Copy it again")
    assert macaroon[:20] not in repr(findings)


def test_no_wallet(environ: Callable[..., None], found: Examine) -> None:
    """A user who has set nothing yet is told what to set."""
    environ(LND_GRPC_HOST=None, LND_TLS_CERT_PATH=None, LND_MACAROON_PATH=None)
    only(found(), "wallet", Verdict.WRONG, "names no wallet", "ROUTEWEILER_LNDCONNECT", "LND_GRPC_HOST")


# The way to the node


def test_a_certificate_for_another_host(environ: Callable[..., None], found: Examine, tmp_path: Path) -> None:
    """The connection is refused by our own side; lnd's log has nothing about it."""
    with FakeLnd(cert_names=("node.example",)) as other, FakeLnd() as another:
        bundle = tmp_path / "two.pem"  # a bundle is no pin of one node, so the name counts
        bundle.write_bytes(Path(other.tls_cert_path).read_bytes() + Path(another.tls_cert_path).read_bytes())
        environ(**other.environ | {"LND_TLS_CERT_PATH": str(bundle)})
        only(found(), "certificate", Verdict.WRONG, "doesn't name this host, but node.example", "tlsextradomain")


def test_nothing_is_pinned(environ: Callable[..., None], found: Examine) -> None:
    """lnd's certificate is its own, and no authority's."""
    environ(LND_TLS_CERT_PATH=None)
    only(found(), "certificate", Verdict.WRONG, "nothing is pinned", "tls.cert")


def test_a_server_that_accepts_and_is_silent(environ: Callable[..., None], found: Examine) -> None:
    """A firewall that swallows packets looks like this. The answer must come in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ(LND_GRPC_HOST=f"127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        findings = found(look_s=1.0)
        assert time.monotonic() - started < 10
    only(findings, "node", Verdict.WRONG, "didn't answer GetState within 1 s")


def test_a_connection_that_freezes_in_the_midst(lnd: FakeLnd, found: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question has a bound of its own, and all together too."""
    thaws = threading.Event()
    monkeypatch.setattr(Service, "_get_info", lambda *args: thaws.wait(60) and None)
    lnd.restart()
    started = time.monotonic()
    findings = found(look_s=1.0)
    thaws.set()
    assert time.monotonic() - started < 10
    only(findings, "node", Verdict.WRONG, "didn't answer GetInfo within 1 s")


def test_a_proxy_that_grpc_can_not_use(environ: Callable[..., None], found: Examine) -> None:
    """gRPC ignores it without a word."""
    environ(LND_GRPC_HOST="node.example.invalid:10009", https_proxy="socks5://user:pass@proxy.example:1080")
    findings = found(look_s=1.0)
    assert [each.check for each in findings] == ["proxies", "node"]
    assert "socks5" in findings[0].what
    assert "pass" not in findings[0].what


def test_a_proxy_that_is_down(environ: Callable[..., None], found: Examine) -> None:
    """The node is blamed for it otherwise."""
    environ(LND_GRPC_HOST="node.example.invalid:10009", grpc_proxy="http://127.0.0.1:1")
    only(found(), "node", Verdict.WRONG, "the proxy 127.0.0.1:1 of the environment variable grpc_proxy is down")


def test_authorities_that_are_missing(environ: Callable[..., None], found: Examine, tmp_path: Path) -> None:
    """Every https page would fail, and with an error that names no variable."""
    environ(REQUESTS_CA_BUNDLE=str(tmp_path / "none.pem"))
    only(found(), "authorities", Verdict.WRONG, "REQUESTS_CA_BUNDLE names no file")


# What the node says


@pytest.mark.parametrize(
    ("state", "text"), [("LOCKED", "lncli unlock"), ("NON_EXISTING", "lncli create"), ("RPC_ACTIVE", "still starting")]
)
def test_a_wallet_that_does_not_pay_yet(lnd: FakeLnd, found: Examine, state: str, text: str) -> None:
    """After a reboot a node waits for its password."""
    lnd.set_state(state)
    only(found(), "state", Verdict.WRONG, text)


@pytest.mark.parametrize("missing", rights.PAYING)
def test_each_right_that_is_missing_is_named(lnd: FakeLnd, environ: Callable[..., None], found: Examine, missing: str) -> None:
    """TrackPaymentV2 is asked for in doubt only: its lack would show when money hangs."""
    environ(LND_MACAROON_PATH=lnd.bake_macaroon(*({*rights.PAYING, rights.BALANCE} - {missing})))
    only(found(), "rights", Verdict.WRONG, f"doesn't permit {missing.rpartition('/')[2]}, which", "routeweiler-sync bakery")


def test_harmless_rights_that_paying_does_not_need_are_named(lnd: FakeLnd, environ: Callable[..., None], found: Examine) -> None:
    """'Ok' alone says that the macaroon has the least rights. Who has baked too many should see which, and need do nothing."""

    def finding() -> Finding:
        return next(each for each in examine() if each.check == "rights")

    more = [f"/lnrpc.Lightning/{name}" for name in ("GetNetworkInfo", "DescribeGraph")]
    environ(LND_MACAROON_PATH=lnd.bake_macaroon(*rights.PAYING, rights.BALANCE, rights.LIST_PAYMENTS, *more))
    assert found() == []
    assert finding().what.endswith("and more than paying needs: DescribeGraph and GetNetworkInfo")
    assert "routeweiler-sync bakery" in (finding().advice or "")
    environ(LND_MACAROON_PATH=lnd.bake_macaroon(*rights.PAYING, rights.BALANCE, rights.LIST_PAYMENTS))
    assert "more" not in finding().what
    assert finding().advice is None


def test_a_macaroon_that_was_revoked(lnd: FakeLnd, environ: Callable[..., None], found: Examine) -> None:
    """lnd says only that it can't get the macaroon."""
    environ(LND_MACAROON_PATH=lnd.bake_refused_macaroon())
    only(found(), "macaroon", Verdict.WRONG, "another node's, or was revoked")


def test_rights_that_can_not_be_read_are_tried(
    lnd: FakeLnd, environ: Callable[..., None], found: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A macaroon in a form of its own may be an admin's all the same."""
    monkeypatch.setattr("routeweiler_sync.doctor.lnd_node.read_permissions", lambda macaroon: None)
    assert found() == []
    environ(LND_MACAROON_PATH=lnd.macaroon_path)
    only(found(), "rights", Verdict.WARNING, "such as ListPayments")


@pytest.fixture
def info(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes fields of the node's GetInfo."""
    real = Service._get_info

    def change(**fields: Any) -> None:
        def answer(self: Service, *args: Any) -> pb.GetInfoResponse:
            made = real(self, *args)
            made.MergeFrom(pb.GetInfoResponse(**fields))
            for name, value in fields.items():
                if name == "chains":
                    del made.chains[0]
                elif not value:
                    made.ClearField(name)  # type: ignore[arg-type]
            return made

        monkeypatch.setattr(Service, "_get_info", answer)
        lnd.restart()

    return change


MAINNET = {"chains": [pb.Chain(chain="bitcoin", network="mainnet")]}


@pytest.mark.parametrize(
    ("fields", "check", "verdict", "text"),
    [
        ({**MAINNET, "synced_to_chain": False}, "sync", Verdict.WRONG, "isn't synced to the chain"),
        ({"synced_to_chain": False}, "sync", Verdict.WARNING, "mine a block"),
        ({"synced_to_graph": False}, "sync", Verdict.WARNING, "graph of channels"),
        ({"version": "0.16.4-beta commit=v0.16.4-beta"}, "version", Verdict.WARNING, "0.17 or newer"),
        ({"num_active_channels": 0}, "channels", Verdict.WRONG, "no channel"),
        ({"num_active_channels": 0, "num_inactive_channels": 2}, "channels", Verdict.WRONG, "none of its 2 channels is active"),
        ({"num_active_channels": 0, "num_pending_channels": 1}, "channels", Verdict.WRONG, "pendingchannels"),
        ({"chains": [pb.Chain(chain="bitcoin", network="simnet")]}, "network", Verdict.WRONG, "bitcoin-simnet, for which nothing"),
        ({**MAINNET, "best_header_timestamp": int(time.time()) - 86_400}, "clock", Verdict.WARNING, "newest block is 1 day old"),
        ({"best_header_timestamp": int(time.time()) + 5 * 3600}, "clock", Verdict.WRONG, "is at least .* behind"),
    ],
)
def test_a_node_that_is_not_ready_says_why(
    info: Callable[..., None], found: Examine, fields: dict[str, Any], check: str, verdict: Verdict, text: str
) -> None:
    """A payment would fail with NO_ROUTE, which is all that lnd says then."""
    info(**fields)
    only(found(), check, verdict, text)


@pytest.mark.parametrize(
    "fields",
    [{"version": f"0.{'9' * 5000}"}, {"best_header_timestamp": 2**62}, {"best_header_timestamp": -(2**62)}],
    ids=["version", "late", "early"],
)
def test_no_answer_of_a_node_ends_the_examination(info: Callable[..., None], found: Examine, fields: dict[str, Any]) -> None:
    """A traceback in place of all that is still to be looked at: ledger, budget, open payments."""
    info(**fields)
    assert found() == []


def test_the_network_of_the_variable_counts(info: Callable[..., None], environ: Callable[..., None], found: Examine) -> None:
    """Money of the main network must not be spent by a script that is meant for a test network."""
    info(**MAINNET)
    assert found() == []
    environ(ROUTEWEILER_NETWORK="bitcoin-signet")
    only(found(), "network", Verdict.WRONG, "the node is on bitcoin, but bitcoin-signet is wanted", "ROUTEWEILER_NETWORK")


@pytest.mark.parametrize(
    ("local_sat", "reserve_sat", "check", "verdict", "text"),
    [
        (0, 0, "balance", Verdict.WRONG, "no outbound balance"),
        (500, 500, "payable", Verdict.WRONG, "channel reserve"),
        (900, 200, "payable", Verdict.WARNING, "about 700 sat: the channels hold less than the 1000 sat that the budget allows"),
    ],
)
def test_a_balance_that_is_too_small(
    lnd: FakeLnd,
    environ: Callable[..., None],
    found: Examine,
    monkeypatch: pytest.MonkeyPatch,
    local_sat: int,
    reserve_sat: int,
    check: str,
    verdict: Verdict,
    text: str,
) -> None:
    """The reserve of a channel is part of its balance and can't be spent."""
    constraints = pb.ChannelConstraints(chan_reserve_sat=reserve_sat)
    channels = [pb.Channel(active=True, local_balance=local_sat, local_constraints=constraints)]
    balance = pb.ChannelBalanceResponse(local_balance=pb.Amount(sat=local_sat, msat=local_sat * 1000))
    monkeypatch.setattr(Service, "_channel_balance", lambda *args: balance)
    monkeypatch.setattr(Service, "_list_channels", lambda *args: pb.ListChannelsResponse(channels=channels))
    lnd.restart()
    environ(LND_MACAROON_PATH=lnd.bake_macaroon(*rights.PAYING, rights.BALANCE, "/lnrpc.Lightning/ListChannels"))
    only(found(), check, verdict, text)


# The ledger


def test_a_ledger_that_another_program_locks(found: Examine, ledger_path: Path) -> None:
    """Every purchase would wait, then be refused."""
    _made(ledger_path)
    with closing(sqlite3.connect(ledger_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        findings = found(look_s=0.5)
        assert time.monotonic() - started < 10
    only(findings, "ledger", Verdict.WRONG, "locked", "Another program")


def test_a_ledger_of_an_older_schema_is_left_as_it_is(found: Examine, ledger_path: Path) -> None:
    """To look mustn't migrate: an older program may still be using it."""
    _made(ledger_path)
    with closing(sqlite3.connect(ledger_path)) as connection:
        connection.execute("PRAGMA user_version=2")
    before = ledger_path.read_bytes()
    only(found(), "ledger", Verdict.WARNING, "schema 2; the next payment brings it to")
    assert ledger_path.read_bytes() == before


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + b"x" * 4000, b"some text, no database" * 100])
def test_a_file_that_is_damaged(found: Examine, ledger_path: Path, content: bytes) -> None:
    """It mustn't be taken for an empty ledger."""
    ledger_path.touch(mode=0o600)
    ledger_path.write_bytes(content)
    only(found(), "ledger", Verdict.WRONG, "not a database|malformed|can't be used")
    assert ledger_path.read_bytes() == content


def test_a_ledger_named_by_a_secret(environ: Callable[..., None], found: Examine) -> None:
    """The value is not repeated."""
    environ(ROUTEWEILER_LEDGER="lndconnect://host:10009?macaroon=AgEDbG5kAvgBAwoQ")
    findings = found()
    only(findings, "ledger", Verdict.WRONG, "isn't a path")
    assert "AgEDbG5k" not in repr(findings)


def test_a_ledger_on_a_postgres_that_is_down(environ: Callable[..., None], found: Examine) -> None:
    """A fleet's worker is told which database can't be reached, without the password."""
    pytest.importorskip("psycopg")
    environ(ROUTEWEILER_LEDGER="postgresql://worker:hunter2@127.0.0.1:1/l402")
    findings = found(look_s=1.0)
    assert [each.check for each in findings] == ["ledger"]
    assert "hunter2" not in repr(findings)


def _made(path: Path) -> None:
    with closing(Ledger.open(path)) as ledger:
        ledger.freeze("default")
        ledger.thaw("default")


def test_a_clock_that_was_set_back(found: Examine, ledger_path: Path) -> None:
    """Limits of an hour and a day count the payments of the future too."""
    with closing(Ledger.open(ledger_path)) as ledger:
        ledger.open_payment(intent(1), None)
    findings = found(now=lambda: time.time() - 3600)
    assert [each.check for each in findings] == ["clock", "payments"]
    assert "1 hour ahead of this machine's clock" in findings[0].what


def test_a_trace_that_can_not_be_written(environ: Callable[..., None], found: Examine, tmp_path: Path) -> None:
    """Calls are paid without it, and nobody would notice for a month."""
    environ(ROUTEWEILER_TRACE=str(tmp_path / "trace.jsonl"))
    assert found() == []
    (tmp_path / "file").touch()
    environ(ROUTEWEILER_TRACE=str(tmp_path / "file" / "trace.jsonl"))
    only(found(), "trace", Verdict.WARNING, "can't be written")


# Unfinished payments


def _pending(lnd: FakeLnd, path: Path) -> str:
    """Leave a payment unfinished: its order is sent, and its outcome isn't waited for. Return its hash."""
    session = Routeweiler(funding=[lnd.funding()], ledger=path, payment_timeout=1)
    with Paywall(lnd, price_msat=10_000) as wall, session, pytest.raises(PaymentPendingError) as caught:
        session.get(wall.url)
    assert caught.value.payment_hash is not None
    return caught.value.payment_hash


def test_what_is_unfinished_has_the_nodes_word_and_the_next_step(lnd: FakeLnd, found: Examine, ledger_path: Path) -> None:
    """In flight, made, failed: each has another next step."""
    lnd.hang_next()
    payment_hash = _pending(lnd, ledger_path)
    only(found(), "payments", Verdict.WARNING, payment_hash, "10 sat to http://127", "still paying it", "Wait a moment")
    later = time.time() + 3600
    only(found(now=lambda: later), "payments", Verdict.WARNING, "still paying it", f"payments abandon {payment_hash}")
    lnd.release(payment_hash)
    only(found(), "payments", Verdict.WARNING, "the node has paid it", "payments recover to book it")


def test_a_payment_that_failed(lnd: FakeLnd, found: Examine, ledger_path: Path) -> None:
    """Its reservation is kept until somebody asks."""
    lnd.hang_next()
    payment_hash = _pending(lnd, ledger_path)
    lnd.release(payment_hash, fail="NO_ROUTE")
    only(found(), "payments", Verdict.WARNING, "failed to pay it", "payments recover to end it")


def test_an_orphan_is_told_from_a_payment_that_takes_long(
    lnd: FakeLnd, found: Examine, ledger_path: Path, environ: Callable[..., None]
) -> None:
    """lnd killed at a bad moment may leave a payment in flight for ever: no call of ours ends it."""
    lnd.orphan_next()
    payment_hash = _pending(lnd, ledger_path)
    environ(LND_MACAROON_PATH=lnd.bake_macaroon(*rights.PAYING, rights.BALANCE, "/lnrpc.Lightning/ListChannels"))
    later = time.time() + 3600
    only(found(now=lambda: later), "payments", Verdict.WARNING, "has no HTLC out for it", f"payments abandon {payment_hash}")


def test_many_unfinished_payments_are_counted(found: Examine, ledger_path: Path) -> None:
    """A screen full of them would hide the rest."""
    with closing(Ledger.open(ledger_path)) as ledger:
        for n in range(8):
            ledger.open_payment(intent(n), None)
    findings = found()
    assert [each.check for each in findings] == ["payments"] * 6
    assert findings[-1].what == "3 more are unfinished"


# The budget


@pytest.mark.parametrize(
    ("budget", "check", "verdict", "text"),
    [
        ("none", "budget", Verdict.WARNING, "no limit"),
        ("plenty", "budget", Verdict.WRONG, "'plenty' isn't a limit"),
        ("5 xyz/call", "budget", Verdict.WRONG, r"Correct ROUTEWEILER_BUDGET\.$"),
        ("0 sat/day", "budget", Verdict.WRONG, r"used up \(today\): 0 of 0 sat today left"),
        ("10 usd/day", "rate", Verdict.WRONG, "price of bitcoin in usd"),
    ],
)
def test_budgets_that_are_missing_unread_or_used_up(
    environ: Callable[..., None], found: Examine, budget: str, check: str, verdict: Verdict, text: str
) -> None:
    """Each would be met at the first page that costs something."""
    environ(ROUTEWEILER_BUDGET=budget)
    only(found(), check, verdict, text)


@pytest.mark.parametrize("name", ["ROUTEWEILER_ENVELOPE", "ROUTEWEILER_AGENT"])
def test_a_variable_that_is_no_id_is_named(environ: Callable[..., None], found: Examine, name: str) -> None:
    """All commands refuse it; a doctor that calls the set-up ready leaves the user looking elsewhere."""
    environ(**{name: "x" * 513})
    only(found(), "budget", Verdict.WRONG, f"^{name}: it isn't an id", rf"Correct {name}\.$")


def test_what_is_spent_and_reserved_counts(environ: Callable[..., None], found: Examine, ledger_path: Path) -> None:
    """The headroom that is told must be what a purchase would find."""
    environ(ROUTEWEILER_BUDGET="20 sat/day")
    envelope = BudgetEnvelope("default", per_day_minor_units=20)
    with closing(Ledger.open(ledger_path)) as ledger:
        ledger.open_payment(intent(1, amount_msat=12_000, fee_cap_msat=1_000), draw(envelope))
    (said,) = (each.what for each in examine() if each.check == "budget")
    assert said == "envelope 'default': 7 of 20 sat today left; 13 sat reserved"


def test_a_frozen_budget_is_not_payable(found: Examine, ledger_path: Path) -> None:
    """Else one line says that nothing is paid, and the next how much can be."""
    with closing(Ledger.open(ledger_path)) as ledger:
        ledger.open_payment(intent(1), draw(BudgetEnvelope("default", per_day_minor_units=20_000)))
        ledger.freeze("default")
    said = {each.check: each for each in examine()}
    assert (said["budget"].verdict, "is frozen" in said["budget"].what) == (Verdict.WRONG, True)
    assert "payable" not in said
    with closing(Ledger.open(ledger_path)) as ledger:
        ledger.thaw("default")
    assert "payable" in {each.check for each in examine()}


def test_an_envelope_that_the_ledger_does_not_have(lnd: FakeLnd, found: Examine, ledger_path: Path) -> None:
    """A program that names its envelope by id may have misspelt it."""
    _made(ledger_path)
    findings = found(funding=[lnd.funding()], ledger=ledger_path, budget_envelope="weather")
    assert [each.check for each in findings] == ["rights", "budget"]
    assert "holds no envelope 'weather'" in findings[1].what
    assert len(found(funding=[lnd.funding()], ledger=ledger_path, budget_envelope="default")) == 1


# Wallets of a program's own


class Node:
    """A wallet by the old Protocol."""

    key: Any = KEY

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        raise AssertionError("doctor pays nothing")

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        return PaymentStatus("unknown_hash")

    def get_node_pubkey(self) -> str:
        return self.key  # type: ignore[no-any-return]


class Wallet:
    """A wallet by the new Protocol, with a balance."""

    ready: Exception | None = None
    network, local_msat, word, synced = "bitcoin-regtest", 5_000_000, WalletReply.NOT_FOUND, True

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        raise AssertionError("doctor pays nothing")

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        return WalletAnswer(reply=self.word)

    def check_ready(self, timeout_s: float) -> None:
        if self.ready is not None:
            raise self.ready

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        return NodeInfo(
            identity_pubkey=KEY,
            alias="",
            version="",
            network=self.network,
            synced_to_chain=self.synced,
            block_height=1,
            num_active_channels=1,
        )

    def channel_balance(self) -> ChannelBalance:
        return ChannelBalance(local_msat=self.local_msat, remote_msat=0)


def _source(client: Any, **arguments: Any) -> list[Any]:
    return [Funding.lightning_lnd(client=client, network="bitcoin-regtest", **arguments)]


@pytest.mark.parametrize("client", [Node(), Wallet()])
def test_a_wallet_of_ones_own_is_asked_what_a_purchase_asks_it(client: Any, found: Examine, ledger_path: Path) -> None:
    """Not only lnd is a wallet."""
    assert found(funding=_source(client), ledger=ledger_path) == []


def _with(kind: type, **attributes: Any) -> Any:
    made = kind()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("client", "check", "verdict", "text"),
    [
        (
            _with(Wallet, ready=FundingError("The relay is down.", advice="Start it.")),
            "node",
            Verdict.WRONG,
            "relay is down Start it",
        ),
        (_with(Wallet, ready=KeyError("x")), "node", Verdict.WRONG, "raised KeyError"),
        (_with(Wallet, network="bitcoin"), "network", Verdict.WRONG, "on bitcoin, but bitcoin-regtest is wanted"),
        (_with(Wallet, synced=False), "sync", Verdict.WARNING, "isn't synced"),
        (_with(Wallet, local_msat=0), "balance", Verdict.WRONG, "no outbound balance"),
        (_with(Wallet, word=WalletReply.UNKNOWN), "rights", Verdict.WARNING, "asked about a payment that was never made"),
        (_with(Wallet, track=None), "node", Verdict.WRONG, "has no track"),
        (_with(Node, key="not a key"), "node", Verdict.WRONG, "public key, which must be"),
        (_with(Node, track_payment=lambda payment_hash: None), "rights", Verdict.WARNING, "never made"),
        (SimpleNamespace(), "node", Verdict.WRONG, "has no pay_invoice"),
    ],
)
def test_what_is_wrong_with_a_wallet_of_ones_own_is_named(
    client: Any, found: Examine, ledger_path: Path, check: str, verdict: Verdict, text: str
) -> None:
    """Such a wallet is new code: its faults should show before it is trusted with money."""
    only(found(funding=_source(client), ledger=ledger_path), check, verdict, text)


def test_a_ledger_that_a_program_has_open_stays_open(found: Examine, ledger_path: Path) -> None:
    """A look from within a program mustn't end what its sessions are doing."""
    _made(ledger_path)
    with closing(Ledger.open(ledger_path)) as ledger:
        ledger.thaw("default")
        connection = ledger._store._writer.connection  # type: ignore[attr-defined]
        assert connection is not None
        assert found(funding=_source(Wallet()), ledger=ledger) == []
        assert ledger._store._writer.connection is connection  # type: ignore[attr-defined]


def test_a_wallet_of_ones_own_that_hangs(found: Examine, ledger_path: Path) -> None:
    """Foreign code has no bound of its own."""
    ends = threading.Event()
    client = _with(Wallet, check_ready=lambda timeout_s: ends.wait(60) and None)
    started = time.monotonic()
    findings = found(funding=_source(client), ledger=ledger_path, look_s=0.5)
    ends.set()
    assert time.monotonic() - started < 10
    only(findings, "node", Verdict.WRONG, "can't be asked: no answer within 1 s")


def test_a_session_without_a_wallet(found: Examine, ledger_path: Path) -> None:
    """It returns every 402 as it is."""
    only(found(funding=[], ledger=ledger_path), "wallet", Verdict.WRONG, "no wallet")


def test_another_key_than_the_pinned_one(lnd: FakeLnd, payer: str, found: Examine, ledger_path: Path) -> None:
    """The address leads to another node than the one that was meant."""
    client = lnd.client(macaroon_path=payer)
    only(found(funding=_source(client, node_pubkey=KEY), ledger=ledger_path), "key", Verdict.WRONG, "but node_pubkey is 02020202")


def test_a_macaroon_that_was_given_inline_and_lost(lnd: FakeLnd, found: Examine, ledger_path: Path) -> None:
    """A pickled client drops it, and says so only when it must pay."""
    client = LndClient(lnd.host, lnd.port, macaroon_hex=Path(lnd.macaroon_path).read_bytes().hex(), tls_cert_path=lnd.tls_cert_path)
    client._macaroon_hex = None
    only(found(funding=_source(client), ledger=ledger_path), "macaroon", Verdict.WRONG, "such a macaroon isn't pickled")


def test_the_envelopes_around_it_are_looked_at(environ: Callable[..., None], found: Examine, ledger_path: Path) -> None:
    """Else an agent's budget would look as if all could be spent, or its user would raise a limit that isn't the one in the way."""
    with closing(Ledger.open(ledger_path)) as ledger:
        for id, limit, parent in (("all", 30_000, None), ("team", 40_000, "all"), ("scout", None, "team")):
            made = BudgetEnvelope(id, per_day_minor_units=limit, parent=parent)
            ledger.set_limits(id, lambda _, made=made: made)  # type: ignore[misc]
        environ(ROUTEWEILER_ENVELOPE="scout")
        (said,) = [each for each in examine() if each.check == "budget"]
        assert said.what == (
            "envelope 'scout': no limit of its own; within 'team': 40000 of 40000 sat today left; "
            "within 'all': 30000 of 30000 sat today left"
        )
        (payable,) = [each for each in examine() if each.check == "payable"]
        assert "30000 sat" in payable.what
        ledger.set_limits("all", lambda known: BudgetEnvelope("all", per_day_minor_units=0))
        (said,) = [each for each in found() if each.check == "budget"]
        assert said.what == "envelope 'scout' lies in 'all', which is used up (today): 0 of 0 sat today left"
        assert said.advice.startswith("Raise the limit by routeweiler-sync budget set all --per-day N")
        funding = [Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")]
        brought = BudgetEnvelope("writer", per_call_minor_units=9, parent="nowhere")
        looked = found(funding=funding, ledger=ledger, budget_envelope=brought)
        assert "'nowhere'" in next(each.what for each in looked if each.check == "budget")
