"""The fake LNbits speaks in the words of the real one, and its faults do what they say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Ledger, PaymentPendingError, PaymentState, Routeweiler
from routeweiler_sync.errors import BudgetExceededError, FundingError, InvoicePaymentError
from routeweiler_sync.funding.lightning import LnbitsClient
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnbits, FakeLnd, Paywall
from routeweiler_sync.testing._lnbits_book import Reply
from tests.support.fake_wallets import Lnbits
from tests.support.lnbits_contract import ContractLnbits, LnbitsContract
from tests.support.wallet_contract import PATIENCE_S, closing, payment_hash_of


class TestFakeLnbits(LnbitsContract):
    @pytest.fixture
    def lnbits(self) -> Iterator[ContractLnbits]:
        with FakeLnd() as lnd, FakeLnbits(lnd) as fake:
            wallet = Lnbits(fake)
            with closing(wallet.client):
                yield wallet


@pytest.fixture
def fake(lnd: FakeLnd) -> Iterator[FakeLnbits]:
    lnd.fee_msat = 1_000
    with FakeLnbits(lnd) as fake:
        yield fake


def reply_of(fake: FakeLnbits, bolt11: str, *, timeout_s: float = PATIENCE_S) -> WalletReply:
    answer = fake.client().send(bolt11, payment_hash=payment_hash_of(bolt11), max_fee_msat=2_000, timeout_s=timeout_s)
    return answer.reply


@pytest.mark.parametrize("spelling", ["as it is", "capitals", "escaped"])
def test_a_key_that_the_server_repeats_is_in_no_text(lnd: FakeLnd, fake: FakeLnbits, spelling: str) -> None:
    """Error texts go into logs. JSON has many spellings of a text, and each is the key again when it is read."""
    key = fake.admin_key.upper() if spelling == "capitals" else fake.admin_key
    written = "".join(f"\\u{ord(each):04x}" for each in key) if spelling == "escaped" else key
    invoice, page = lnd.invoice(5_000), b'{"id": "x", "name": "%b", "balance": 1, "detail": "of %b"}' % (2 * (written.encode(),))
    client, texts = fake.client(), []
    for reply in (Reply(status=status, body=page) for status in (200, 404, 520)):
        fake._answer = lambda *_, reply=reply: reply  # type: ignore[method-assign,misc]
        answer = client.send(invoice.bolt11, payment_hash=payment_hash_of(invoice.bolt11), max_fee_msat=1, timeout_s=PATIENCE_S)
        texts.append(repr(answer))
        for ask in (client.get_info, lambda: client.own_fee_cap_msat(invoice.bolt11, timeout_s=PATIENCE_S)):
            try:
                texts.append(repr(ask()))
            except FundingError as error:
                texts += [str(error), repr(error)]
    assert [text for text in texts if key in text] == []
    assert any("<key>" in text for text in texts)


def test_a_limiter_that_also_refuses_the_look_up_ends_no_payment(
    lnd: FakeLnd, fake: FakeLnbits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy has sent the order twice, and the limiter has passed the first: given up, it would be paid beside another invoice."""
    answer, limited = fake._answer, list[bool]()

    def limit(method: str, *rest: Any) -> Reply | None:
        told = None if limited else answer(method, *rest)
        if method == "POST":
            limited.append(True)
        return Reply(status=429, body={"error": "Rate limit exceeded: 200 per 1 minute"}) if limited else told

    with Paywall(lnd) as paywall, Routeweiler(funding=[fake.funding()], ledger=tmp_path / "l.db", payment_timeout=1) as session:
        monkeypatch.setattr(fake, "_answer", limit)
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url)
        monkeypatch.undo()
        assert session.get(paywall.url).status_code == 200
        assert session.spent_msat == fake.spent_msat == fake.payments[0].amount_msat + fake.payments[0].fee_msat


def test_a_wallet_may_be_called_anything(fake: FakeLnbits) -> None:
    """What no terminal can print would raise a foreign error before the purchase, or after it."""
    fake._wallet.id, fake._wallet.name = "\ud800", "\ud800\x1b[31m"
    info = fake.client().get_info()
    assert (len(info.identity_pubkey), info.alias) == (66, "[31m")


def test_each_fault_is_read_for_what_it_proves(lnd: FakeLnd, fake: FakeLnbits) -> None:
    """A wallet's bad day: refused, failed, ordered twice, a proxy's error page, a broken connection."""
    fake.refuse_next("The time limit of 60 seconds between payments has been reached.")
    assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.REFUSED
    fake.refuse_next("Rate limit exceeded: 200 per 1 minute", status=429)
    assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.REFUSED
    fake.refuse_next("No such words.")
    assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.UNKNOWN
    fake.fail_next()
    assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.FAILED_FOR_GOOD
    assert fake.spent_msat == lnd.spent_msat == 0
    for paid, strike in enumerate((fake.twice_next, fake.gateway_next, lambda: fake.drop_next("after")), 1):
        strike()
        assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.SUCCEEDED
        assert fake.spent_msat == lnd.spent_msat == paid * 6_000
    fake.drop_next("before")
    assert reply_of(fake, lnd.invoice(5_000).bolt11) is WalletReply.UNKNOWN
    fake.twice_next()
    assert reply_of(fake, fake.internal_invoice(5_000).bolt11) is WalletReply.SUCCEEDED
    assert (fake.spent_msat, lnd.spent_msat) == (23_000, 18_000)
    assert repr(fake) == f"<FakeLnbits {fake.url}: 1 FAILED, 4 SUCCEEDED, spent 23 sat>"
    with pytest.raises(ValueError, match="before, after"):
        fake.drop_next("later")  # type: ignore[arg-type]


def test_a_second_order_of_a_proxy_that_finds_the_wallet_empty_is_not_taken_for_a_refusal(lnd: FakeLnd, fake: FakeLnbits) -> None:
    """The first one has reserved the money and is being paid: "Insufficient balance" isn't "nothing was started"."""
    fake.balance_msat, fake.settings.pay_wait_s = 8_000, 0.5
    lnd.hang_next()
    fake.twice_next()
    bolt11 = lnd.invoice(5_000).bolt11
    assert reply_of(fake, bolt11, timeout_s=3) is WalletReply.IN_FLIGHT
    lnd.release()
    assert reply_of(fake, bolt11) is WalletReply.SUCCEEDED
    assert fake.spent_msat == 6_000


def test_the_service_fee_is_in_the_cap_and_in_the_fee(lnd: FakeLnd, fake: FakeLnbits) -> None:
    """It is part of what a payment costs: left out, each purchase would be booked for less than it was."""
    fake.settings.service_fee_percent = 2.0
    invoice = lnd.invoice(1_000_000)
    client = fake.client()
    assert client.own_fee_cap_msat(invoice.bolt11, timeout_s=5) == 10_000 + 20_000
    answer = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=30_000, timeout_s=PATIENCE_S)
    assert answer.fee_msat == 1_000 + 20_000
    assert fake.spent_msat == 1_021_000


def test_a_fee_reserve_above_the_sessions_cap_is_refused_before_paying(lnd: FakeLnd, fake: FakeLnbits, tmp_path: object) -> None:
    """No order can lower what LNbits allows: where it doesn't fit, nothing may be ordered."""
    fake.settings.reserve_min_msat = 50_000
    with Paywall(lnd) as shop, Routeweiler(funding=[fake.funding()], ledger=f"{tmp_path}/ledger.db") as session:
        with pytest.raises(BudgetExceededError, match="The wallet may take up to 50 sat in fees") as caught:
            session.get(shop.url)
        assert caught.value.spent is False
        assert fake.payments == []
        fake.settings.reserve_min_msat = 10_000
        assert session.get(shop.url).status_code == 200
    assert fake.spent_msat == 11_000


def test_a_row_that_is_pending_for_ever_says_what_to_do_and_can_be_abandoned(
    lnd: FakeLnd, fake: FakeLnbits, tmp_path: object
) -> None:
    """Its money stays reserved until somebody acts: the error must say who can, and how."""
    path = f"{tmp_path}/ledger.db"
    fake.pend_next()
    with Paywall(lnd) as shop, Routeweiler(funding=[fake.funding()], ledger=path, payment_timeout=2) as session:
        for _ in range(2):
            with pytest.raises(PaymentPendingError, match=r"only LNbits' admin can end it there.*payments abandon"):
                session.get(shop.url)
        [payment] = fake.payments
        assert payment.status == "IN_FLIGHT"
        ledger = Ledger.open(path)
        ledger.forget(payment.payment_hash, abandon=True)
        assert session.get(shop.url).status_code == 200
        assert [row.state for row in ledger.payments()].count(PaymentState.SETTLED) == 1
        ledger.close()
    assert fake.spent_msat == 11_000


def test_an_invoice_key_is_told_before_anything_is_ordered(lnd: FakeLnd, fake: FakeLnbits, tmp_path: object) -> None:
    """The two keys stand side by side in LNbits, and look alike."""
    source = fake.funding(client=fake.client(admin_key=fake.invoice_key))
    told = r"invoice key, which can read but not pay\. Nothing was spent\. Copy the admin key"
    with (
        Paywall(lnd) as shop,
        Routeweiler(funding=[source], ledger=f"{tmp_path}/ledger.db") as session,
        pytest.raises(FundingError, match=told),
    ):
        session.get(shop.url)
    assert fake.calls["pay"] == 0


def test_a_failed_payment_ends_its_row_and_the_next_call_buys_anew(lnd: FakeLnd, fake: FakeLnbits, tmp_path: object) -> None:
    """A failed hash is final there: kept open, the page could never be bought again."""
    fake.fail_next()
    with Paywall(lnd) as shop, Routeweiler(funding=[fake.funding()], ledger=f"{tmp_path}/ledger.db") as session:
        with pytest.raises(InvoicePaymentError, match="NO_ROUTE"):
            session.get(shop.url)
        assert session.get(shop.url).status_code == 200
    assert fake.spent_msat == 11_000


def test_a_server_that_is_no_lnbits_is_told_as_such(lnd: FakeLnd) -> None:
    """A wrong host or path is the commonest mistake of a new user."""
    with Paywall(lnd) as shop:
        client = LnbitsClient(shop.base_url + "/free", "0123456789abcdef0123456789abcdef")
        for ask in (
            lambda: client.check_ready(5),
            lambda: client.own_fee_cap_msat("lnbc1", timeout_s=5),
            lambda: list(client.list_payments()),
        ):
            with pytest.raises(FundingError, match=r"Nothing was spent\. Check that the URL is an LNbits"):
                ask()
        bolt11 = lnd.invoice(1_000).bolt11
        answer = client.send(bolt11, payment_hash=payment_hash_of(bolt11), max_fee_msat=0, timeout_s=5)
        assert answer.reply is WalletReply.UNKNOWN


def test_nobody_there_is_refused_and_asked_in_vain() -> None:
    """Not a byte has left: the row may end at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = LnbitsClient(f"http://127.0.0.1:{port}", "0123456789abcdef0123456789abcdef")
    assert client.send("lnbc1", payment_hash=b"\x01" * 32, max_fee_msat=0, timeout_s=5).reply is WalletReply.REFUSED
    assert client.track(b"\x01" * 32, timeout_s=5, follow=True).reply is WalletReply.UNKNOWN
    with pytest.raises(FundingError, match=f"LNbits at http://127.0.0.1:{port} can't be asked: nothing listens there"):
        client.check_ready(5)
