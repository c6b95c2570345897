"""A headless Chromium, and traces made of events as a test wants them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.trace import TraceEvent
from tests.component.report.browser import Browser
from tests.support.cli_process import Command

REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Where it, its driver or selenium is missing the tests are skipped, unless ROUTEWEILER_REQUIRE_BROWSER=1."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    try:
        if chromium is None or driver is None:
            raise FileNotFoundError("Debian's chromium and chromium-driver aren't installed")
        made = Browser(chromium, driver)
    except (FileNotFoundError, ImportError) as missing:
        if REQUIRED:
            raise
        pytest.skip(f"no browser: {missing}")
    with made:
        yield made


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
