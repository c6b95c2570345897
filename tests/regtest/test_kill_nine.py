"""A dozen rounds of torture; `python -m tests.torture.kill_nine` does as many as one has time for."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.torture.kill_nine import summary, torture

from .real_wallets import WALLETS
from .world import World

SEED, ROUNDS = 17, 12
TIMEOUT_S = 600
#: Of a wallet beside the one that has its dozen.
SHORT_ROUNDS, SHORT_S = 6, 45.0


@pytest.mark.skipif(os.environ.get("ROUTEWEILER_TORTURE") != "1", reason="set ROUTEWEILER_TORTURE=1: a minute of kills and cuts")
@pytest.mark.timeout(TIMEOUT_S, func_only=True)
@pytest.mark.parametrize("wallet", WALLETS)
def test_whatever_is_killed_cut_or_frozen_each_need_is_paid_once_and_no_token_is_lost(
    world: World, tmp_path: Path, wallet: str
) -> None:
    """Otherwise a crash, a broken connection or a restart of the wallet would cost money: a page paid twice, or a paid one lost."""
    rounds, seconds = (ROUNDS, math.inf) if wallet == "lnd" else (SHORT_ROUNDS, SHORT_S)
    done = torture(world, tmp_path, seed=SEED, first=0, rounds=rounds, seconds=seconds, wallet=wallet)
    assert not [finding for each in done for finding in each.findings]
    print(summary(done))
    assert sum(each.payments for each in done) >= len(done)
