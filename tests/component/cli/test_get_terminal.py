"""``get`` at a terminal: its progress bar, and ``-q``, ``-v`` and ``-k``."""

from __future__ import annotations

import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from routeweiler_sync.cli.get import INSECURE
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import Command
from tests.support.download import Download

if os.name == "posix":
    from tests.support.terminal import Terminal

pytestmark = pytest.mark.slow

posix_only = pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")

PAGE = bytes(range(256)) * 4096
HASH = r"[0-9a-f]{64}"


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def download(paywall: Paywall) -> Download:
    """What is sold at ``paywall.url``."""
    made = Download(PAGE)
    paywall.respond = made.respond
    return made


@pytest.fixture
def https(tmp_path: Path) -> Iterator[str]:
    """The URL of a free page, whose certificate nobody knows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"page\n")

        def log_message(self, *args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def at_terminal(command: Command, *args: str, columns: int = 80, on: tuple[str, ...] = ("err",), **environ: str) -> Terminal:
    given = {"TERM": "xterm-256color", **environ}
    process = [sys.executable, "-m", "routeweiler_sync", "get", *args]
    return Terminal(process, command.environ(**given), command.folder, on=on, columns=columns)


def shown(text: str) -> str:
    """The text without what commands the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


# The bar


@posix_only
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_download_shows_a_bar(command: Command, paywall: Paywall, download: Download, columns: int) -> None:
    """Of a download of an hour nobody would know whether it gets anywhere."""
    with at_terminal(command, paywall.url, "-o", "weather.bin", columns=columns) as terminal:
        assert terminal.wait() == 0
    text = shown(terminal.text)
    assert "HTTP 200 OK; paid 10 sat + 0 sat fee" in text
    assert re.search(r"(weather\.bin|….*bin) .*1\.0/1\.0 MB", text), text
    assert all(len(line) <= columns for line in re.split(r"[\r\n]+", text) if "MB" in line), text
    assert (command.folder / "weather.bin").read_bytes() == PAGE


@posix_only
def test_the_bar_moves_while_the_page_arrives(command: Command, paywall: Paywall, download: Download) -> None:
    """A bar that appears at the end is none; and after Ctrl-C the terminal has its cursor back."""
    download.breaks_at, download.stalls = 600_000, True
    with at_terminal(command, paywall.url, "-o", "page") as terminal:
        terminal.wait_for("0.6/1.0 MB")
        terminal.interrupt()
        assert terminal.wait() == 6
    assert "Interrupted; paid 10 sat" in terminal.text
    assert terminal.text.rfind("\x1b[?25h") > terminal.text.rfind("\x1b[?25l") >= 0
    assert not (command.folder / "page").exists()


@posix_only
def test_a_continued_download_s_bar_begins_where_it_broke_off(command: Command, paywall: Paywall, download: Download) -> None:
    """Half of it is there already."""
    download.breaks_at = 600_000
    assert command("get", "--continue", "-o", "page", paywall.url) == 6
    with at_terminal(command, "--continue", "-o", "page", paywall.url) as terminal:
        assert terminal.wait() == 0
    assert re.search(r"1\.0/1\.0 MB", shown(terminal.text))
    assert "0.4/" not in shown(terminal.text)


@posix_only
@pytest.mark.parametrize("how", ["quiet", "dumb", "no -o", "stderr is a pipe"])
def test_there_is_no_bar_where_it_would_disturb(command: Command, paywall: Paywall, download: Download, how: str) -> None:
    """Escape codes in a log, or a bar across the page."""
    args = {"quiet": ["-q", "-o", "page"], "no -o": []}.get(how, ["-o", "page"])
    on = ("out",) if how == "stderr is a pipe" else ("err",)
    with at_terminal(command, paywall.url, *args, on=on, **({"TERM": "dumb"} if how == "dumb" else {})) as terminal:
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.text
    assert "MB" not in terminal.text


@posix_only
def test_a_server_s_name_for_a_file_cannot_command_the_terminal(command: Command, paywall: Paywall, download: Download) -> None:
    """A name with escape codes or with rich's markup is shown as it is."""
    with at_terminal(command, paywall.url, "-o", "[red]\x1b[2Jx") as terminal:
        assert terminal.wait() == 0
    assert "\x1b[2J" not in terminal.text
    assert "[red]\\x1b[2Jx" in shown(terminal.text)


# -q, -v, -k


def test_quiet_says_nothing_unless_something_goes_wrong(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """In a cron job, each line is a mail."""
    assert command("get", "-q", paywall.url) == 0
    assert (command.out, command.err) == (paywall.content, b"")
    paywall.answer_next(429)
    assert command("get", "-q", paywall.url) == 1
    assert command.err.startswith(b"HTTP 429")
    assert command("get", "--quiet", "--max-sats", "1", paywall.url_for("/free")) == 0
    assert command.err == b""


def test_quiet_tells_of_money_that_brought_nothing(command: Command, paywall: Paywall, download: Download, lnd: FakeLnd) -> None:
    """Paid, and no page: that is something gone wrong."""
    download.breaks_at = 1000
    assert command("get", "-q", paywall.url, "-o", "page") == 6
    assert lnd.payments[0].payment_hash.encode() in command.err


def test_verbose_tells_requests_answers_and_payments(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """Why a page isn't paid for, or paid for twice, can't be seen from the outcome. Tokens are in no line (`Command` looks)."""
    assert command("get", "-v", paywall.url_for(f"/redirect?to={paywall.url}")) == 0
    told = [re.sub(HASH, "HASH", re.sub(r"\(\d+ ms\)", "(ms)", line)) for line in command.err.decode().splitlines()]
    assert told == [
        f"> GET {paywall.url_for(f'/redirect?to={paywall.url}')}",
        "< HTTP 302 Found (ms)",
        f"> GET {paywall.url}",
        "< HTTP 402 Payment Required (ms)",
        f"* paying 10000 msat to {paywall.base_url}, payment hash HASH",
        "* payment HASH settled, fee 0 msat",
        f"> GET {paywall.url}, with a token",
        "< HTTP 200 OK (ms)",
        "HTTP 200 OK; paid 10 sat + 0 sat fee, payment hash HASH",
    ]


def test_verbose_hides_passwords_and_names_an_authorization(command: Command, paywall: Paywall) -> None:
    """A log of it is pasted into bug reports."""
    url = paywall.url_for("/free").replace("http://", "http://user:hunter2@")
    assert command("get", "-v", url) == 0
    assert b"hunter2" not in command.err
    assert b", with an Authorization header" in command.err
    assert command("get", "-v", "-H", "Authorization: Bearer s3cret", paywall.url_for("/free")) == 0
    assert b"s3cret" not in command.err


def test_quiet_and_verbose_exclude_each_other(command: Command, paywall: Paywall) -> None:
    """Which of them is meant can't be known."""
    assert command("get", "-qv", paywall.url) == 2
    assert paywall.requests == []


@pytest.mark.parametrize("bundle", [False, True])
def test_insecure_is_warned_of(command: Command, https: str, bundle: bool, tmp_path: Path) -> None:
    """Whoever answers in the server's place is paid: that must be asked for, each time, and told."""
    environ = {}
    if bundle:  # an environment that names certificates overrules `verify` of a session, but not this
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        environ = {"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}
    assert command("get", https, **environ) == 1
    assert b"certificate" in command.err.lower()
    assert command("get", "-k", https, **environ) == 0
    assert command.out == b"page\n"
    assert command.err.decode().splitlines() == [INSECURE, "HTTP 200 OK; free"]
    assert command("get", "-kq", https, **environ) == 0
    assert command.err.decode().splitlines() == [INSECURE]


@posix_only
def test_a_payment_that_takes_long_is_told_on_a_terminal(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """Who sees nothing for a minute takes the command for dead, and kills it in the midst of a payment."""
    lnd.hang_next()
    with at_terminal(command, paywall.url) as terminal:
        terminal.wait_for("Still waiting for the payment of 10 sat to http://")
        lnd.release()
        assert terminal.wait() == 0
    assert terminal.text.count("Still waiting") == 1
    assert terminal.out == paywall.content
