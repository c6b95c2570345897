"""What LNbits says, word for word, and what its client makes of it: one class of tests for the fake and for the real one.

The promises that all wallets share are in `wallet_contract`. A subclass gives the fixture ``lnbits``, a `ContractLnbits`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pytest
import requests

from routeweiler_sync.errors import FundingError, InvoicePaymentError
from routeweiler_sync.funding.lightning import LnbitsClient
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.wallet import derived_identity

from .wallet_contract import AMOUNT_MSAT, PATIENCE_S, ContractWallet, payment_hash_of

#: What a row has in LNbits 1.6.2.
ROW_FIELDS = {
    "checking_id", "payment_hash", "wallet_id", "amount", "fee", "bolt11", "payment_request", "fiat_provider", "status", "memo",
    "expiry", "webhook", "webhook_status", "preimage", "tag", "extension", "time", "created_at", "updated_at", "labels", "extra",
    "external_id",
}  # fmt: skip
#: Above LNbits' own largest payment.
TOO_MUCH_MSAT = 10_000_001_000
POOR_SAT = 100


class ContractLnbits(ContractWallet, Protocol):
    """An LNbits that a test may do things to, with the default fee reserve of 2 sat or 1 %."""

    @property
    def url(self) -> str:
        """Its address, without a relay in between."""
        ...

    @property
    def keys(self) -> tuple[str, str]:
        """Admin key and invoice key of the wallet of `client`."""
        ...

    def poor_wallet(self, amount_sat: int) -> str:
        """The admin key of another wallet, which has so much."""
        ...

    def internal_invoice(self, amount_msat: int) -> str:
        """An invoice of another wallet of the same LNbits."""
        ...

    def make_amountless_invoice(self) -> str:
        """An invoice without an amount."""
        ...

    def node_down(self) -> AbstractContextManager[None]:
        """Inside, orders don't reach the node, then or later."""
        ...


Ask = Callable[..., tuple[int, Any]]


class LnbitsContract:
    """The words of LNbits. Any two tests may run in any order on one LNbits."""

    @pytest.fixture
    def lnbits(self) -> ContractLnbits:
        raise NotImplementedError("a subclass gives the LNbits")

    # Words of the order

    @pytest.mark.parametrize(
        ("what", "status", "detail", "reply"),
        [
            ("paid again", 520, r"Payment already paid\.", WalletReply.SUCCEEDED),
            ("internal paid again", 520, r"Internal invoice already paid\.", WalletReply.SUCCEEDED),
            ("paid from another wallet", 520, r"Payment already paid\.", WalletReply.EXISTS),
            ("no route", 520, r"Payment failed: FAILURE_REASON_NO_ROUTE", WalletReply.FAILED_FOR_GOOD),
            ("no route again", 520, r"Payment is failed node, retrying is not possible\.", WalletReply.FAILED_FOR_GOOD),
            ("expired", 520, r"Payment failed: invoice expired\. Valid until .*", WalletReply.FAILED_FOR_GOOD),
            ("expired again", 201, None, WalletReply.FAILED_FOR_GOOD),
            ("unreadable", 520, r"Bolt11 decoding failed\.", WalletReply.REFUSED),
            ("amountless", 520, r"Amountless invoices not supported\.", WalletReply.REFUSED),
            ("too large", 520, r"Invoice amount 10000001 sats is too high\. Max allowed: 10000000 sats\.", WalletReply.REFUSED),
            ("poor", 520, r"Insufficient balance\.", WalletReply.REFUSED),
            ("no reserve", 520, r"You must reserve at least \(2  sat\) to cover potential routing fees\.", WalletReply.REFUSED),
            ("wrong key", 404, r"Wallet not found\.", WalletReply.REFUSED),
            ("invoice key", 403, r"Invoice \(or Admin\) key required\.", WalletReply.REFUSED),
        ],
    )
    def test_an_order_is_answered_in_these_words(
        self, lnbits: ContractLnbits, what: str, status: int, detail: str | None, reply: WalletReply
    ) -> None:
        """The table is LNbits' own text: a word that changes must be noticed here, not by a user's second payment."""
        bolt11, key = self._scene(lnbits, what)
        told_status, told = self._order(lnbits, bolt11, key)
        assert told_status == status, told
        if detail is None:
            assert told["status"] == "failed"
        else:
            assert re.fullmatch(detail, told["detail"]), told
            assert told.get("status", "failed") == ("success" if detail.startswith("Payment already") else "failed")
        answer = self._send(lnbits, bolt11, key)
        assert answer.reply is reply, answer

    def test_an_order_without_a_key_is_refused(self, lnbits: ContractLnbits) -> None:
        """A proxy may strip the header."""
        assert self._ask(lnbits, "POST", "payments", None, {"out": True, "bolt11": "x"}) == (
            401,
            {"detail": "No Api Key provided."},
        )

    @pytest.mark.slow
    def test_a_payment_in_flight_is_pending_in_each_answer(self, lnbits: ContractLnbits) -> None:
        """Pending isn't failed: the look-up that comes back after half a minute must say so, too."""
        bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        key, path = lnbits.keys[0], f"payments/{payment_hash_of(bolt11).hex()}"
        with lnbits.hold():
            status, row = self._order(lnbits, bolt11, key)
            assert (status, row["status"], row["preimage"]) == (201, "pending", None)
            assert row["fee"] == -2_000  # the reserve
            assert self._order(lnbits, bolt11, key) == (520, {"detail": "Payment is still pending.", "status": "pending"})
            status, told = self._ask(lnbits, "GET", path, key)
            assert (status, told["paid"], told["details"]["status"]) == (200, False, "pending")
            answer = lnbits.client.track(payment_hash_of(bolt11), timeout_s=2, follow=True)
            assert answer.reply is WalletReply.IN_FLIGHT
            # The list answers at once, so short patience isn't ignorance.
            assert lnbits.client.track(payment_hash_of(bolt11), timeout_s=1, follow=False).reply is WalletReply.IN_FLIGHT
        assert lnbits.client.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=True).reply is WalletReply.SUCCEEDED

    @pytest.mark.slow
    def test_an_order_that_never_reached_the_node_is_pending_for_ever_and_says_what_to_do(self, lnbits: ContractLnbits) -> None:
        """Nobody's software ends it: the user must learn that the admin can, and what to do here."""
        bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        with lnbits.node_down():
            status, row = self._order(lnbits, bolt11, lnbits.keys[0])
            assert (status, row["status"]) == (201, "pending")
        for answer in (
            lnbits.client.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=False),
            self._send(lnbits, bolt11, timeout_s=3),
        ):
            assert answer.reply is WalletReply.IN_FLIGHT, answer
            assert "payments abandon" in (answer.reason or "")
        assert [payment.status for payment in lnbits.own_list() if payment.payment_hash == payment_hash_of(bolt11).hex()] == [
            "IN_FLIGHT"
        ]

    # Words of the questions

    def test_rows_have_these_fields(self, lnbits: ContractLnbits) -> None:
        """What the client reads must be there, in the order's answer, the look-up and the list."""
        bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        admin, _ = lnbits.keys
        key = payment_hash_of(bolt11).hex()
        status, row = self._order(lnbits, bolt11, admin)
        assert status == 201
        _, told = self._ask(lnbits, "GET", f"payments/{key}", admin)
        _, page = self._ask(lnbits, "GET", f"payments/paginated?payment_hash={key}&limit=5", admin)
        for each in (row, told["details"], *page["data"]):
            assert set(each) == ROW_FIELDS
            assert (each["amount"], each["fee"], each["status"]) == (-AMOUNT_MSAT, -1_000, "success")
            assert each["payment_hash"] == key
        assert (told["paid"], told["preimage"]) == (True, row["preimage"])
        assert len(page["data"]) == 1

    def test_a_lookup_is_answered_without_a_key_and_the_list_is_not(self, lnbits: ContractLnbits) -> None:
        """So only the list tells a wrong key, and a look-up of a stranger proves nothing but a preimage."""
        bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        key = payment_hash_of(bolt11).hex()
        _, row = self._order(lnbits, bolt11, lnbits.keys[0])
        for wrong in (None, secrets.token_hex(16)):
            assert self._ask(lnbits, "GET", f"payments/{key}", wrong) == (200, {"paid": True, "preimage": row["preimage"]})
            unknown = self._ask(lnbits, "GET", f"payments/{secrets.token_hex(32)}", wrong)
            assert unknown == (404, {"detail": "Payment does not exist."})
        assert self._ask(lnbits, "GET", "payments/paginated", secrets.token_hex(16)) == (404, {"detail": "Wallet not found."})
        assert self._ask(lnbits, "GET", "payments/paginated", None) == (401, {"detail": "No Api Key provided."})
        stranger = LnbitsClient(lnbits.url, secrets.token_hex(16))
        found = stranger.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=False)
        assert (found.reply, found.fee_msat) == (WalletReply.SUCCEEDED, None)
        assert stranger.track(secrets.token_bytes(32), timeout_s=PATIENCE_S, follow=False).reply is WalletReply.UNKNOWN

    def test_only_the_admin_key_is_told_the_wallets_id(self, lnbits: ContractLnbits) -> None:
        """It is how the two keys are told apart before anything is paid."""
        admin, invoice = lnbits.keys
        status, wallet = self._ask(lnbits, "GET", "wallet", admin)
        assert (status, set(wallet)) == (200, {"id", "name", "balance"})
        assert set(self._ask(lnbits, "GET", "wallet", invoice)[1]) == {"name", "balance"}
        info = lnbits.client.get_info()
        assert info.identity_pubkey == derived_identity("lnbits", wallet["id"]) == lnbits.client.get_node_pubkey()
        assert lnbits.client.spendable_msat(timeout_s=PATIENCE_S) == wallet["balance"]
        reader = LnbitsClient(lnbits.url, invoice)
        for ask in (lambda: reader.check_ready(PATIENCE_S), reader.get_info, lambda: reader.spendable_msat(timeout_s=PATIENCE_S)):
            with pytest.raises(FundingError, match="the key is an invoice key, which can read but not pay") as caught:
                ask()
            assert "admin key" in str(caught.value)

    def test_the_fee_reserve_is_told_in_msat(self, lnbits: ContractLnbits) -> None:
        """Read as sat, a budget would be asked for a thousand times too much."""
        for amount_msat, cap_msat in ((AMOUNT_MSAT, 2_000), (1_000_000_000, 10_000_000)):
            bolt11 = lnbits.make_invoice(amount_msat)
            assert self._ask(lnbits, "GET", f"payments/fee-reserve?invoice={bolt11}", None) == (200, {"fee_reserve": cap_msat})
            assert lnbits.client.own_fee_cap_msat(bolt11, timeout_s=PATIENCE_S) == cap_msat
        for bad in ("lnbc", lnbits.make_amountless_invoice()):
            with pytest.raises(FundingError, match="Nothing was spent"):
                lnbits.client.own_fee_cap_msat(bad, timeout_s=PATIENCE_S)

    def test_a_direct_payment_holds_to_its_fee_limit(self, lnbits: ContractLnbits) -> None:
        """LNbits takes no limit: where its own is higher, nothing may be ordered."""
        bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        with pytest.raises(FundingError, match="may charge up to 2000 msat"):
            lnbits.client.pay_invoice(bolt11, max_fee_msat=1_999)
        assert lnbits.client.track_payment(payment_hash_of(bolt11)).state == "unknown_hash"
        preimage = lnbits.client.pay_invoice(bolt11, max_fee_msat=2_000)
        assert lnbits.client.pay_invoice(bolt11, max_fee_msat=2_000) == preimage
        assert lnbits.client.track_payment(payment_hash_of(bolt11)).preimage == preimage
        with pytest.raises(InvoicePaymentError):
            lnbits.client.pay_invoice(lnbits.make_unpayable_invoice(AMOUNT_MSAT), max_fee_msat=2_000)

    def test_paying_takes_amount_and_fee_off_the_balance(self, lnbits: ContractLnbits) -> None:
        """What is booked is what LNbits took, to the msat."""
        before = lnbits.client.spendable_msat(timeout_s=PATIENCE_S)
        answer = self._send(lnbits, lnbits.make_invoice(AMOUNT_MSAT))
        assert before - lnbits.client.spendable_msat(timeout_s=PATIENCE_S) == answer.amount_msat + (answer.fee_msat or 0)
        inside = self._send(lnbits, lnbits.internal_invoice(AMOUNT_MSAT))
        assert (inside.reply, inside.fee_msat) == (WalletReply.SUCCEEDED, 0)

    def test_the_list_has_failed_payments_too_and_nothing_that_came_in(self, lnbits: ContractLnbits) -> None:
        """The audit looks for each payment of the ledger, and for those that the ledger doesn't know."""
        began_ns = (int(time.time()) - 1) * 10**9
        paid, failed = lnbits.make_invoice(AMOUNT_MSAT), lnbits.make_unpayable_invoice(AMOUNT_MSAT)
        for bolt11 in (paid, failed):
            self._send(lnbits, bolt11)
        listed = {payment.payment_hash: payment for payment in lnbits.client.list_payments()}
        assert (listed[payment_hash_of(paid).hex()].status, listed[payment_hash_of(failed).hex()].status) == ("SUCCEEDED", "FAILED")
        assert listed[payment_hash_of(paid).hex()].created_at_ns >= began_ns
        own = {(each.payment_hash, each.status, each.amount_msat, each.fee_msat) for each in lnbits.own_list()}
        assert {(each.payment_hash, each.status, each.amount_msat, each.fee_msat) for each in listed.values()} == own

    def _scene(self, lnbits: ContractLnbits, what: str) -> tuple[str, str]:
        """What is ordered, and with which key; whatever comes before that has been done."""
        admin, invoice_key = lnbits.keys
        if what == "unreadable":
            return "lightning", admin
        if what == "amountless":
            return lnbits.make_amountless_invoice(), admin
        if what == "too large":
            return lnbits.make_invoice(TOO_MUCH_MSAT), admin
        if what == "poor":
            return lnbits.make_invoice((POOR_SAT + 1) * 1000), lnbits.poor_wallet(POOR_SAT)
        if what == "no reserve":
            return lnbits.make_invoice((POOR_SAT - 1) * 1000), lnbits.poor_wallet(POOR_SAT)
        if what.startswith("no route"):
            bolt11 = lnbits.make_unpayable_invoice(AMOUNT_MSAT)
        elif what.startswith("expired"):
            bolt11 = lnbits.make_expired_invoice(AMOUNT_MSAT)
        elif what.startswith("internal"):
            bolt11 = lnbits.internal_invoice(AMOUNT_MSAT)
        else:
            bolt11 = lnbits.make_invoice(AMOUNT_MSAT)
        if what == "wrong key":
            return bolt11, secrets.token_hex(16)
        if what == "invoice key":
            return bolt11, invoice_key
        if what.endswith("again"):
            self._order(lnbits, bolt11, admin)
        if what == "paid from another wallet":
            assert self._order(lnbits, bolt11, lnbits.poor_wallet(POOR_SAT))[0] == 201
        return bolt11, admin

    def _order(self, lnbits: ContractLnbits, bolt11: str, key: str) -> tuple[int, Any]:
        return self._ask(lnbits, "POST", "payments", key, {"out": True, "bolt11": bolt11})

    def _ask(self, lnbits: ContractLnbits, method: str, path: str, key: str | None, body: object = None) -> tuple[int, Any]:
        headers = {"X-Api-Key": key} if key else {}
        answer = requests.request(method, f"{lnbits.url}/api/v1/{path}", headers=headers, json=body, timeout=PATIENCE_S)
        return answer.status_code, answer.json()

    def _send(self, lnbits: ContractLnbits, bolt11: str, key: str | None = None, *, timeout_s: float = PATIENCE_S) -> WalletAnswer:
        client = lnbits.client if key in (None, lnbits.keys[0]) else LnbitsClient(lnbits.url, str(key))
        payment_hash = payment_hash_of(bolt11) if bolt11.startswith("ln") and bolt11 != "lightning" else secrets.token_bytes(32)
        answer: WalletAnswer = client.send(bolt11, payment_hash=payment_hash, max_fee_msat=50_000, timeout_s=timeout_s)
        return answer
