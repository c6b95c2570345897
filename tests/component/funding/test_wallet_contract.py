"""Each wallet's fake keeps what `WalletContract` promises, through the wallet's own client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routeweiler_sync.testing import FakeLnd
from tests.support.fake_wallets import LndOverGrpc
from tests.support.wallet_contract import ContractWallet, WalletContract


class TestLndOverGrpc(WalletContract):
    @pytest.fixture
    def wallet(self) -> Iterator[ContractWallet]:
        with FakeLnd() as lnd:
            yield LndOverGrpc(lnd)
