"""Each wallet's fake keeps what `WalletContract` promises, through the wallet's own client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routeweiler_sync.testing import FakeLnd
from tests.support.fake_wallets import fake_wallet
from tests.support.wallet_contract import ContractWallet, WalletContract


class OfFake(WalletContract):
    """The contract, held by a fake."""

    name: str

    @pytest.fixture
    def wallet(self) -> Iterator[ContractWallet]:
        with FakeLnd() as lnd, fake_wallet(self.name, lnd) as wallet:
            yield wallet


class TestLndOverGrpc(OfFake):
    name = "lnd"


class TestLndOverRest(OfFake):
    name = "lnd-rest"


class TestLnbits(OfFake):
    name = "lnbits"


class TestNwc(OfFake):
    name = "nwc"
