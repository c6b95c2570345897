"""Fixtures for pytest: a fake lnd, a paywall, and a session that pays the one from the other.

    def test_my_program(paying_session, paywall):
        assert my_program(paying_session, paywall.url) == ...
        assert paywall.requests[-1].paid

Light to import: pytest loads it in every run.
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
    """A running `FakeLnd`."""
    from .fake_lnd import FakeLnd

    with FakeLnd() as lnd:
        yield lnd


@pytest.fixture
def paywall(fake_lnd: FakeLnd) -> Iterator[Paywall]:
    """A running `Paywall`, 10 sats a call, whose invoices are ``fake_lnd``'s."""
    from .paywall import Paywall

    with Paywall(fake_lnd) as paywall:
        yield paywall


@pytest.fixture
def paying_session(fake_lnd: FakeLnd, tmp_path: Path) -> Iterator[Routeweiler]:
    """A session that pays through ``fake_lnd``: within the default budget, ledger and trace in ``tmp_path``."""
    from routeweiler_sync import Routeweiler, TraceSink

    sink = TraceSink.jsonl(tmp_path / "trace.jsonl")
    with Routeweiler(funding=[fake_lnd.funding()], ledger=tmp_path / "ledger.db", trace_sink=sink) as session:
        yield session
    sink.close()
