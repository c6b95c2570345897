"""FakeLnd keeps every promise that the real lnd keeps to a payer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.testing import FakeLnd

from ..node_contract import ContractNode, NodeContract


class FakeNode:
    """FakeLnd as a `ContractNode`."""

    abilities = frozenset({"hold", "self_payment", "bake"})
    fee_msat = 1_000

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd, self.client = lnd, lnd.client()
        lnd.fee_msat = self.fee_msat

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        return self.lnd.invoice(amount_msat, expiry_s=expiry_s).bolt11

    def make_expired_invoice(self, amount_msat: int) -> str:
        return self.lnd.invoice(amount_msat, created_at=1_700_000_000).bolt11

    def make_own_invoice(self, amount_msat: int) -> str:
        return self.lnd.invoice(amount_msat, self_payment=True).bolt11

    def expire(self, bolt11: str) -> None:
        self.lnd.clock_offset_s += 3600

    def client_with(self, **kwargs: Any) -> LndClient:
        return self.lnd.client(**kwargs)

    def client_permitted(self, *paths: str) -> LndClient:
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


class TestFakeLnd(NodeContract):
    @pytest.fixture
    def node(self) -> Iterator[ContractNode]:
        with FakeLnd() as lnd:
            yield FakeNode(lnd)
