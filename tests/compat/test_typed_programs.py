"""The programs of tests/typing, which type checkers read (`.ci/types`), run as well."""

from __future__ import annotations

import inspect
import runpy
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync.settings import SETTINGS, Settings
from routeweiler_sync.testing import FakeLnd, Paywall

PROGRAMS = Path(__file__).parents[1] / "typing"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response({"/redirect": 302, "/missing": 404}.get(path, 200))
        body = b'{"legacy": true}'
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if path == "/redirect":
            self.send_header("Location", "/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("program", ["legacy", "modules", "inline"])
def test_what_the_checkers_are_told_of_free_traffic_is_so(program: str, server: str) -> None:
    """A checker would pass a user's program that then fails for a name or an argument that isn't there."""
    runpy.run_path(str(PROGRAMS / f"{program}.py"))["main"](server)


def test_what_the_checkers_are_told_of_payments_is_so(tmp_path: Path, lnd: FakeLnd, paywall: Paywall) -> None:
    """The same where money moves: each session, adapter and patch of the program pays what it says that it pays."""
    with closing(lnd.client()) as client:
        runpy.run_path(str(PROGRAMS / "paying.py"))["main"](client, paywall.url, tmp_path)
    assert len(lnd.payments) == 3


def test_what_the_checkers_are_told_of_the_testing_kit_is_so(tmp_path: Path) -> None:
    """A user's own tests would pass the checkers and fail when they run."""
    runpy.run_path(str(PROGRAMS / "kit.py"))["main"](tmp_path)


def test_a_checker_knows_the_arguments_that_there_are() -> None:
    """What Routeweiler takes is written down twice: for the run, and for checkers and all that passes it on."""
    taken = [name for name in inspect.signature(Routeweiler.__init__).parameters if name not in ("self", "kwargs")]
    assert taken == list(Settings.__annotations__)
    assert {*SETTINGS} == {*taken}
