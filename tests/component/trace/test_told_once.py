"""Each payment is reported once, whoever buys, uses the token or dies. `python -m tests.torture.told_once` tries for longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.torture.told_once import torture


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(os.name == "nt", reason="a claim of a process that was killed runs out only after some minutes here")
@pytest.mark.parametrize("kind", ["jsonl", "db"])
def test_each_payment_is_reported_once_though_processes_are_killed(tmp_path: Path, kind: str) -> None:
    """Else who sums the trace counts a payment twice, or never."""
    outcome = torture(tmp_path, processes=8, seconds=6.0, seed=11, kind=kind)
    assert outcome.wrong == []
    assert outcome.payments > 10
    assert outcome.kills > 0
