"""The wallets and payments of the fake LNbits, and the rules by which an order is refused, started and ended.

The rules and their order are those of LNbits 1.6.2 (core/services/payments.py, core/views/payment_api.py, wallets/lndrest.py). The
HTTP server is left to `fake_lnbits`. One class of tests checks the same promises with this fake and with the real LNbits.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import localcontext
from typing import Any, Protocol

import bolt11

from .._core.money import EXACT
from ..funding.replies import WalletAnswer, WalletReply

#: LNbits' own largest payment, in sat (lnbits_max_outgoing_payment_amount_sats).
MAX_SATS = 10_000_000
#: The status of LNbits' payment errors.
PAYMENT_ERROR = 520
#: What LNbits' adapter for lnd takes for a failure, of all that lnd may say beside FAILED.
_FAILURES = ("invoice not for current active network", "invoice expired")
_LIST_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP answer: a status and what is sent as JSON, or as text if it is ``bytes``."""

    status: int
    body: Any = field(repr=False)


def error(status: int, detail: str) -> Reply:
    """Return an error as LNbits writes it."""
    return Reply(status=status, body={"detail": detail})


def payment_error(detail: str, state: str = "failed") -> Reply:
    """Return an error of a payment as LNbits writes it, with the ``state`` that it says the payment is in."""
    return Reply(status=PAYMENT_ERROR, body={"detail": detail, "status": state})


@dataclass(eq=False, slots=True, kw_only=True)
class Wallet:
    """A wallet of the LNbits. ``given_msat`` is what it was given, beside what its rows say."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    admin_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    invoice_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    name: str = "wallet"
    given_msat: int = 0


@dataclass(eq=False, slots=True, kw_only=True)
class Row:
    """A payment that left a wallet (amount below 0) or came in. The fee is 0 or below. Amounts are in msat.

    ``sends`` counts the orders for it.
    """

    checking_id: str
    payment_hash: str
    wallet: Wallet
    amount: int
    fee: int
    bolt11: str
    memo: str
    expiry: int
    status: str = "pending"
    preimage: str | None = None
    sends: int = 1
    failure: str | None = None
    #: It never reached the node, and never will.
    is_lost: bool = False
    created_at: float = field(default_factory=lambda: datetime.now(timezone.utc).timestamp())

    def as_json(self) -> dict[str, Any]:
        """Return the row as LNbits shows it."""
        time = datetime.fromtimestamp(self.created_at, timezone.utc).isoformat()
        return {
            "checking_id": self.checking_id,
            "payment_hash": self.payment_hash,
            "wallet_id": self.wallet.id,
            "amount": self.amount,
            "fee": self.fee,
            "bolt11": self.bolt11,
            "payment_request": self.bolt11,
            "fiat_provider": None,
            "status": self.status,
            "memo": self.memo,
            "expiry": datetime.fromtimestamp(self.expiry, timezone.utc).isoformat(),
            "webhook": None,
            "webhook_status": None,
            "preimage": self.preimage,
            "tag": None,
            "extension": None,
            "time": time,
            "created_at": time,
            "updated_at": time,
            "labels": [],
            "extra": {},
            "external_id": None,
        }


class Node(Protocol):
    """The node of the LNbits."""

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer: ...

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer: ...


@dataclass(kw_only=True)
class Settings:
    """What the admin of an LNbits sets, and how long its node is waited for.

    ``reserve_min_msat`` and ``reserve_percent``: the largest routing fee. ``service_fee_percent`` goes to the admin. An order is
    answered "pending" after ``pay_wait_s``. ``lookup_s``: so long a look-up of a pending payment takes (with
    lnd: 30 s).
    """

    reserve_min_msat: int = 2_000
    reserve_percent: float = 1.0
    service_fee_percent: float = 0.0
    pay_wait_s: float = 5.0
    lookup_s: float = 1.0

    def service_fee_msat(self, amount_msat: int) -> int:
        return int(abs(amount_msat) / 100 * self.service_fee_percent)

    def reserve_msat(self, amount_msat: int) -> int:
        """Return the largest routing fee, without the service fee."""
        return max(self.reserve_min_msat, int(abs(amount_msat) * self.reserve_percent / 100.0))

    def reserve_total_msat(self, amount_msat: int) -> int:
        return self.reserve_msat(amount_msat) + self.service_fee_msat(amount_msat)


class LnbitsBook:
    """The database of the fake LNbits: what survives a restart. ``changed`` must be held to read or change rows."""

    def __init__(self, node: Node, settings: Settings) -> None:
        self.changed = threading.Condition()
        self.node, self.settings = node, settings
        self.wallets: list[Wallet] = []
        self.rows: list[Row] = []
        #: Grows with each start of the server: what began before it has died with the old process.
        self.life = 0

    # What is asked

    def wallet_of(self, key: str | None) -> Wallet | None:
        return next((wallet for wallet in self.wallets if key and key in (wallet.admin_key, wallet.invoice_key)), None)

    def balance_msat(self, wallet: Wallet) -> int:
        """Return the balance: reserves of pending payments are taken off it."""
        rows = [row for row in self.rows if row.wallet is wallet]
        counted = [row for row in rows if row.status == "success" or (row.status == "pending" and row.amount < 0)]
        return wallet.given_msat + sum(row.amount - abs(row.fee) for row in counted)

    def row(self, payment_hash: str, wallet: Wallet | None = None) -> Row | None:
        """Return the row of a hash, an outgoing one rather than an incoming one (get_standalone_payment)."""
        rows = [row for row in self.rows if row.payment_hash == payment_hash and wallet in (None, row.wallet)]
        return min(rows, key=lambda row: row.amount, default=None)

    def listed(self, wallet: Wallet, query: dict[str, str]) -> list[Row]:
        """Return the rows of a wallet that a query asks for, oldest first."""
        rows = [row for row in self.rows if row.wallet is wallet]
        if "payment_hash" in query:
            rows = [row for row in rows if row.payment_hash == query["payment_hash"]]
        if "amount[lt]" in query:
            rows = [row for row in rows if row.amount < int(query["amount[lt]"])]
        first, most = int(query.get("offset", 0)), min(int(query.get("limit", 10)) or _LIST_MAX, _LIST_MAX)
        return rows[first : first + most]

    def looked_up(self, payment_hash: str, wallet: Wallet | None) -> Reply:
        """Return the answer to a look-up, after asking the node about a pending payment (api_payment)."""
        with self.changed:
            row = self.row(payment_hash, wallet)
        if row is None:
            return error(404, "Payment does not exist.")
        if row.status == "pending" and row.amount < 0 and not row.is_lost:
            self._update(row, self.node.track(bytes.fromhex(payment_hash), timeout_s=self.settings.lookup_s, follow=True))
        with self.changed:
            told: dict[str, Any] = {"paid": row.status == "success"}
            if row.status == "success":
                told["preimage"] = row.preimage
            elif row.status == "failed":
                told["status"] = "failed"
            return Reply(status=200, body=told | ({"details": row.as_json()} if wallet is not None else {}))

    # What is ordered

    def new_invoice(self, wallet: Wallet, text: str, preimage: bytes) -> Row:
        """Write down an invoice of the wallet, which LNbits' node has issued."""
        invoice = _decoded(text)
        row = Row(
            checking_id=invoice.payment_hash,
            payment_hash=invoice.payment_hash,
            wallet=wallet,
            amount=int(invoice.amount_msat),
            fee=0,
            bolt11=text,
            memo=invoice.description or "",
            expiry=invoice.date + (invoice.expiry or 3600),
            preimage=preimage.hex(),
        )
        with self.changed:
            self.rows.append(row)
            self.changed.notify_all()
        return row

    def pay(self, wallet: Wallet, text: str, *, lost: bool, fail: str | None) -> Reply:
        """Return the answer to an order (pay_invoice). ``lost``: it never reaches the node. ``fail``: why it fails there.

        The checks come in LNbits' order.
        """
        try:
            invoice = _decoded(text)
        except Exception:  # noqa: BLE001 - the library raises many kinds, and LNbits catches them all
            return payment_error("Bolt11 decoding failed.")
        amount_msat = int(invoice.amount_msat or 0)
        if amount_msat <= 0:
            return payment_error("Amountless invoices not supported.")
        if amount_msat > MAX_SATS * 1000:
            text = f"Invoice amount {amount_msat // 1000} sats is too high. Max allowed: {MAX_SATS} sats."
            return payment_error(text)
        with self.changed:
            incoming = next((row for row in self.rows if row.payment_hash == invoice.payment_hash and row.amount > 0), None)
            if incoming is not None and incoming.status == "success":
                self._count(invoice.payment_hash)
                return payment_error("Internal invoice already paid.")
            if incoming is not None and incoming.status == "pending":
                return self._pay_internal(wallet, incoming)
            reserve_msat = self.settings.reserve_total_msat(amount_msat)
            balance_msat = self.balance_msat(wallet)
            if balance_msat < amount_msat:
                return payment_error("Insufficient balance.")
            if balance_msat < amount_msat + reserve_msat:
                text = f"You must reserve at least ({round(reserve_msat / 1000)}  sat) to cover potential routing fees."
                return payment_error(text)
            old = self.row(invoice.payment_hash)
            if old is not None:
                self._count(invoice.payment_hash)
            else:
                row = Row(
                    checking_id=invoice.payment_hash,
                    payment_hash=invoice.payment_hash,
                    wallet=wallet,
                    amount=-amount_msat,
                    fee=-reserve_msat,
                    bolt11=text,
                    memo=invoice.description or "",
                    expiry=invoice.date + (invoice.expiry or 3600),
                    is_lost=lost,
                )
                self.rows.append(row)
                self.changed.notify_all()
        if old is not None:
            return self._again(old)
        if fail is not None:
            return self._failed(row, f"FAILURE_REASON_{fail}")
        return self._pay_external(row)

    def _pay_internal(self, wallet: Wallet, incoming: Row) -> Reply:
        # No routing, and LNbits' own default is to ask no service fee either (lnbits_service_fee_ignore_internal).
        if self.balance_msat(wallet) < incoming.amount:
            return payment_error("Insufficient balance.")
        if self.row(incoming.payment_hash) is not incoming:
            return error(400, "Payment already exists")
        row = Row(
            checking_id=f"internal_{incoming.payment_hash}",
            payment_hash=incoming.payment_hash,
            wallet=wallet,
            amount=-incoming.amount,
            fee=0,
            bolt11=incoming.bolt11,
            memo=incoming.memo,
            expiry=incoming.expiry,
            status="success",
            preimage=incoming.preimage,
        )
        incoming.status = "success"
        self.rows.append(row)
        self.changed.notify_all()
        return Reply(status=201, body=row.as_json())

    def _pay_external(self, row: Row) -> Reply:
        life, settings = self.life, self.settings
        answers: list[WalletAnswer] = []

        def order() -> None:
            key, most_msat = bytes.fromhex(row.payment_hash), settings.reserve_msat(row.amount)
            answer = self.node.send(row.bolt11, payment_hash=key, max_fee_msat=most_msat, timeout_s=30)
            with self.changed:
                answers.append(answer)
                self.changed.notify_all()

        if not row.is_lost:
            threading.Thread(target=order, name="fake-lnbits-order", daemon=True).start()
            with self.changed:
                self.changed.wait_for(lambda: answers or self.life != life, settings.pay_wait_s)
        if self.life != life:
            raise KilledError
        # As in LNbits, an answer that comes later is lost: look-ups find it again.
        if answers:
            self._update(row, answers[0])
        with self.changed:
            if row.status == "failed":
                return payment_error(f"Payment failed: {row.failure}")
            return Reply(status=201, body=row.as_json())

    def _again(self, old: Row) -> Reply:
        """Return the answer to an order whose hash has a row (_verify_external_payment)."""
        if old.status == "pending":
            return payment_error("Payment is still pending.", "pending")
        if old.status == "success":
            return payment_error("Payment already paid.", "success")
        told = self.node.track(bytes.fromhex(old.payment_hash), timeout_s=self.settings.lookup_s, follow=True)
        if told.reply in (WalletReply.FAILED, WalletReply.FAILED_FOR_GOOD):
            return payment_error("Payment is failed node, retrying is not possible.")
        if told.reply is WalletReply.SUCCEEDED:
            self._update(old, told)
            return payment_error("Failed payment was already paid on the fundingsource.", "success")
        return Reply(status=201, body=old.as_json())

    def _failed(self, row: Row, failure: str) -> Reply:
        with self.changed:
            row.status, row.failure = "failed", failure
            self.changed.notify_all()
        return payment_error(f"Payment failed: {failure}")

    def _update(self, row: Row, answer: WalletAnswer) -> None:
        """Change the row by an answer of the node. What proves nothing leaves it pending."""
        with self.changed:
            if answer.reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE) and answer.preimage is not None:
                row.status, row.preimage = "success", answer.preimage.hex()
                row.fee = -(abs(answer.fee_msat or 0) + self.settings.service_fee_msat(row.amount))
            elif answer.reply is WalletReply.FAILED:
                row.status, row.failure = "failed", f"FAILURE_REASON_{answer.reason}"
            elif any(text in (answer.reason or "") for text in _FAILURES):
                row.status, row.failure = "failed", (answer.reason or "").partition(": ")[2]
            self.changed.notify_all()

    def _count(self, payment_hash: str) -> None:
        for row in self.rows:
            if row.payment_hash == payment_hash and row.amount < 0:
                row.sends += 1
        self.changed.notify_all()


class KilledError(Exception):
    """The process that worked on this has died."""


def _decoded(text: str) -> Any:
    with localcontext(EXACT):  # the program's decimal context is for its own numbers
        return bolt11.decode(text)
