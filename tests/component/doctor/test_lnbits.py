"""A wallet of LNbits is examined: what is wrong with server, key, balance or fees is named, and nothing is ordered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from routeweiler_sync.doctor.findings import Finding, Verdict
from routeweiler_sync.doctor.wallets import Examination
from routeweiler_sync.testing import FakeLnbits, FakeLnd, Paywall

LOOK_S = 5.0


@pytest.fixture
def fake(lnd: FakeLnd) -> Iterator[FakeLnbits]:
    with FakeLnbits(lnd) as fake:
        yield fake


def found(fake: FakeLnbits, **options: Any) -> dict[str, Finding]:
    examination = Examination([fake.funding(**options)], from_environment=False, look_s=LOOK_S)
    findings = {each.check: each for each in examination.findings()}
    assert fake.calls["pay"] == 0
    assert all(each.advice for each in findings.values() if each.verdict is not Verdict.OK)
    return findings


def test_a_wallet_that_is_well_is_said_to_be(fake: FakeLnbits) -> None:
    """A warning about nothing teaches users to ignore warnings."""
    findings = found(fake)
    assert list(findings) == ["node", "key", "network", "lookup", "balance", "fees"]
    assert {each.verdict for each in findings.values()} == {Verdict.OK}
    assert findings["balance"].what == "1000000000 sat in the wallet"
    assert "up to 2000 msat" in findings["fees"].what
    assert fake.admin_key not in repr(findings)


@pytest.mark.parametrize(
    ("key", "told"), [("invoice_key", "invoice key, which can read but not pay"), ("unknown", "knows no wallet with this key")]
)
def test_a_key_that_cannot_pay_is_named(fake: FakeLnbits, key: str, told: str) -> None:
    """Both keys stand beside each other, and look alike."""
    given = "ab" * 16 if key == "unknown" else fake.invoice_key
    findings = found(fake, client=fake.client(admin_key=given))
    assert list(findings) == ["node", "key"]
    assert findings["key"].verdict is Verdict.WRONG
    assert told in findings["key"].what
    assert "admin key" in str(findings["key"].advice)
    assert given not in repr(findings)


def test_an_empty_wallet_is_wrong(fake: FakeLnbits) -> None:
    """It is the commonest state of a new wallet."""
    fake.balance_msat = 0
    assert found(fake)["balance"].verdict is Verdict.WRONG


def test_a_fee_reserve_that_refuses_small_payments_is_warned_of(fake: FakeLnbits) -> None:
    """Else each purchase is refused, for a number that only LNbits' admin sees."""
    fake.settings.reserve_min_msat = 10_001
    fees = found(fake)["fees"]
    assert fees.verdict is Verdict.WARNING
    assert "up to 10001 msat" in fees.what
    assert "LNBITS_RESERVE_FEE_MIN" in str(fees.advice)


def test_a_server_that_is_down_or_another_is_named(fake: FakeLnbits, lnd: FakeLnd) -> None:
    """A typing error in the address mustn't look like a fault of the wallet."""
    with Paywall(lnd) as shop:
        assert "not as LNbits does" in found(fake, client=fake.client(url=shop.base_url))["node"].what
    fake.stop()
    findings = found(fake)
    assert (list(findings), findings["node"].verdict) == (["node"], Verdict.WRONG)
    assert "nothing listens there" in findings["node"].what


def test_another_wallet_than_the_pinned_one_is_wrong(fake: FakeLnbits) -> None:
    """Rows of the ledger belong to the pinned one."""
    findings = found(fake, client=fake.client(), network="bitcoin-regtest")
    assert findings["key"].verdict is Verdict.OK
    source = fake.funding()
    source.node_pubkey = "00" + "ab" * 32
    examination = Examination([source], from_environment=False, look_s=LOOK_S)
    assert [each.verdict for each in examination.findings()] == [Verdict.OK, Verdict.WRONG]
