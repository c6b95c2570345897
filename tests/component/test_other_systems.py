"""The main jobs (buy, crash, recover, two processes, the commands) as on Windows, and in folders with odd names.

`tests.support.pretend_windows` plays Windows. docs/how-to/windows-and-macos.md says what it can't play.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from routeweiler_sync.cli.continued import PART
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support import pretend_windows
from tests.support.accounts import Books
from tests.support.cli_process import TIMEOUT_S, Command
from tests.support.crashing_buyer import DIED
from tests.support.download import Download

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux to play Windows")

ROOT = Path(__file__).parents[2]
#: A name with blanks, letters outside of ASCII, and what shells, URLs and SQLite's URIs take for something else.
NAME = "Öl & 支払い, 100%25 #1; a'b"
#: The same for systems that allow it, with a byte that is no UTF-8.
POSIX_NAME = NAME + '?mode=ro\\ "<*>|:\udcff'
#: A program whose configuration has such names too.
PROGRAM = """
import sys
from routeweiler_sync import Policy, Session, TraceSink

policy, ledger, trace, url = sys.argv[1:]
with Session(ledger=ledger, trace_sink=TraceSink.sqlite(trace), policy=Policy.from_file(policy)) as session:
    print(session.get(url).payment.amount_msat)
"""
RECOVER = """
import sys
from routeweiler_sync import Session

with Session(ledger=sys.argv[1]) as session:
    print(session.recover())
"""
PLAIN = """
import sys
import requests

print(requests.get(sys.argv[1]).status_code)
"""


class Place:
    """A folder for all files of a test, and child processes in it."""

    def __init__(self, folder: Path, tools: Path, lnd: FakeLnd, *, is_windows: bool) -> None:
        folder.mkdir()
        self.folder, self.lnd, self.books = folder, lnd, Books(folder, lnd)
        for name in ("macaroon", "tls.cert"):
            shutil.copy(lnd.macaroon_path if name == "macaroon" else lnd.tls_cert_path, folder / name)
        self.environ = Command(folder, lnd, self.books).environ(
            LND_MACAROON_PATH=str(folder / "macaroon"), LND_TLS_CERT_PATH=str(folder / "tls.cert"), TMPDIR=str(folder)
        )
        self.environ["PYTHONPATH"] = str(ROOT)
        if is_windows:
            self.environ |= pretend_windows.environ(tools, ROOT)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Start Python with these arguments."""
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *words: object, code: int = 0) -> str:
        """Run Python with these arguments. Return what it wrote to stdout."""
        process = self.start(*words)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, (process.returncode, out, err)
        assert "Traceback" not in err, err
        return out

    def command(self, *words: object, code: int = 0) -> str:
        """Run ``routeweiler-sync``."""
        return self.run("-m", "routeweiler_sync", *words, code=code)


@pytest.fixture(params=["windows", "this system"])
def place(request: pytest.FixtureRequest, tmp_path: Path, lnd: FakeLnd) -> Place:
    is_windows = request.param == "windows"
    return Place(tmp_path / (NAME if is_windows else POSIX_NAME), tmp_path, lnd, is_windows=is_windows)


@pytest.fixture
def windows(tmp_path: Path, lnd: FakeLnd) -> Place:
    return Place(tmp_path / NAME, tmp_path, lnd, is_windows=True)


def test_windows_is_played(windows: Place) -> None:
    """Else the tests of this file would show nothing."""
    out = windows.run(
        "-c",
        "import os, routeweiler_sync._core.files as files, routeweiler_sync.trace.filelock as filelock;"
        "print(os.name, files.os.name, hasattr(files.os, 'fork'), hasattr(filelock, 'fcntl'), filelock.msvcrt.LK_NBLCK)",
    )
    assert out.split() == ["posix", "nt", "False", "False", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["Source.send:before", "Source.send:after"])
def test_a_process_that_died_is_made_up_for_on_windows(windows: Place, paywall: Paywall, point: str) -> None:
    """Money would be lost or paid twice where nothing but the code for POSIX was tried."""
    buyer = ("-m", "tests.support.crashing_buyer", paywall.url, windows.books.ledger_path, windows.books.trace_path)
    windows.run(*buyer, point, code=DIED)
    windows.run("-c", RECOVER, windows.books.ledger_path)
    assert windows.run(*buyer, "none").startswith("200")
    assert len([each for each in windows.lnd.payments if each.status == "SUCCEEDED"]) == 1
    windows.books.check()


@pytest.mark.slow
def test_processes_at_once_buy_a_page_once_on_windows(windows: Place, paywall: Paywall) -> None:
    """Two programs that are started together would both pay, or tear each other's lines of the trace."""
    buyer = ("-m", "tests.support.crashing_buyer", paywall.url, windows.books.ledger_path, windows.books.trace_path, "none")
    running = [windows.start(*buyer) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, out[:3]) == (0, "200"), err
    assert len(windows.lnd.payments) == 1
    windows.books.check()
    assert len(windows.books.lines) == 3
    assert b"\r" not in windows.books.trace_path.read_bytes(), "opened as text"


@pytest.mark.slow
def test_the_commands_work_on_windows_and_in_folders_with_odd_names(place: Place, paywall: Paywall) -> None:
    """A ledger in "My Documents" would be another file, or none."""
    page = bytes(range(256)) * 64
    download = Download(page)
    paywall.respond = download.respond
    file = place.folder / "Seite 頁 1.bin"
    place.command("get", "-o", file, paywall.url)
    assert file.read_bytes() == page
    place.command("get", "-o", file.name, paywall.url)  # replaces it
    assert file.read_bytes() == page
    file.unlink()
    download.breaks_at = 5000
    place.command("get", "--continue", "-o", file, paywall.url, code=1)
    assert Path(f"{file}{PART}").stat().st_size == 5000
    place.command("get", "--continue", "-o", file, paywall.url)
    assert file.read_bytes() == page

    place.books.check()

    (place.folder / "script ü.py").write_text(PROGRAM, encoding="utf-8")
    (place.folder / "policy 1.json").write_text('{"rules": []}', encoding="utf-8")
    place.run("script ü.py", "policy 1.json", "ledger 2.db", "trace 2 ü.db", f"{paywall.base_url}/other")
    (place.folder / "plain ü.py").write_text(PLAIN, encoding="utf-8")
    out = place.command("run", "--max-sats", 50, "plain ü.py", f"{paywall.base_url}/third")
    assert out.split() == ["200"]
    for target in ("Bericht ü.html", "Bericht ü.csv"):
        place.command("report", "--ledger", "ledger 2.db", "--trace", "trace 2 ü.db", f"--{target[-4:].lstrip('.')}", target)
        assert (place.folder / target).stat().st_size
    assert "agree" in place.command("budget", "audit", "--trace", place.books.trace_path)
    place.command("payments", "archive", "--before", "400d", "--to", place.folder / "Archiv ü.db")
    place.command("doctor")
    assert {each.name for each in place.folder.iterdir()} >= {"ledger.db", "ledger 2.db", "trace 2 ü.db"}
    assert not list(place.folder.glob("*.part")), "a temporary file was left"
    assert not list(place.folder.glob("routeweiler-run-*")), "a file of run was left"
