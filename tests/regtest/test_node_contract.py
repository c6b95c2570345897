"""The real lnd keeps what `NodeContract` promises; so does the fake, and what is tested with the fake holds for the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from routeweiler_sync.funding.lightning import LndClient

from ..node_contract import ContractNode, NodeContract
from .processes import wait_for
from .world import World


class RealNode:
    """The payer of the world as a `ContractNode`."""

    abilities = frozenset({"hold", "self_payment", "bake"})
    fee_msat = 1_000  # lnd's default base fee; its 1 ppm comes to nothing for so little

    def __init__(self, world: World) -> None:
        self._world = world
        self.client = self.client_with()

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        return self._world.payee.add_invoice(amount_msat, expiry_s=expiry_s).payment_request

    def make_expired_invoice(self, amount_msat: int) -> str:
        bolt11 = self.make_invoice(amount_msat, expiry_s=1)
        self.expire(bolt11)
        return bolt11

    def make_own_invoice(self, amount_msat: int) -> str:
        return self._world.payer.add_invoice(amount_msat).payment_request

    def expire(self, bolt11: str) -> None:
        invoice = self._world.payer.lncli("decodepayreq", bolt11)
        end = int(invoice["timestamp"]) + int(invoice["expiry"])
        # One machine, one clock: lnd's is ours.
        wait_for("the invoice has expired", lambda: time.time() > end, watched=[self._world.payer.daemon])

    def client_with(self, **kwargs: Any) -> LndClient:
        payer = self._world.payer
        arguments: dict[str, Any] = {
            "grpc_host": payer.grpc_host,
            "grpc_port": payer.grpc_port,
            "macaroon_path": payer.admin_macaroon_path,
            "tls_cert_path": payer.tls_cert_path,
        }
        return LndClient(**arguments | kwargs)

    def client_permitted(self, *paths: str) -> LndClient:
        return self.client_with(macaroon_path=self._world.payer.bake(*(f"uri:{path}" for path in paths)))

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        self._world.router.freeze()
        try:
            yield self._world.router.thaw
        finally:
            self._world.router.thaw()


class TestRealLnd(NodeContract):
    @pytest.fixture
    def node(self, world: World) -> Iterator[ContractNode]:
        node = RealNode(world)
        with closing(node.client):
            yield node
