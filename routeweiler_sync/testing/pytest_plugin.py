"""Fixtures for pytest: a fake lnd, a paywall whose invoices that lnd can pay, and a session that pays with it.

    def test_my_program(paying_session, paywall):
        assert my_program(paying_session, paywall.url) == ...
        assert paywall.requests[-1].paid

This module imports the kit only inside the fixtures, because pytest loads it in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from routeweiler_sync import Routeweiler

    from .fake_lnd import FakeLnd
    from .paywall import Paywall


@pytest.fixture
def fake_lnd() -> Iterator[FakeLnd]:
    """A running `FakeLnd`; it stops at the end of the test."""
    from .fake_lnd import FakeLnd

    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture
def paywall(fake_lnd: FakeLnd) -> Iterator[Paywall]:
    """A running `Paywall` that sells at 10 sats a token; ``fake_lnd`` issues its invoices."""
    from .paywall import Paywall

    with Paywall(fake_lnd) as paywall:
        yield paywall


@pytest.fixture
def paying_session(fake_lnd: FakeLnd, tmp_path: Path) -> Iterator[Routeweiler]:
    """A session that pays through ``fake_lnd``, within the default budget. Its ledger and trace are files in ``tmp_path``."""
    from routeweiler_sync import Routeweiler, TraceSink

    sink = TraceSink.jsonl(tmp_path / "trace.jsonl")
    with Routeweiler(funding=[fake_lnd.funding()], ledger=tmp_path / "ledger.db", trace_sink=sink) as session:
        yield session
    sink.close()
