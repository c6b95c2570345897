"""`FakeLnd`: an lnd to test against, without Bitcoin. It is a real gRPC server with TLS and macaroons, and has faults on demand.

It plays two nodes: the paying node, whose database follows lnd's rules, and a payee that issues the invoices. The rules are left to
`_lnd_book`, the gRPC methods to `_lnd_service`, the REST interface to `_lnd_rest`; this module has the servers' start and stop, and
the names that tests use.
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
from typing import Any, Literal, get_args
from weakref import WeakSet

import grpc

from .._core.money import sats
from ..funding import Funding
from ..funding.lightning import LightningFundingSource
from ..funding.lnd.client import LndClient
from ..funding.lnd.rest import LndRestClient
from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from ._lnd_accounts import FakeAccount
from ._lnd_book import Book, FakeInvoice, FakeOrder, FakePayment
from ._lnd_rest import RestServer
from ._lnd_service import Faults, Service

__all__ = ["FakeInvoice", "FakeLnd", "FakeOrder", "FakePayment"]

#: Each open stream occupies a thread.
_THREADS_MAX = 200
_STOP_S_MAX = 10.0
#: How long the end of a ``with`` block waits for calls to end. gRPC's clients write to stderr when a server breaks off.
_GOODBYE_S = 0.5
_BALANCE_MSAT = 10**12
#: Some of the operations that lnd's admin.macaroon permits.
_ADMIN = [("info", ["read"]), ("macaroon", ["generate"]), ("offchain", ["read", "write"]), ("onchain", ["read", "write"])]
_ROOT_KEY_GONE = "cannot retrieve macaroon: cannot get macaroon: root key with id 0 doesn't exist"

DropWhen = Literal["before_init", "after_init", "in_flight", "after_paying"]


class FakeLnd:
    """A fake lnd on 127.0.0.1 that runs inside ``with``.

        with FakeLnd() as lnd:
            invoice = lnd.invoice(10_000)
            preimage = lnd.client().pay_invoice(invoice.bolt11, max_fee_msat=1_000)
            assert lnd.settled(invoice.payment_hash)

    The faults named ``…_next`` strike the next order that gets as far as the step at which they act, or the next ``times`` such
    orders. With ``times=None`` they act until `clear_faults`. Faults of several kinds combine. ``fee_msat`` is what routing costs
    (an order that allows less FAILs with NO_ROUTE), ``clock_offset_s`` is how far the node's clock is ahead. ``cert_names`` are the
    host names and IP addresses in the node's certificate.

    Money: none is real. The paying node starts with 10^12 msat, and payments move them to the payee.
    """

    def __init__(self, *, cert_names: Sequence[str] = ("localhost", "127.0.0.1")) -> None:
        self.host, self.port = "127.0.0.1", 0
        self._book = Book(node_key=secrets.token_hex(32), payee_key=secrets.token_hex(32), balance_msat=_BALANCE_MSAT)
        self._faults = Faults()
        self._key_pem, self._cert_pem = _certificate(cert_names)
        self._macaroons: dict[str, frozenset[str] | str | FakeAccount | None] = {}
        self._calls: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="fake-lnd-")
        self.tls_cert_path = self._write("tls.cert", self._cert_pem)
        self._rest: RestServer | None = None
        self._rest_port = 0
        self.macaroon_path = self.bake_macaroon()
        self._service = self._new_service()
        self._server: grpc.Server | None = None
        self._clients: WeakSet[LndClient | LndRestClient] = WeakSet()

    def __repr__(self) -> str:
        """Show what was paid: a failed ``assert lnd.spent_sat == 10`` prints it."""
        payments = self.payments
        ended = Counter(payment.status for payment in payments)
        told = ", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "no payments"
        return f"<FakeLnd {self.host}:{self.port}: {told}, spent {sats(self.spent_msat)}>"

    # Start and stop

    def __enter__(self) -> FakeLnd:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in list(self._clients):
            client.close()  # else gRPC would write to stderr, at the end of a test or script, that the server has gone
        self._stop(_GOODBYE_S)
        self._folder.cleanup()

    def start(self) -> None:
        """Start to listen. After a `stop`, the port, database, certificate and macaroons are the same as before."""
        if self._server is not None:
            return
        service = self._new_service()
        server = grpc.server(futures.ThreadPoolExecutor(_THREADS_MAX), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(service.handlers())
        credentials = grpc.ssl_server_credentials([(self._key_pem, self._cert_pem)])
        self.port = server.add_secure_port(f"{self.host}:{self.port}", credentials)
        server.start()
        self._service, self._server = service, server
        if self._rest_port:
            self._start_rest()

    def stop(self) -> None:
        """Stop at once: streams break, held orders are lost, payments in flight stay in flight."""
        self._stop(None)

    def _stop(self, grace_s: float | None) -> None:
        """Stop. Connections are ended in good order where that takes less than ``grace_s``, else broken off."""
        server, self._server = self._server, None
        if server is not None:
            self._service.stop()
            if self._rest is not None:
                self._rest.stop()
                self._rest = None
            server.stop(grace_s).wait(_STOP_S_MAX)

    def restart(self) -> None:
        """Stop and start the server. What survives is listed at `start` and `stop`."""
        self.stop()
        self.start()

    def set_state(self, state: str) -> None:
        """Set lnd's wallet state, e.g. ``LOCKED``, ``UNLOCKED`` (starting) or ``SERVER_ACTIVE``. A restart sets it back."""
        with self._book.changed:
            self._service.state = state

    def lock(self) -> None:
        """Lock the wallet: all calls but GetState are refused."""
        self.set_state("LOCKED")

    def unlock(self) -> None:
        """Make the node ready again after `lock` or `set_state`."""
        self.set_state("SERVER_ACTIVE")

    def _start_rest(self) -> None:
        key_path = Path(self._folder.name) / "tls.key"
        if not key_path.exists():
            self._write("tls.key", self._key_pem)
        self._rest = RestServer(
            self._service, host=self.host, port=self._rest_port, cert_path=self.tls_cert_path, key_path=os.fspath(key_path)
        )
        self._rest_port = self._rest.port

    # Address, credentials, clients

    @property
    def node_pubkey(self) -> str:
        """The public key of the paying node, 66 hex digits."""
        return self._book.node_pubkey

    @property
    def payee_pubkey(self) -> str:
        """The public key of the node that issues the invoices, 66 hex digits."""
        return self._book.payee_pubkey

    @property
    def lndconnect_uri(self) -> str:
        """The node's ``lndconnect://`` URI. It contains the macaroon."""
        der = ssl.PEM_cert_to_DER_cert(self._cert_pem.decode())
        cert, macaroon = (
            base64.urlsafe_b64encode(data).decode().rstrip("=") for data in (der, Path(self.macaroon_path).read_bytes())
        )
        return f"lndconnect://{self.host}:{self.port}?cert={cert}&macaroon={macaroon}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this node, for a program under test that runs as a process of its own."""
        return {
            "LND_GRPC_HOST": f"{self.host}:{self.port}",
            "LND_TLS_CERT_PATH": self.tls_cert_path,
            "LND_MACAROON_PATH": self.macaroon_path,
        }

    @property
    def rest_port(self) -> int:
        """The port of lnd's REST interface, which starts when it is first asked for. A `restart` keeps it."""
        if not self._rest_port:
            self._start_rest()
        return self._rest_port

    @property
    def rest_url(self) -> str:
        """The URL of lnd's REST interface. Certificate, macaroons, payments and faults are those of the gRPC server."""
        return f"https://{self.host}:{self.rest_port}"

    @property
    def rest_environ(self) -> dict[str, str]:
        """The environment variables that name this node's REST interface, for a program under test."""
        return {
            "LND_REST_URL": self.rest_url,
            "LND_TLS_CERT_PATH": self.tls_cert_path,
            "LND_MACAROON_PATH": self.macaroon_path,
        }

    def bake_macaroon(self, *paths: str) -> str:
        """Make a macaroon that permits only these gRPC method paths (none given: all). Return the path of its file, mode 0600."""
        return self._bake(frozenset(paths) or None)

    def bake_refused_macaroon(self, text: str = _ROOT_KEY_GONE) -> str:
        """Make a macaroon that is refused with ``text``. Return the path of its file.

        lnd refuses a macaroon whose root key was deleted (the default text), that has expired, or that is bound to another place.
        """
        return self._bake(text)

    def account(self, balance_msat: int) -> FakeAccount:
        """Make an account of litd with this balance. Its macaroon is in the file `FakeAccount.macaroon_path`."""
        account = FakeAccount(balance_msat=balance_msat)
        account.macaroon_path = self._bake(account)
        return account

    def client(self, **kwargs: Any) -> LndClient:
        """Return a client of this node; ``kwargs`` are arguments of `LndClient`, and replace those set here.

        It is closed at the end of the ``with`` block.
        """
        arguments: dict[str, Any] = {"grpc_host": self.host, "grpc_port": self.port}
        if "macaroon_hex" not in kwargs:
            arguments["macaroon_path"] = self.macaroon_path
        if "tls_cert_pem" not in kwargs:
            arguments["tls_cert_path"] = self.tls_cert_path
        client = LndClient(**arguments | kwargs)
        self._clients.add(client)
        return client

    def rest_client(self, **kwargs: Any) -> LndRestClient:
        """Return a client of this node over REST; ``kwargs`` are arguments of `LndRestClient`, and replace those set here.

        It is closed at the end of the ``with`` block.
        """
        arguments: dict[str, Any] = {}
        if "url" not in kwargs:
            arguments["url"] = self.rest_url
        if "macaroon_hex" not in kwargs:
            arguments["macaroon_path"] = self.macaroon_path
        if "tls_cert_pem" not in kwargs:
            arguments["tls_cert_path"] = self.tls_cert_path
        client = LndRestClient(**arguments | kwargs)
        self._clients.add(client)
        return client

    def rest_funding(self, **kwargs: Any) -> LightningFundingSource:
        """Return a funding source on this node over REST. Otherwise as `funding`."""
        return self.funding(**{"client": self.rest_client()} | kwargs if "client" not in kwargs else kwargs)

    def funding(self, **kwargs: Any) -> LightningFundingSource:
        """Return a funding source on this node; ``kwargs`` are arguments of `Funding.lightning_lnd`, and replace those set here."""
        arguments: dict[str, Any] = {"network": "bitcoin-regtest"}
        if "client" not in kwargs:
            arguments["client"] = self.client()
        return Funding.lightning_lnd(**arguments | kwargs)

    # Invoices and payments

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
        """Issue a new invoice of the payee, or of the paying node itself if ``self_payment``. ``amount_msat`` None: no amount.

        ``preimage`` is 32 bytes, random if None. ``created_at`` is unix seconds, by default the node's clock. ``currency`` is the
        BOLT-11 prefix of the network (``bcrt``, ``bc``, ``tb``).
        """
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
        """All payments in the paying node's database, oldest first."""
        with self._book.changed:
            return [entry.payment for entry in self._book.entries.values()]

    @property
    def orders(self) -> list[FakeOrder]:
        """All orders that passed the checks of wallet state and macaroon, in order of arrival.

        A held order arrives when it is delivered.
        """
        with self._book.changed:
            return list(self._book.orders)

    def settled(self, payment_hash: bytes | str) -> bool:
        """Return whether the payee has the money for the invoice with this payment hash (32 bytes, or hex)."""
        key = bytes.fromhex(payment_hash) if isinstance(payment_hash, str) else payment_hash
        with self._book.changed:
            return key in self._book.settled

    @property
    def settled_msat(self) -> int:
        """What the payee has received, in msat, without routing fees (see ``spent_msat``)."""
        with self._book.changed:
            return self._book.received_msat

    @property
    def spent_msat(self) -> int:
        """What the paying node has paid, in msat, routing fees included."""
        with self._book.changed:
            return _BALANCE_MSAT - self._book.balance_msat

    @property
    def spent_sat(self) -> int:
        """`spent_msat` in sat, rounded up."""
        return -(-self.spent_msat // 1000)

    @property
    def calls(self) -> Counter[str]:
        """How often each gRPC method was called, by name (``SendPaymentV2``), refused calls included."""
        with self._book.changed:
            return Counter(self._calls)

    def wait_for(self, predicate: Callable[[FakeLnd], bool], timeout_s: float = 30.0) -> None:
        """Wait until ``predicate`` holds for this node. It is called after every change in the node.

        Raises: TimeoutError after ``timeout_s`` seconds.
        """
        with self._book.changed:
            if not self._book.changed.wait_for(lambda: predicate(self), timeout_s):
                raise TimeoutError(f"Timed out after {timeout_s:g} s. Payments: {self.payments}, calls: {dict(self.calls)}.")

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
        """How far the node's clock is ahead of this machine's, in seconds."""
        return self._faults.clock_offset_s

    @clock_offset_s.setter
    def clock_offset_s(self, value: float) -> None:
        self._faults.clock_offset_s = value

    @property
    def payee_online(self) -> bool:
        """Whether HTLCs reach the payee. If False, they come back, and the payment FAILs with NO_ROUTE, or with TIMEOUT if
        the order's ``timeout_seconds`` have passed.
        """
        return self._book.payee_online

    @payee_online.setter
    def payee_online(self, value: bool) -> None:
        self._book.payee_online = value

    def refuse_next(self, text: str, *, code: str = "UNKNOWN", times: int | None = 1) -> None:
        """Refuse an order with this gRPC error, before any other check of the order."""
        self._plan("refuse", (code, text), times)

    def fail_next(self, reason: str = "NO_ROUTE", *, times: int | None = 1) -> None:
        """Let a payment start and then end FAILED. ``reason`` is a PaymentFailureReason without its prefix."""
        self._plan("fail", reason, times)

    def hang_next(self, *, times: int | None = 1) -> None:
        """Leave a payment IN_FLIGHT until `release`."""
        self._plan("hang", True, times)

    def split_next(self, parts: int = 3, *, times: int | None = 1) -> None:
        """Pay in this many parts (MPP). As each part but the last settles, a message has the preimage and is still IN_FLIGHT."""
        self._plan("split", parts, times)

    def orphan_next(self, *, times: int | None = 1) -> None:
        """Leave a payment IN_FLIGHT for ever: not even `release` ends it."""
        self._plan("orphan", True, times)

    def drop_next(self, when: DropWhen, *, times: int | None = 1) -> None:
        """Break the stream of an order with UNAVAILABLE, at one of four moments. As with lnd, a stored payment goes on without it.

        ``before_init``: before the payment is stored. ``after_init``: once it is stored, without a message and before it is
        paid. ``in_flight``: after the first IN_FLIGHT message, before it is paid. ``after_paying``: once it is paid.

        Raises: ValueError for any other ``when``.
        """
        if when not in get_args(DropWhen):
            raise ValueError(f"when is one of {', '.join(get_args(DropWhen))}, not {when!r}")
        self._plan("drop", when, times)

    def wrong_preimage_next(self, *, times: int | None = 1) -> None:
        """Let a payment succeed with a preimage that doesn't fit the payment hash."""
        self._plan("wrong_preimage", True, times)

    def proxy_page_next(self, status: int = 502, *, reaches_lnd: bool = True, times: int | None = 1) -> None:
        """Answer an order over REST with the HTML page of a proxy before lnd. ``reaches_lnd``: lnd gets the order all the same."""
        self._plan("page", (status, reaches_lnd), times)

    def clear_faults(self) -> None:
        """Cancel all planned faults. A payment that has started keeps those that it started with."""
        with self._book.changed:
            self._faults.planned.clear()

    def release(self, payment_hash: bytes | str | None = None, *, fail: str | None = None) -> None:
        """End the hanging payment of this payment hash (32 bytes, or hex), or all that hang.

        They are paid, or FAILED if ``fail`` is given: a PaymentFailureReason without its prefix.
        """
        with self._book.changed:
            for entry in self._book.entries.values():
                wanted = payment_hash in (None, entry.payment.payment_hash, bytes.fromhex(entry.payment.payment_hash))
                if wanted and entry.attempt.hang and not entry.attempt.orphan:
                    self._book.finish(entry, now=self._now(), fail=fail)

    def hold_orders(self) -> None:
        """Leave orders that arrive from now on unread until `deliver_orders`, like bytes in a socket.

        They aren't in the database yet.
        """
        with self._book.changed:
            self._service.holding = True

    def deliver_orders(self) -> None:
        """Read the held orders, even those whose clients are gone, and hold no more."""
        with self._book.changed:
            self._service.holding = False
            self._book.changed.notify_all()

    @property
    def held_orders(self) -> int:
        """How many orders are held at this moment."""
        with self._book.changed:
            return self._service.held

    def _plan(self, kind: str, value: Any, times: int | None) -> None:
        with self._book.changed:
            self._faults.plan(kind, value, times)

    def _now(self) -> float:
        return time.time() + self._faults.clock_offset_s

    def _new_service(self) -> Service:
        return Service(self._book, self._faults, self._macaroons, self._calls, self._now)

    def _bake(self, answer: frozenset[str] | str | FakeAccount | None) -> str:
        from pymacaroons import MACAROON_V2, Macaroon
        from pymacaroons.serializers import BinarySerializer

        # Version 3 of the bakery's identifiers, as lnd makes them: they hold the operations that the macaroon permits.
        uris = answer if isinstance(answer, frozenset) else ()
        named = [("uri", sorted(uris))] if uris else _ADMIN
        operations = [pb.MacaroonOp(entity=entity, actions=actions) for entity, actions in named]
        identifier = b"\x03" + pb.MacaroonId(ops=operations).SerializeToString()
        macaroon = Macaroon(location="lnd", identifier=identifier, key=secrets.token_bytes(32), version=MACAROON_V2)
        if isinstance(answer, FakeAccount):
            macaroon.add_first_party_caveat(f"lnd-custom account {answer.id}")
        data = BinarySerializer().serialize_raw(macaroon)
        self._macaroons[data.hex()] = answer
        return self._write(f"{len(self._macaroons)}.macaroon", data)

    def _write(self, name: str, data: bytes) -> str:
        path = Path(self._folder.name) / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return os.fspath(path)


def _certificate(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return a private key and a certificate (PEM) such as lnd makes for itself: P-256, self-signed, CA:TRUE."""
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
