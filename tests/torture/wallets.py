"""The real wallets that torture buys with: how a client reaches each over a relay, its own list of payments, and how it is killed.

lnd of the world pays for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from routeweiler_sync.funding.wallet import NodePayment
from tests.regtest.world import World
from tests.support.wallet_contract import Recipe


class TorturedWallet(Protocol):
    """A wallet over the world's payer."""

    #: How its client is made.
    recipe: Recipe
    #: Whether it is a program of its own beside the payer's lnd, which can be killed by itself.
    own_process: bool
    #: Whether it refuses a second order of an invoice, so that a lost one is sent again.
    sends_again: bool

    @property
    def port(self) -> int:
        """Where the client connects to, on 127.0.0.1."""
        ...

    def through(self, port: int) -> Recipe:
        """Its client, connecting to another port of 127.0.0.1."""
        ...

    def own_list(self) -> list[NodePayment]:
        """All payments in the wallet's own list, read without the library under test."""
        ...

    def kill(self) -> None:
        """End the wallet's own process as by kill -9."""
        ...

    def start(self) -> None:
        """Start it again, and return once it answers. Does nothing to one that runs."""
        ...

    def freeze(self) -> None:
        """SIGSTOP."""
        ...

    def thaw(self) -> None:
        """SIGCONT."""
        ...


class _Lnd:
    """The payer's lnd itself, over one of its two ports."""

    own_process, sends_again = False, True

    def __init__(self, world: World) -> None:
        self._payer = world.payer

    def own_list(self) -> list[NodePayment]:
        return [
            NodePayment(
                payment_hash=payment["payment_hash"],
                status=payment["status"],
                amount_msat=int(payment["value_msat"]),
                fee_msat=int(payment["fee_msat"]),
                failure_reason=payment["failure_reason"],
                created_at_ns=int(payment["creation_time_ns"]),
            )
            for payment in self._payer.list_payments()
        ]

    def kill(self) -> None:
        self._payer.kill()

    def start(self) -> None:
        if not self._payer.daemon.running:
            self._payer.start()

    def freeze(self) -> None:
        self._payer.freeze()

    def thaw(self) -> None:
        self._payer.thaw()


class LndOverGrpc(_Lnd):
    """lnd over gRPC."""

    @property
    def port(self) -> int:
        return self._payer.grpc_port

    @property
    def recipe(self) -> Recipe:
        return self.through(self.port)

    def through(self, port: int) -> Recipe:
        return Recipe(
            name="LndClient",
            arguments={
                "grpc_host": "127.0.0.1",
                "grpc_port": port,
                "macaroon_path": str(self._payer.admin_macaroon_path),
                "tls_cert_path": str(self._payer.tls_cert_path),
            },
        )


class LndOverRest(_Lnd):
    """lnd over REST."""

    @property
    def port(self) -> int:
        return self._payer.rest_port

    @property
    def recipe(self) -> Recipe:
        return self.through(self.port)

    def through(self, port: int) -> Recipe:
        return Recipe(
            name="LndRestClient",
            arguments={
                "url": f"https://127.0.0.1:{port}",
                "macaroon_path": str(self._payer.admin_macaroon_path),
                "tls_cert_path": str(self._payer.tls_cert_path),
            },
        )


@contextmanager
def lnd(world: World) -> Iterator[TorturedWallet]:
    """lnd over gRPC."""
    yield LndOverGrpc(world)


@contextmanager
def lnd_rest(world: World) -> Iterator[TorturedWallet]:
    """lnd over REST."""
    yield LndOverRest(world)


#: By the names of ``ROUTEWEILER_WALLET``. Each runs as long as its block.
WALLETS: dict[str, Callable[[World], AbstractContextManager[TorturedWallet]]] = {"lnd": lnd, "lnd-rest": lnd_rest}
