"""A wallet of Nostr Wallet Connect is examined: what is wrong with it or its relays is named, and nothing is ordered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from routeweiler_sync.doctor.findings import Finding, Verdict
from routeweiler_sync.doctor.wallets import Examination
from routeweiler_sync.testing import FakeLnd, FakeNwc, fake_nwc

LOOK_S = 2.0
METHODS = ("pay_invoice", "lookup_invoice", "get_info", "get_balance")


@pytest.fixture
def fake(lnd: FakeLnd) -> Iterator[FakeNwc]:
    with FakeNwc(lnd) as fake:
        yield fake


def found(fake: FakeNwc, **options: Any) -> list[Finding]:
    examination = Examination([fake.funding(**options)], from_environment=False, look_s=LOOK_S)
    findings = list(examination.findings())
    assert not [request for request in fake.requests if request.method == "pay_invoice"]
    assert all(each.advice for each in findings if each.verdict is not Verdict.OK)
    assert fake.secret not in repr(findings)
    return findings


def one(findings: list[Finding], check: str) -> Finding:
    [finding] = [each for each in findings if each.check == check]
    return finding


def test_a_wallet_that_is_well_is_said_to_be(fake: FakeNwc) -> None:
    """A warning about nothing teaches users to ignore warnings."""
    findings = found(fake)
    assert [each.check for each in findings] == ["relay", "node", "network", "rights", "lookup", "balance", "fees"]
    assert {each.verdict for each in findings} == {Verdict.OK}
    assert one(findings, "balance").what == "1000000000 sat in the wallet; the connection's budget may be smaller"


def test_a_relay_that_is_down_is_told_from_a_wallet_that_is(lnd: FakeLnd) -> None:
    """The user can start the wallet, and can't start the relay."""
    with FakeNwc(lnd, relays=2) as fake:
        fake.relays[0].stop()
        relays = [each for each in found(fake) if each.check == "relay"]
        assert [each.verdict for each in relays] == [Verdict.WARNING, Verdict.OK]
        fake.relays[1].stop()
        assert [(each.check, each.verdict) for each in found(fake)] == [("relay", Verdict.WRONG)] * 2
        fake.start()
        fake.stop_service()
        down = found(fake)
        assert [each.check for each in down] == ["relay", "relay", "node"]
        assert one(down, "node").verdict is Verdict.WRONG


def test_a_connection_that_lacks_a_right_is_wrong(lnd: FakeLnd) -> None:
    """Without look-ups, what became of a payment could never be found out."""
    with FakeNwc(lnd, methods=("pay_invoice", "get_info")) as fake:
        finding = one(found(fake), "node")
        assert finding.verdict is Verdict.WRONG
        assert "lookup_invoice" in finding.what


def test_a_connection_that_may_do_more_is_warned_of(lnd: FakeLnd) -> None:
    """Whoever reads the URI can do what the connection may."""
    with FakeNwc(lnd, methods=(*METHODS, "pay_keysend", "make_invoice", "list_transactions", "notifications")) as fake:
        finding = one(found(fake), "rights")
        assert finding.verdict is Verdict.WARNING
        assert "make_invoice, pay_keysend" in finding.what
    with FakeNwc(lnd, methods=(*METHODS, "list_transactions", "get_budget", "notifications")) as fake:
        finding = one(found(fake), "rights")
        assert finding.verdict is Verdict.OK, "what does no harm is no fault"
        assert finding.what.endswith("and more than paying needs: get_budget")
        assert "permits no more" in (finding.advice or "")


def test_a_balance_that_is_hidden_or_gone(lnd: FakeLnd) -> None:
    """An empty wallet is the commonest fault of all; a hidden balance is none."""
    with FakeNwc(lnd, methods=METHODS[:3]) as fake:
        assert one(found(fake), "balance").verdict is Verdict.WARNING
    with FakeNwc(lnd) as fake:
        lnd._book.balance_msat = 0
        assert one(found(fake), "balance").verdict is Verdict.WRONG


def test_another_identity_or_network_is_wrong(fake: FakeNwc) -> None:
    """A row can be asked about at its own wallet alone."""
    source = fake.funding()
    source.node_pubkey = "00" + "ab" * 32
    examination = Examination([source], from_environment=False, look_s=LOOK_S)
    assert one(list(examination.findings()), "key").verdict is Verdict.WRONG
    assert one(found(fake, network="bitcoin"), "network").verdict is Verdict.WRONG


def test_a_missing_library_is_named(fake: FakeNwc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, and the command that installs it."""
    source = fake.funding()
    monkeypatch.setitem(sys.modules, "websockets.client", None)
    [finding] = Examination([source], from_environment=False, look_s=LOOK_S).findings()
    assert "pip install 'routeweiler_sync[nwc]'" in f"{finding.what} {finding.advice}"


def test_a_connection_that_ended_is_looked_for_in_the_wallet(fake: FakeNwc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection expires months after it was made. The user then looks at relays and networks, where nothing is wrong."""

    def expired(*_: object) -> None:
        raise fake_nwc._WalletError("EXPIRED", "This app has expired")

    monkeypatch.setattr(fake, "_get_info", expired)
    told = one(found(fake), "node")
    assert "EXPIRED: This app has expired" in told.what
    assert "hasn't expired" in str(told.advice)
    monkeypatch.setattr(fake, "client_key", "00" * 32)  # removed: the service no longer listens to it
    assert "still has this connection" in str(one(found(fake), "node").advice)


def test_a_network_that_nobody_tells_is_that_of_each_invoice(fake: FakeNwc) -> None:
    """A list of all networks is no answer to "which network is it?"."""
    fake.network = None
    networks = ("bitcoin", "bitcoin-regtest")
    sources = [fake.funding(client=client, network=each) for client in [fake.client()] for each in networks]
    findings = list(Examination(sources, from_environment=True, look_s=LOOK_S).findings())
    what = "not told by the wallet; taken to be that of each invoice; ROUTEWEILER_NETWORK names one"
    assert one(findings, "network").what == what
    assert one(found(fake), "network").what == "not told by the wallet; taken to be bitcoin-regtest"
