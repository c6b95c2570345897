"""A dozen buyers of single-use payments, killed; `python -m tests.torture.single_use` kills as many as one has time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.single_use import summary, torture

from .server_builds import Runtimes
from .world import World

SEED, MOMENTS = 17, 12
TIMEOUT_S = 300


@pytest.mark.timeout(TIMEOUT_S, func_only=True)
def test_whenever_a_buyer_dies_its_payment_is_delivered_or_told_as_refused(
    world: World, runtimes: Runtimes, tmp_path: Path
) -> None:
    """Otherwise a crash between payment and page would cost the price twice, or the page."""
    done = torture(world, tmp_path, runtimes, seed=SEED, first=0, moments=MOMENTS)
    assert not [finding for each in done for finding in each.findings], "\n".join(map(str, done))
    print(summary(done))
    assert sum(each.payments for each in done) >= MOMENTS
