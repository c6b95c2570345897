"""The real wallets over the world's payer, as `ContractWallet`s that can also be killed, frozen and cut off.

Each pays through the payer's lnd. A wallet that is a program of its own beside lnd is started by its own function in `WALLETS`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.testing._lnd_book import sign_invoice
from tests.support.tcp_relay import Lost, Wire
from tests.support.wallet_contract import ContractWallet, Recipe, Stranger, closing

from .lnbits_server import LnbitsServer, lnbits_of
from .nwc_server import NwcServer, nwc_of
from .processes import wait_for
from .world import World

#: More than the payer's channel holds, and less than lnd's largest invoice.
BEYOND_BALANCE_MSAT = 9_000_000_000
READY_S = 30.0


class RealWallet(ContractWallet, Protocol):
    """A real wallet that can be reached over a relay, and whose process can be frozen."""

    #: Whether it is a program of its own beside the payer's lnd, which can be killed by itself.
    own_process: bool

    @property
    def port(self) -> int:
        """Where the client connects to, on 127.0.0.1."""
        ...

    def through(self, port: int) -> Recipe:
        """Its client, connecting to another port of 127.0.0.1."""
        ...

    def freeze(self) -> None:
        """SIGSTOP."""
        ...

    def thaw(self) -> None:
        """SIGCONT. Does nothing to one that isn't frozen."""
        ...


class OverWorld:
    """What all real wallets have from the world behind them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        return self.world.payee.add_invoice(amount_msat, expiry_s=expiry_s).payment_request

    def make_expired_invoice(self, amount_msat: int) -> str:
        bolt11 = self.make_invoice(amount_msat, expiry_s=1)
        invoice = self.world.payer.lncli("decodepayreq", bolt11)
        end = int(invoice["timestamp"]) + int(invoice["expiry"])
        # One machine, one clock: the wallet's is ours.
        wait_for("the invoice has expired", lambda: time.time() > end, watched=[self.world.payer.daemon])
        return bolt11

    def make_unpayable_invoice(self, amount_msat: int) -> str:
        return sign_invoice(
            secrets.token_hex(32),
            payment_hash=secrets.token_bytes(32),
            amount_msat=amount_msat,
            memo="",
            expiry_s=3600,
            created_at=int(time.time()),
            currency="bcrt",
        )

    def beyond_balance_msat(self) -> int:
        return BEYOND_BALANCE_MSAT

    def own_list(self) -> list[NodePayment]:
        """That of the payer's lnd. A wallet with a list of its own tells that one."""
        return [
            NodePayment(
                payment_hash=payment["payment_hash"],
                status=payment["status"],
                amount_msat=int(payment["value_msat"]),
                fee_msat=int(payment["fee_msat"]),
                failure_reason=payment["failure_reason"],
                created_at_ns=int(payment["creation_time_ns"]),
            )
            for payment in self.world.payer.list_payments()
        ]

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        self.world.router.freeze()
        try:
            yield self.world.router.thaw
        finally:
            self.world.router.thaw()


class _Lnd(OverWorld):
    """The payer's lnd itself, over one of its two ports. Its client goes over a relay, which can lose what passes."""

    failed, unknown_hash, stranger = WalletReply.FAILED, WalletReply.NOT_FOUND, WalletReply.REFUSED
    sends_again = keeps_fee_limit = True
    own_process = False
    abilities = frozenset({"hold", "lose answer", "lose order", "restart"})
    recipe: Recipe
    client: Any

    def __init__(self, world: World, wire: Wire) -> None:
        super().__init__(world)
        self._wire = wire
        self._macaroon = world.payer.admin_macaroon_path.read_bytes().hex()
        self.secrets = (self._macaroon,)
        self.recipe = self.through(self.port)
        self.client = self.through(wire.port).build()

    @property
    def port(self) -> int:
        raise NotImplementedError

    def through(self, port: int) -> Recipe:
        raise NotImplementedError

    def stranger_client(self) -> Stranger:
        wrong = "0201" + secrets.token_hex(48)
        return Stranger(client=self.recipe.build(macaroon_hex=wrong), secrets=(wrong,))

    @contextmanager
    def lose_answer(self, *, times: int | None = None) -> Iterator[None]:
        self.client.check_ready(READY_S)  # connected: what gRPC says first is as long as an order
        with self._wire.losing("answer", times):
            yield

    @contextmanager
    def lose_order(self, *, times: int | None = None) -> Iterator[None]:
        self.client.check_ready(READY_S)
        with self._wire.losing("order", times):
            yield

    def stop(self) -> None:
        self.world.payer.kill()

    def start(self) -> None:
        if not self.world.payer.daemon.running:
            self.world.payer.start(wait_for_channels=not self.world.router.daemon.frozen)

    def freeze(self) -> None:
        self.world.payer.freeze()

    def thaw(self) -> None:
        if self.world.payer.daemon.frozen:
            self.world.payer.thaw()


class LndOverGrpc(_Lnd):
    """lnd over gRPC."""

    @property
    def port(self) -> int:
        return self.world.payer.grpc_port

    def through(self, port: int) -> Recipe:
        return Recipe(
            name="LndClient",
            arguments={
                "grpc_host": "127.0.0.1",
                "grpc_port": port,
                "macaroon_hex": self._macaroon,
                "tls_cert_path": str(self.world.payer.tls_cert_path),
            },
        )


class LndOverRest(_Lnd):
    """lnd over REST."""

    @property
    def port(self) -> int:
        return self.world.payer.rest_port

    def through(self, port: int) -> Recipe:
        return Recipe(
            name="LndRestClient",
            arguments={
                "url": f"https://127.0.0.1:{port}",
                "macaroon_hex": self._macaroon,
                "tls_cert_path": str(self.world.payer.tls_cert_path),
            },
        )


@contextmanager
def lnd(world: World) -> Iterator[RealWallet]:
    """lnd over gRPC."""
    with Wire(world.payer.grpc_port) as wire:
        wallet = LndOverGrpc(world, wire)
        with closing(wallet.client):
            yield wallet


@contextmanager
def lnd_rest(world: World) -> Iterator[RealWallet]:
    """lnd over REST."""
    with Wire(world.payer.rest_port) as wire:
        wallet = LndOverRest(world, wire)
        with closing(wallet.client):
            yield wallet


class _OwnProcess(OverWorld):
    """A wallet that is a process of its own in front of the payer's lnd."""

    own_process = True
    abilities = frozenset({"hold", "lose answer", "lose order", "restart"})
    server: Any

    def losing(self, what: Lost, times: int | None) -> AbstractContextManager[None]:
        """Inside, what passes between the client and the wallet is lost so often; None: each time."""
        raise NotImplementedError

    def lose_answer(self, *, times: int | None = None) -> AbstractContextManager[None]:
        return self.losing("answer", times)

    def lose_order(self, *, times: int | None = None) -> AbstractContextManager[None]:
        return self.losing("order", times)

    def stop(self) -> None:
        self.server.daemon.kill()

    def start(self) -> None:
        if not self.server.daemon.running:
            self.server.start()

    def freeze(self) -> None:
        self.server.daemon.freeze()

    def thaw(self) -> None:
        self.server.daemon.thaw()


class Lnbits(_OwnProcess):
    """A wallet of an LNbits whose node is the payer's lnd. Its client goes over a relay, which can lose what passes."""

    failed, unknown_hash, stranger = WalletReply.FAILED_FOR_GOOD, WalletReply.NOT_FOUND, WalletReply.REFUSED
    sends_again, keeps_fee_limit = True, False

    def __init__(self, world: World, server: LnbitsServer, wire: Wire) -> None:
        super().__init__(world)
        self.server, self._wire = server, wire
        self.secrets = (server.keys.admin,)
        self.recipe = self.through(server.port)
        self.client: Any = self.through(wire.port).build()

    @property
    def port(self) -> int:
        return self.server.port

    def through(self, port: int) -> Recipe:
        return Recipe(name="LnbitsClient", arguments={"url": f"http://127.0.0.1:{port}", "admin_key": self.server.keys.admin})

    def stranger_client(self) -> Stranger:
        wrong = secrets.token_hex(16)
        return Stranger(client=self.recipe.build(admin_key=wrong), secrets=(wrong,))

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def keys(self) -> tuple[str, str]:
        return self.server.keys.admin, self.server.keys.invoice

    def poor_wallet(self, amount_sat: int) -> str:
        keys = self.server.new_wallet()
        invoice = self.server.new_invoice(keys, amount_sat)
        self.server.ask("POST", "payments", self.server.keys.admin, {"out": True, "bolt11": invoice["bolt11"]})
        return keys.admin

    def internal_invoice(self, amount_msat: int) -> str:
        assert amount_msat % 1000 == 0
        return str(self.server.new_invoice(self.server.new_wallet(), amount_msat // 1000)["bolt11"])

    def make_amountless_invoice(self) -> str:
        return self.world.payee.add_invoice(0).payment_request

    @contextmanager
    def node_down(self) -> Iterator[None]:
        self.world.payer.kill()
        try:
            yield
        finally:
            self.world.payer.start()

    def own_list(self) -> list[NodePayment]:
        return [
            NodePayment(
                payment_hash=row["payment_hash"],
                status={"success": "SUCCEEDED", "failed": "FAILED", "pending": "IN_FLIGHT"}[row["status"]],
                amount_msat=-row["amount"],
                fee_msat=-row["fee"] if row["status"] == "success" else 0,
                failure_reason=None,
                created_at_ns=0,
            )
            for row in self.server.payments(self.server.keys)
        ]

    def losing(self, what: Lost, times: int | None) -> AbstractContextManager[None]:
        return self._wire.losing(what, times)


@contextmanager
def lnbits(world: World) -> Iterator[RealWallet]:
    """LNbits, which runs on with the world."""
    server = lnbits_of(world)
    with Wire(server.port) as wire:
        wallet = Lnbits(world, server, wire)
        with closing(wallet.client):
            yield wallet


class Nwc(_OwnProcess):
    """An NWC wallet of Alby's service SDK, which pays through the payer's lnd. The relay loses what is to be lost."""

    failed = unknown_hash = WalletReply.FAILED_SO_FAR
    stranger = WalletReply.REFUSED  # it doesn't answer strangers, so no order is sent
    sends_again = keeps_fee_limit = False

    def __init__(self, world: World, server: NwcServer) -> None:
        super().__init__(world)
        self.server = server
        self.secrets = (server.secret, server.uri)
        self.recipe = self.through(server.relay.port)
        self.client: Any = self.recipe.build()

    @property
    def port(self) -> int:
        return self.server.relay.port

    def through(self, port: int) -> Recipe:
        return Recipe(name="NwcClient", arguments={"uri": self.server.uri_over(port)})

    def stranger_client(self) -> Stranger:
        wrong = secrets.token_hex(32)
        uri = self.server.uri.replace(self.server.secret, wrong)
        return Stranger(client=self.recipe.build(uri=uri), secrets=(wrong, uri))

    def losing(self, what: Lost, times: int | None) -> AbstractContextManager[None]:
        return self.server.losing(what, times)


@contextmanager
def nwc(world: World) -> Iterator[RealWallet]:
    """An NWC wallet, which runs on with the world."""
    wallet = Nwc(world, nwc_of(world))
    with closing(wallet.client):
        yield wallet


#: By the names of ``ROUTEWEILER_WALLET``. Each runs as long as its block.
WALLETS: dict[str, Callable[[World], AbstractContextManager[RealWallet]]] = {
    "lnd": lnd,
    "lnd-rest": lnd_rest,
    "lnbits": lnbits,
    "nwc": nwc,
}
