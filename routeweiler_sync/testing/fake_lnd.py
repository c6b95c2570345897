"""`FakeLnd`: an lnd to test against - a real gRPC server with TLS and macaroon, and faults on demand - without Bitcoin.

Plays two nodes in one: the payer, whose database follows lnd's rules, and a payee that issues the invoices. Those rules are in
`_lnd_book`, the calls in `_lnd_service`; here are the server's life and the names that tests use.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import secrets
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import grpc

from ..funding import Funding
from ..funding.lightning import LightningFundingSource
from ..funding.lnd.client import LndClient
from ._lnd_book import Book, FakeInvoice, FakeOrder, FakePayment
from ._lnd_service import Faults, Service

__all__ = ["FakeInvoice", "FakeLnd", "FakeOrder", "FakePayment"]

#: Each stream that is followed takes a thread.
_THREADS_MAX = 200
_STOP_S_MAX = 10.0
_BALANCE_MSAT = 10**12
_ROOT_KEY_GONE = "cannot retrieve macaroon: cannot get macaroon: root key with id 0 doesn't exist"

DropWhen = Literal["before_init", "after_init", "in_flight", "after_paying"]


class FakeLnd:
    """A fake lnd on 127.0.0.1, running inside ``with``.

        with FakeLnd() as lnd:
            invoice = lnd.invoice(10_000)
            preimage = lnd.client().pay_invoice(invoice.bolt11, max_fee_msat=1_000)
            assert lnd.settled(invoice.payment_hash)

    Faults: those named ``…_next`` hold for the next order that comes as far as they bite, or the next ``times``, or with
    ``times=None`` until `clear_faults`; they combine. ``fee_msat`` is what routing costs (an order that allows less FAILs with
    NO_ROUTE), ``clock_offset_s`` is how far the node's clock is ahead. ``cert_names`` are the host names and addresses in its
    certificate.
    """

    def __init__(self, *, cert_names: Sequence[str] = ("localhost", "127.0.0.1")) -> None:
        self.host, self.port = "127.0.0.1", 0
        self._book = Book(node_key=secrets.token_hex(32), payee_key=secrets.token_hex(32), balance_msat=_BALANCE_MSAT)
        self._faults = Faults()
        self._key_pem, self._cert_pem = _certificate(cert_names)
        self._macaroons: dict[str, frozenset[str] | str | None] = {}
        self._calls: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="fake-lnd-")
        self.tls_cert_path = self._write("tls.cert", self._cert_pem)
        self.macaroon_path = self.bake_macaroon()
        self._service = self._new_service()
        self._server: grpc.Server | None = None

    # Life

    def __enter__(self) -> FakeLnd:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Listen; after a stop on the same port, with the same database, certificate and macaroons."""
        if self._server is not None:
            return
        service = self._new_service()
        server = grpc.server(futures.ThreadPoolExecutor(_THREADS_MAX), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(service.handlers())
        credentials = grpc.ssl_server_credentials([(self._key_pem, self._cert_pem)])
        self.port = server.add_secure_port(f"{self.host}:{self.port}", credentials)
        server.start()
        self._service, self._server = service, server

    def stop(self) -> None:
        """Go down at once: streams break, orders still held are lost, payments in flight stay in flight."""
        server, self._server = self._server, None
        if server is not None:
            self._service.stop()
            server.stop(None).wait(_STOP_S_MAX)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    def set_state(self, state: str) -> None:
        """Be in one of lnd's wallet states, e.g. ``LOCKED``, ``UNLOCKED`` (starting), ``SERVER_ACTIVE``. Survives no restart."""
        with self._book.changed:
            self._service.state = state

    def lock(self) -> None:
        """Lock the wallet: every call but GetState is refused."""
        self.set_state("LOCKED")

    def unlock(self) -> None:
        """Be ready again."""
        self.set_state("SERVER_ACTIVE")

    # Where it is

    @property
    def node_pubkey(self) -> str:
        """Identity of the paying node, 66 hex digits."""
        return self._book.node_pubkey

    @property
    def payee_pubkey(self) -> str:
        """Identity of the node that issues the invoices."""
        return self._book.payee_pubkey

    @property
    def lndconnect_uri(self) -> str:
        """The node's ``lndconnect://`` URI: holds the macaroon."""
        der = ssl.PEM_cert_to_DER_cert(self._cert_pem.decode())
        cert, macaroon = (
            base64.urlsafe_b64encode(data).decode().rstrip("=") for data in (der, Path(self.macaroon_path).read_bytes())
        )
        return f"lndconnect://{self.host}:{self.port}?cert={cert}&macaroon={macaroon}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this node, for a child process."""
        return {
            "LND_GRPC_HOST": f"{self.host}:{self.port}",
            "LND_TLS_CERT_PATH": self.tls_cert_path,
            "LND_MACAROON_PATH": self.macaroon_path,
        }

    def bake_macaroon(self, *paths: str) -> str:
        """Make a macaroon that permits these method paths alone (none: all), and return its file, of mode 0600."""
        return self._bake(frozenset(paths) or None)

    def bake_refused_macaroon(self, text: str = _ROOT_KEY_GONE) -> str:
        """Make a macaroon that is refused with ``text``: as one whose root key was deleted, that has expired, or is bound to a
        place. Return its file.
        """
        return self._bake(text)

    def client(self, **kwargs: Any) -> LndClient:
        """A client of this node; keyword arguments replace those of `LndClient`."""
        arguments: dict[str, Any] = {"grpc_host": self.host, "grpc_port": self.port}
        if "macaroon_hex" not in kwargs:
            arguments["macaroon_path"] = self.macaroon_path
        if "tls_cert_pem" not in kwargs:
            arguments["tls_cert_path"] = self.tls_cert_path
        return LndClient(**arguments | kwargs)

    def funding(self, **kwargs: Any) -> LightningFundingSource:
        """A funding source over `client`; keyword arguments replace those of `Funding.lightning_lnd`."""
        arguments: dict[str, Any] = {"network": "bitcoin-regtest"}
        if "client" not in kwargs:
            arguments["client"] = self.client()
        return Funding.lightning_lnd(**arguments | kwargs)

    # Money

    def invoice(
        self,
        amount_msat: int | None,
        *,
        memo: str = "",
        expiry_s: int = 3600,
        preimage: bytes | None = None,
        created_at: int | None = None,
        self_payment: bool = False,
        currency: str = "bcrt",
    ) -> FakeInvoice:
        """A new invoice of the payee (of the paying node itself with ``self_payment``), by the node's clock. None: no amount."""
        return self._book.add_invoice(
            amount_msat,
            memo=memo,
            expiry_s=expiry_s,
            preimage=preimage,
            created_at=int(self._now()) if created_at is None else created_at,
            own=self_payment,
            currency=currency,
        )

    @property
    def payments(self) -> list[FakePayment]:
        """The payer's database, oldest first."""
        with self._book.changed:
            return [entry.payment for entry in self._book.entries.values()]

    @property
    def orders(self) -> list[FakeOrder]:
        """Every order that passed state and macaroon, in order of arrival; a held one arrives when it is delivered."""
        with self._book.changed:
            return list(self._book.orders)

    def settled(self, payment_hash: bytes | str) -> bool:
        """Whether the payee has the money for this invoice."""
        key = bytes.fromhex(payment_hash) if isinstance(payment_hash, str) else payment_hash
        with self._book.changed:
            return key in self._book.settled

    @property
    def settled_msat(self) -> int:
        """What the payee has received, in msat; the payer has paid the fees besides (``spent_msat``)."""
        with self._book.changed:
            return self._book.received_msat

    @property
    def spent_msat(self) -> int:
        """What has left the payer's channels, routing fees included, in msat."""
        with self._book.changed:
            return _BALANCE_MSAT - self._book.balance_msat

    @property
    def calls(self) -> Counter[str]:
        """Calls that came in, by method name, e.g. ``SendPaymentV2``."""
        with self._book.changed:
            return Counter(self._calls)

    def wait_for(self, predicate: Callable[[FakeLnd], bool], timeout_s: float = 30.0) -> None:
        """Block until the predicate holds; it is looked at on every change. Raises TimeoutError."""
        with self._book.changed:
            if not self._book.changed.wait_for(lambda: predicate(self), timeout_s):
                raise TimeoutError(f"not so within {timeout_s:g} s; payments: {self.payments}, calls: {dict(self.calls)}")

    # Faults

    @property
    def fee_msat(self) -> int:
        """What routing a payment costs, in msat."""
        return self._faults.fee_msat

    @fee_msat.setter
    def fee_msat(self, value: int) -> None:
        self._faults.fee_msat = value

    @property
    def clock_offset_s(self) -> float:
        """How far the node's clock is ahead of ours, in seconds."""
        return self._faults.clock_offset_s

    @clock_offset_s.setter
    def clock_offset_s(self, value: float) -> None:
        self._faults.clock_offset_s = value

    @property
    def payee_online(self) -> bool:
        """Whether HTLCs reach the payee. False: they come back, and the payment FAILs with NO_ROUTE, or with TIMEOUT once the
        order's ``timeout_seconds`` have passed.
        """
        return self._book.payee_online

    @payee_online.setter
    def payee_online(self, value: bool) -> None:
        self._book.payee_online = value

    def refuse_next(self, text: str, *, code: str = "UNKNOWN", times: int | None = 1) -> None:
        """Answer an order with this gRPC error before anything is looked at."""
        self._plan("refuse", (code, text), times)

    def fail_next(self, reason: str = "NO_ROUTE", *, times: int | None = 1) -> None:
        """Let a payment start and end FAILED with this PaymentFailureReason (without its prefix)."""
        self._plan("fail", reason, times)

    def hang_next(self, *, times: int | None = 1) -> None:
        """Leave a payment IN_FLIGHT until `release`."""
        self._plan("hang", True, times)

    def split_next(self, parts: int = 3, *, times: int | None = 1) -> None:
        """Pay in so many parts (MPP). As each part but the last settles, a message tells the preimage while still IN_FLIGHT."""
        self._plan("split", parts, times)

    def orphan_next(self, *, times: int | None = 1) -> None:
        """Leave a payment IN_FLIGHT for ever: not even `release` ends it."""
        self._plan("orphan", True, times)

    def drop_next(self, when: DropWhen, *, times: int | None = 1) -> None:
        """Break an order's stream (UNAVAILABLE): before the payment is written down, after that (silently, or after an IN_FLIGHT
        message) and before it is paid, or once paid. As with lnd, a payment written down goes on without its stream.
        """
        self._plan("drop", when, times)

    def wrong_preimage_next(self, *, times: int | None = 1) -> None:
        """Let a payment succeed with a preimage that doesn't fit its hash."""
        self._plan("wrong_preimage", True, times)

    def clear_faults(self) -> None:
        """Plan no more faults; what has begun goes on as it began."""
        with self._book.changed:
            self._faults.planned.clear()

    def release(self, payment_hash: bytes | str | None = None, *, fail: str | None = None) -> None:
        """End one hanging payment, or all: paid, or FAILED with the reason ``fail``."""
        with self._book.changed:
            for entry in self._book.entries.values():
                wanted = payment_hash in (None, entry.payment.payment_hash, bytes.fromhex(entry.payment.payment_hash))
                if wanted and entry.attempt.hang and not entry.attempt.orphan:
                    self._book.finish(entry, now=self._now(), fail=fail)

    def hold_orders(self) -> None:
        """Let orders arrive and stay unread until `deliver_orders`, as bytes in a socket do; the database doesn't know them yet."""
        with self._book.changed:
            self._service.holding = True

    def deliver_orders(self) -> None:
        """Read the held orders, whether their clients still live or not, and hold no more."""
        with self._book.changed:
            self._service.holding = False
            self._book.changed.notify_all()

    @property
    def held_orders(self) -> int:
        """How many orders are held."""
        with self._book.changed:
            return self._service.held

    def _plan(self, kind: str, value: Any, times: int | None) -> None:
        with self._book.changed:
            self._faults.plan(kind, value, times)

    def _now(self) -> float:
        return time.time() + self._faults.clock_offset_s

    def _new_service(self) -> Service:
        return Service(self._book, self._faults, self._macaroons, self._calls, self._now)

    def _bake(self, answer: frozenset[str] | str | None) -> str:
        from pymacaroons import MACAROON_V2, Macaroon
        from pymacaroons.serializers import BinarySerializer

        macaroon = Macaroon(location="lnd", identifier=secrets.token_bytes(32), key=secrets.token_bytes(32), version=MACAROON_V2)
        data = BinarySerializer().serialize_raw(macaroon)
        self._macaroons[data.hex()] = answer
        return self._write(f"{len(self._macaroons)}.macaroon", data)

    def _write(self, name: str, data: bytes) -> str:
        path = Path(self._folder.name) / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return os.fspath(path)


def _certificate(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Key and certificate (PEM) as lnd makes its own: P-256, self-signed, CA:TRUE."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def alternative(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    key = ec.generate_private_key(ec.SECP256R1())
    owner = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lnd autogenerated cert"),
            x509.NameAttribute(NameOID.COMMON_NAME, secrets.token_hex(4)),
        ]
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(owner)
        .issuer_name(owner)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM)
