"""The real wallets keep what `WalletContract` promises; so do the fakes, and what is tested with a fake holds for the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.wallet_contract import ContractWallet, WalletContract

from .real_wallets import WALLETS
from .world import World


class OfReal(WalletContract):
    """The contract, held by a real wallet."""

    name: str

    @pytest.fixture
    def wallet(self, world: World) -> Iterator[ContractWallet]:
        with WALLETS[self.name](world) as wallet:
            yield wallet


class TestLndOverGrpc(OfReal):
    name = "lnd"


class TestLndOverRest(OfReal):
    name = "lnd-rest"


class TestLnbits(OfReal):
    name = "lnbits"

    @pytest.fixture(autouse=True)
    def _installed(self, lnbits_installed: None) -> None: ...


class TestNwc(OfReal):
    name = "nwc"

    @pytest.fixture(autouse=True)
    def _installed(self, nwc_installed: None) -> None: ...
