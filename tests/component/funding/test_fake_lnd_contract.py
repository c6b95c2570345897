"""FakeLnd keeps every promise that the real lnd keeps to a payer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.funding.lnd.rest import LndRestClient
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.testing import FakeLnd
from tests.support.node_contract import ContractNode, NodeContract
from tests.support.node_replies_contract import NodeWords


class FakeNode:
    """FakeLnd as a `ContractNode`."""

    abilities = frozenset({"hold", "self_payment", "bake"})
    fee_msat = 1_000

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd = lnd
        self.client = self.client_with()
        self.address, self.tls_cert_path = f"{lnd.host}:{lnd.port}", lnd.tls_cert_path
        self.macaroon_hex = Path(lnd.macaroon_path).read_bytes().hex()
        lnd.fee_msat = self.fee_msat

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        return self.lnd.invoice(amount_msat, expiry_s=expiry_s).bolt11

    def make_expired_invoice(self, amount_msat: int) -> str:
        return self.lnd.invoice(amount_msat, created_at=1_700_000_000).bolt11

    def make_own_invoice(self, amount_msat: int) -> str:
        return self.lnd.invoice(amount_msat, self_payment=True).bolt11

    def expire(self, bolt11: str) -> None:
        self.lnd.clock_offset_s += 3600

    def pass_time(self, seconds: float) -> None:
        self.lnd.clock_offset_s += seconds

    def client_with(self, **kwargs: Any) -> LndNodeClient:
        return self.lnd.client(**kwargs)

    def client_permitted(self, *paths: str) -> LndNodeClient:
        return self.lnd.client(macaroon_path=self.lnd.bake_macaroon(*paths))

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        def release() -> None:
            self.lnd.clear_faults()
            self.lnd.release()

        self.lnd.hang_next(times=None)
        try:
            yield release
        finally:
            release()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.lnd.payee_online = False
        try:
            yield
        finally:
            self.lnd.payee_online = True

    def forget_failures(self) -> None:
        """The fake has but one way, and always tries it."""

    def split(self, bolt11: str, request: pb.SendPaymentRequest) -> bytes:
        self.lnd.split_next(3)
        return request.SerializeToString()

    def refused_macaroon(self, why: str) -> str:
        texts = {
            "expired": ('caveat "time-before 2026-11-22T20:47:31.065121361Z" not satisfied: macaroon has expired',),
            "elsewhere": ('caveat "ipaddr 10.9.8.7" not satisfied: macaroon locked to different IP address',),
        }
        return Path(self.lnd.bake_refused_macaroon(*texts.get(why, ()))).read_bytes().hex()


class FakeRestNode(FakeNode):
    """The same over REST."""

    def client_with(self, **kwargs: Any) -> LndRestClient:
        return self.lnd.rest_client(**kwargs)

    def client_permitted(self, *paths: str) -> LndRestClient:
        return self.lnd.rest_client(macaroon_path=self.lnd.bake_macaroon(*paths))


class TestFakeLndOverRest(NodeContract):
    @pytest.fixture
    def node(self) -> Iterator[ContractNode]:
        with FakeLnd() as lnd:
            yield FakeRestNode(lnd)


class TestFakeLnd(NodeContract, NodeWords):
    @pytest.fixture
    def node(self) -> Iterator[ContractNode]:
        with FakeLnd() as lnd:
            yield FakeNode(lnd)
