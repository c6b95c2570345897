"""`FakeLnbits`: an LNbits to test against, whose node is a `FakeLnd`. It is a real HTTP server, and has faults on demand.

The rules by which payments start and end are left to `_lnbits_book`; this module has the server, and the names that tests use.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

from .._core.money import sats
from ..funding.lightning import Funding, LightningFundingSource
from ..funding.lnbits.client import LnbitsClient
from ._lnbits_book import PAYMENT_ERROR, KilledError, LnbitsBook, Reply, Row, Settings, Wallet, error, payment_error
from ._lnd_book import FakeInvoice, FakePayment
from ._lnd_service import Faults
from .fake_lnd import FakeLnd

__all__ = ["FakeLnbits"]

_POLL_S = 0.02
_STOP_S_MAX = 10.0
#: As `FakeLnd` has it.
_BALANCE_MSAT = 10**12
_BODY_BYTES_MAX = 1 << 20
_STATUS: dict[str, Literal["IN_FLIGHT", "SUCCEEDED", "FAILED"]] = {
    "pending": "IN_FLIGHT",
    "success": "SUCCEEDED",
    "failed": "FAILED",
}
_API = "/api/v1"

DropWhen = Literal["before", "after"]


class FakeLnbits:
    """A fake LNbits on 127.0.0.1 that runs inside ``with``. The node that pays for it is ``lnd``, with all its faults.

        with FakeLnd() as lnd, FakeLnbits(lnd) as lnbits:
            invoice = lnd.invoice(10_000)
            preimage = lnbits.client().pay_invoice(invoice.bolt11, max_fee_msat=2_000)
            assert lnbits.spent_msat == 10_000

    The faults named ``…_next`` strike the next order, or the next ``times`` orders. With ``times=None`` they act until
    `clear_faults`. ``settings`` has what its admin sets: the fee reserve, the service fee, how long the node is waited for.

    Money: none is real. The wallet starts with 10^12 msat.
    """

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd = lnd
        self.settings = Settings()
        self._book = LnbitsBook(lnd.client(), self.settings)
        self._wallet = self.new_wallet(_BALANCE_MSAT)
        self._faults = Faults()
        self._calls: Counter[str] = Counter()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._address = ("127.0.0.1", 0)
        self._clients: WeakSet[LnbitsClient] = WeakSet()

    def __repr__(self) -> str:
        ended = Counter(payment.status for payment in self.payments)
        told = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "no payments"
        return f"<FakeLnbits {self.url}: {told}, spent {sats(self.spent_msat)}>"

    # Start and stop

    def __enter__(self) -> FakeLnbits:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in list(self._clients):
            client.close()
        self.stop()

    def start(self) -> None:
        """Start to listen; after a `stop`, on the same port, with the same wallets and payments."""
        if self._server is not None:
            return
        self._server = _Server(self._address, self)
        self._address = (str(self._server.server_address[0]), int(self._server.server_address[1]))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="fake-lnbits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop as a killed process does: connections break, nothing more is written down. The node goes on paying."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        with self._book.changed:
            self._book.life += 1
            self._book.changed.notify_all()
        server.stop()
        self._thread.join(_STOP_S_MAX)

    def restart(self) -> None:
        """Stop and start the server."""
        self.stop()
        self.start()

    # Address, keys, clients

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._address[1]

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_key(self) -> str:
        """The key of the wallet that pays."""
        return self._wallet.admin_key

    @property
    def invoice_key(self) -> str:
        """The key of the same wallet that only reads."""
        return self._wallet.invoice_key

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this wallet, for a program under test that runs as a process of its own."""
        return {"LNBITS_URL": self.url, "LNBITS_ADMIN_KEY": self.admin_key, "ROUTEWEILER_NETWORK": "bitcoin-regtest"}

    def client(self, **kwargs: Any) -> LnbitsClient:
        """Return a client of the wallet; ``kwargs`` are arguments of `LnbitsClient`, and replace those set here.

        It is closed at the end of the ``with`` block.
        """
        client = LnbitsClient(**{"url": self.url, "admin_key": self.admin_key} | kwargs)
        self._clients.add(client)
        return client

    def funding(self, **kwargs: Any) -> LightningFundingSource:
        """Return a funding source on the wallet; ``kwargs`` are arguments of `Funding.lightning`, and replace those set here."""
        arguments: dict[str, Any] = {"network": "bitcoin-regtest"}
        if "client" not in kwargs:
            arguments["client"] = self.client()
        return Funding.lightning(**arguments | kwargs)

    # Invoices and payments

    def new_wallet(self, balance_msat: int = 0) -> Wallet:
        """Make another wallet of this LNbits, with keys of its own (``admin_key``, ``invoice_key``)."""
        wallet = Wallet(given_msat=balance_msat)
        self._book.wallets.append(wallet)
        return wallet

    def internal_invoice(self, amount_msat: int, **kwargs: Any) -> FakeInvoice:
        """Issue an invoice of another wallet of this LNbits, which LNbits pays by itself, without its node.

        ``kwargs`` are those of `FakeLnd.invoice`.
        """
        invoice = self.lnd.invoice(amount_msat, self_payment=True, **kwargs)
        self._book.new_invoice(self.new_wallet(0), invoice.bolt11, invoice.preimage)
        return invoice

    @property
    def balance_msat(self) -> int:
        """What the wallet has, in msat. May be set."""
        with self._book.changed:
            return self._book.balance_msat(self._wallet)

    @balance_msat.setter
    def balance_msat(self, value: int) -> None:
        with self._book.changed:
            self._wallet.given_msat += value - self._book.balance_msat(self._wallet)

    @property
    def payments(self) -> list[FakePayment]:
        """All payments that left the wallet, oldest first. The fee is what LNbits took: routing and its service fee."""
        with self._book.changed:
            return [_payment(row) for row in self._book.rows if row.wallet is self._wallet and row.amount < 0]

    @property
    def spent_msat(self) -> int:
        """What the wallet has paid, in msat, fees included. What is only reserved doesn't count."""
        return sum(payment.amount_msat + payment.fee_msat for payment in self.payments if payment.status == "SUCCEEDED")

    @property
    def spent_sat(self) -> int:
        """`spent_msat` in sat, rounded up."""
        return -(-self.spent_msat // 1000)

    @property
    def calls(self) -> Counter[str]:
        """How often each request came: ``pay``, ``lookup``, ``list``, ``wallet``, ``fee-reserve``. Refused ones count, too."""
        with self._book.changed:
            return Counter(self._calls)

    def wait_for(self, predicate: Callable[[FakeLnbits], bool], timeout_s: float = 30.0) -> None:
        """Wait until ``predicate`` holds for this LNbits. It is called after every change.

        Raises: TimeoutError after ``timeout_s`` seconds.
        """
        with self._book.changed:
            if not self._book.changed.wait_for(lambda: predicate(self), timeout_s):
                raise TimeoutError(f"Timed out after {timeout_s:g} s. Payments: {self.payments}, calls: {dict(self.calls)}.")

    # Faults

    def refuse_next(self, text: str, *, status: int = 520, times: int | None = 1) -> None:
        """Refuse an order with this error, before any other check. ``status`` 520 is that of LNbits' payment errors."""
        self._plan("refuse", payment_error(text) if status == PAYMENT_ERROR else error(status, text), times)

    def fail_next(self, reason: str = "NO_ROUTE", *, times: int | None = 1) -> None:
        """Let a payment fail for good. ``reason`` is lnd's PaymentFailureReason without its prefix."""
        self._plan("fail", reason, times)

    def pend_next(self, *, times: int | None = 1) -> None:
        """Leave a payment pending for ever: LNbits has written it down, and its node, which was down, never hears of it."""
        self._plan("pend", True, times)

    def twice_next(self, *, times: int | None = 1) -> None:
        """Have a proxy send an order twice. The second answer comes back: "already paid", and for an internal invoice "failed"."""
        self._plan("twice", True, times)

    def gateway_next(self, status: int = 502, *, times: int | None = 1) -> None:
        """Have a proxy answer an order with an error page. The order itself is carried out."""
        self._plan("gateway", status, times)

    def drop_next(self, when: DropWhen, *, times: int | None = 1) -> None:
        """Break the connection of an order: ``before`` LNbits has read it, or ``after`` it was carried out, without the answer.

        Raises: ValueError for any other ``when``.
        """
        if when not in get_args(DropWhen):
            raise ValueError(f"when is one of {', '.join(get_args(DropWhen))}, not {when!r}")
        self._plan("drop", when, times)

    def clear_faults(self) -> None:
        """Cancel all planned faults. A payment that is pending for ever stays so."""
        with self._book.changed:
            self._faults.planned.clear()

    def _plan(self, kind: str, value: Any, times: int | None) -> None:
        with self._book.changed:
            self._faults.plan(kind, value, times)

    def _take(self, kind: str) -> Any:
        with self._book.changed:
            return self._faults.take(kind)

    # The server's answers

    def _answer(self, method: str, target: str, key: str | None, body: bytes) -> Reply | None:
        """Return the answer to a request; None breaks the connection."""
        parts = urlsplit(target)
        path, query = parts.path, dict(parse_qsl(parts.query))
        if (method, path) == ("POST", f"{_API}/payments"):
            self._count("pay")
            return self._ordered(key, body)
        if method != "GET":
            return error(405, "Method Not Allowed")
        if path == f"{_API}/payments/fee-reserve":
            self._count("fee-reserve")
            return self._fee_reserve(query.get("invoice", ""))
        if path in (f"{_API}/wallet", f"{_API}/payments", f"{_API}/payments/paginated"):
            return self._of_wallet(path, query, key)
        prefix, _, payment_hash = path.rpartition("/")
        if prefix == f"{_API}/payments":
            self._count("lookup")
            return self._book.looked_up(payment_hash, self._book.wallet_of(key))
        return error(404, "Not Found")

    def _of_wallet(self, path: str, query: dict[str, str], key: str | None) -> Reply:
        self._count("wallet" if path.endswith("/wallet") else "list")
        if not key:
            return error(401, "No Api Key provided.")
        with self._book.changed:
            wallet = self._book.wallet_of(key)
            if wallet is None:
                return error(404, "Wallet not found.")
            if path.endswith("/wallet"):
                told: dict[str, Any] = {"name": wallet.name, "balance": self._book.balance_msat(wallet)}
                return Reply(status=200, body=told | ({"id": wallet.id} if key == wallet.admin_key else {}))
            rows = self._book.listed(wallet, query)
            if path.endswith("/paginated"):
                return Reply(status=200, body={"data": [row.as_json() for row in rows], "total": len(rows)})
            return Reply(status=200, body=[row.as_json() for row in rows if row.status != "failed"])

    def _fee_reserve(self, text: str) -> Reply:
        import bolt11

        try:
            amount_msat = bolt11.decode(text).amount_msat
        except Exception:  # noqa: BLE001 - the library raises many kinds, and LNbits catches none
            return error(500, "Unexpected error! ID: fake")
        if not amount_msat:
            return error(400, "Invoice has no amount.")
        return Reply(status=200, body={"fee_reserve": self.settings.reserve_total_msat(int(amount_msat))})

    def _ordered(self, key: str | None, body: bytes) -> Reply | None:
        drop = self._take("drop")
        if drop == "before":
            return None
        if not key:
            return error(401, "No Api Key provided.")
        wallet = self._book.wallet_of(key)
        if wallet is None:
            return error(404, "Wallet not found.")
        try:
            order = json.loads(body)
        except ValueError:
            return error(400, "JSON decode error")
        if not isinstance(order, dict) or order.get("out") is not True:
            return error(400, "The fake LNbits makes invoices by internal_invoice() alone.")
        if key != wallet.admin_key:
            return error(403, "Invoice (or Admin) key required.")
        if not order.get("bolt11"):
            return error(400, "Missing BOLT11 invoice")
        if (refusal := self._take("refuse")) is not None:
            return refusal if isinstance(refusal, Reply) else None
        times = 2 if self._take("twice") else 1
        lost, fail = bool(self._take("pend")), self._take("fail")
        for _ in range(times):
            reply = self._book.pay(wallet, str(order["bolt11"]), lost=lost, fail=fail)
        if (status := self._take("gateway")) is not None:
            return Reply(status=status, body=b"<html><body><h1>Bad Gateway</h1></body></html>")
        return None if drop == "after" else reply

    def _count(self, call: str) -> None:
        with self._book.changed:
            self._calls[call] += 1
            self._book.changed.notify_all()


def _payment(row: Row) -> FakePayment:
    status = _STATUS[row.status]
    return FakePayment(
        payment_hash=row.payment_hash,
        amount_msat=-row.amount,
        fee_msat=-row.fee if status == "SUCCEEDED" else 0,
        status=status,
        failure_reason=(row.failure or "").removeprefix("FAILURE_REASON_") or None,
        sends=row.sends,
    )


class _Server(ThreadingHTTPServer):
    """An HTTP server that knows its open connections, so that `stop` can break them."""

    allow_reuse_address = os.name == "posix"  # Windows would let two servers share the port
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], lnbits: FakeLnbits) -> None:
        self.lnbits = lnbits
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        self.guard = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own server_bind would look up this host's name in the DNS

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self.guard:
            connections = list(self.connections)
        for connection in connections:
            _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the client or this server has left."""


class _Handler(BaseHTTPRequestHandler):
    """Serves the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _BODY_BYTES_MAX
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.guard:
            self.server.connections.discard(self.connection)
        super().finish()

    def serve(self) -> None:
        """Answer one request."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), _BODY_BYTES_MAX))
        try:
            reply = self.server.lnbits._answer(self.command, self.path, self.headers.get("X-Api-Key"), body)
        except KilledError:
            reply = None
        if reply is None or self.server.stopping.is_set():
            self.close_connection = True
            _cut(self.connection)
            return
        is_page = isinstance(reply.body, bytes)
        data = reply.body if is_page else json.dumps(reply.body).encode()
        self.send_response(reply.status, "")
        self.send_header("Content-Type", "text/html" if is_page else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the request lines would only fill the output of a test run."""


def _cut(connection: socket.socket) -> None:
    """Close a connection that another thread may be using."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already
