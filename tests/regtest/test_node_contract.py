"""The real lnd keeps what `NodeContract` promises; so does the fake, and what is tested with the fake holds for the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.funding.lnd.rest import LndRestClient
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from tests.support.node_contract import ContractNode, NodeContract
from tests.support.node_replies_contract import NodeWords

from .processes import wait_for
from .world import World


class RealNode:
    """The payer of the world as a `ContractNode`."""

    abilities = frozenset({"hold", "self_payment", "bake"})
    fee_msat = 1_000  # lnd's default base fee; its 1 ppm comes to nothing for so little

    def __init__(self, world: World) -> None:
        self._world = world
        self.address, self.tls_cert_path = world.payer.grpc_address, str(world.payer.tls_cert_path)
        self.macaroon_hex = world.payer.admin_macaroon_path.read_bytes().hex()
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

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)  # nothing to wait for but the clock

    def client_with(self, **kwargs: Any) -> LndNodeClient:
        payer = self._world.payer
        arguments: dict[str, Any] = {
            "grpc_host": payer.grpc_host,
            "grpc_port": payer.grpc_port,
            "macaroon_path": payer.admin_macaroon_path,
            "tls_cert_path": payer.tls_cert_path,
        }
        return LndClient(**arguments | kwargs)

    def client_permitted(self, *paths: str) -> LndNodeClient:
        return self.client_with(macaroon_path=self._world.payer.bake(*(f"uri:{path}" for path in paths)))

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        self._world.router.freeze()
        try:
            yield self._world.router.thaw
        finally:
            self._world.router.thaw()

    @contextmanager
    def away(self) -> Iterator[None]:
        world = self._world
        world.payee.stop()
        wait_for("the router has noticed", lambda: self._idle_channels() == 1, watched=[world.router.daemon])
        try:
            yield
        finally:
            world.mend()

    def forget_failures(self) -> None:
        self._world.reset_mission_control()

    def split(self, bolt11: str, request: pb.SendPaymentRequest) -> bytes:
        # max_parts=3 (field 17) and max_shard_size_msat (field 21), which the library's own messages don't have
        return request.SerializeToString() + _field(17, 3) + _field(21, 20_000_000)

    def refused_macaroon(self, why: str) -> str:
        payer = self._world.payer
        if why == "elsewhere":
            return payer.bake(ip_address="10.9.8.7").read_bytes().hex()
        if why == "expired":
            path = payer.bake(timeout_s=1)
            time.sleep(1.5)  # nothing to wait for but the clock
            return path.read_bytes().hex()
        path = payer.folder / "root-key.macaroon"
        payer.lncli_text("bakemacaroon", "--root_key_id", 7, "--save_to", str(path), "offchain:read", "offchain:write")
        payer.lncli_text("deletemacaroonid", 7)
        return path.read_bytes().hex()

    def _idle_channels(self) -> int:
        return sum(not channel["active"] for channel in self._world.router.lncli("listchannels")["channels"])


class RealRestNode(RealNode):
    """The same over REST."""

    def client_with(self, **kwargs: Any) -> LndNodeClient:
        payer = self._world.payer
        arguments: dict[str, Any] = {
            "url": f"https://{payer.rest_address}",
            "macaroon_path": payer.admin_macaroon_path,
            "tls_cert_path": payer.tls_cert_path,
        }
        return LndRestClient(**arguments | kwargs)


def _field(number: int, value: int) -> bytes:
    """An integer field as protobuf writes it."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


class TestRealLnd(NodeContract, NodeWords):
    @pytest.fixture
    def node(self, world: World) -> Iterator[ContractNode]:
        node = RealNode(world)
        with closing(node.client):
            yield node


class TestRealLndOverRest(NodeContract):
    @pytest.fixture
    def node(self, world: World) -> Iterator[ContractNode]:
        node = RealRestNode(world)
        with closing(node.client):
            yield node
