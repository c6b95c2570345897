"""A headless Chromium, and traces made of events as a test wants them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.trace import TraceEvent
from tests.support.browser import browser
from tests.support.cli_process import Command

__all__ = ["browser"]


@pytest.fixture
def command(tmp_path: Path, lnd: Any, books: Any) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[..., Path]:
    """Write events, or whatever else stands for one, to a trace; return its path."""

    def write(*events: TraceEvent | dict[str, Any] | str, name: str = "events.jsonl") -> Path:
        path = tmp_path / name
        texts = [each.to_json_dict() if isinstance(each, TraceEvent) else each for each in events]
        path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in texts), encoding="utf-8")
        return path

    return write
