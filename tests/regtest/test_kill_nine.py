"""A few rounds of torture over each wallet; `python -m tests.torture.kill_nine` does as many as one has time for."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.torture.kill_nine import summary, torture

from .real_wallets import WALLETS
from .world import World

SEED = 17
#: Rounds a wallet, and the time after which no other round is begun: one takes up to 20 s. ROUTEWEILER_TORTURE=1 does them all.
LONG = os.environ.get("ROUTEWEILER_TORTURE") == "1"
ROUNDS, SECONDS = (12, math.inf) if LONG else (6, 25.0)
TIMEOUT_S = 600
#: Wallets that have to be installed first, by the fixture that does so.
INSTALLED = {"lnbits": "lnbits_installed", "nwc": "nwc_installed"}


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S, func_only=True)
@pytest.mark.parametrize("wallet", WALLETS)
def test_whatever_is_killed_cut_or_frozen_each_need_is_paid_once_and_no_token_is_lost(
    request: pytest.FixtureRequest, world: World, tmp_path: Path, wallet: str
) -> None:
    """Otherwise a crash, a broken connection or a restart of the wallet would cost money: a page paid twice, or a paid one lost."""
    if wallet in INSTALLED:
        request.getfixturevalue(INSTALLED[wallet])
    done = torture(world, tmp_path, seed=SEED, first=0, rounds=ROUNDS, seconds=SECONDS, wallet=wallet)
    assert not [finding for each in done for finding in each.findings]
    print(summary(done))
    assert sum(each.payments for each in done) >= len(done)
