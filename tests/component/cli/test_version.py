"""The package's version is told right wherever it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import TIMEOUT_S, Command

VERSION = "9.8.7"
#: ``routeweiler-sync`` of a later release.
LATER = f"""
import runpy, sys
import routeweiler_sync._version
routeweiler_sync._version.VERSION = {VERSION!r}
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_every_place_reads_the_one_version(tmp_path: Path, lnd: FakeLnd, books: Books, paywall: Paywall) -> None:
    """A report of a fault would name a version that isn't the one at fault, and an operator would look for a wrong client."""
    environ = Command(tmp_path, lnd, books).environ()

    def later(*words: str, module: str = "routeweiler_sync") -> str:
        command = [sys.executable, "-c", LATER, module, *words]
        done = subprocess.run(
            command, env=environ, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=True
        )
        return done.stdout

    assert later("--version") == f"routeweiler-sync, version {VERSION}\n"
    later("get", "-o", "page", paywall.url)
    assert {request.headers["User-Agent"] for request in paywall.requests} == {f"routeweiler-sync/{VERSION}"}
    told = json.loads(later("doctor", "--json"))
    assert told["version"] == VERSION
    assert f"routeweiler-sync {VERSION}" in next(check["what"] for check in told["checks"] if check["check"] == "python")
    later("report", "--html", "report.html")
    assert f"routeweiler-sync {VERSION}" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"routeweiler-sync {VERSION} demo" in later("demo")
    assert json.loads(later(module="routeweiler_sync.help"))["routeweiler_sync"]["version"] == VERSION
