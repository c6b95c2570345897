"""The command line, as a user runs it: a process of its own, against a fake lnd and a paywall."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from routeweiler_sync import errors
from routeweiler_sync.cli.outcome import Exit, exit_for, printable
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing.paywall import PaywallRequest
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, TIMEOUT_S, Command
from tests.support.download import Download

pytestmark = pytest.mark.slow

posix_only = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def broken_page() -> Iterator[str]:
    """The URL of a free page that says it has 1000 bytes, gives 10 and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(TIMEOUT_S)


@contextmanager
def broken_off(paywall: Paywall) -> Iterator[str]:
    """The URL of a proxy that hangs up in the midst of each page."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            credential = {name: value for name, value in self.headers.items() if name == "Authorization"}
            answer = requests.get(paywall.url_for(self.path), headers=credential, timeout=TIMEOUT_S)
            self.send_response(answer.status_code)
            for name in ("WWW-Authenticate", "Payment-Receipt"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content) + answer.ok))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/paid"
        server.shutdown()
        thread.join(TIMEOUT_S)


# get: what is fetched


def test_a_page_is_paid_for_and_comes_unchanged(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A page that is decoded or given a newline on the way to the file it is redirected to would be bought and spoilt."""
    lnd.fee_msat = 1_234
    paywall.content = bytes(range(256)) * 1000
    assert command("get", paywall.url) == 0
    assert command.out == paywall.content
    assert command.err.decode().splitlines() == [
        f"HTTP 200 OK; paid 10 sat + 1.234 sat fee, payment hash {lnd.payments[0].payment_hash}"
    ]
    books.check()
    assert len(books.lines) == 1


def test_it_is_said_what_became_of_a_payment_for_one_request(command: Command, lnd: FakeLnd) -> None:
    """Told that a token is kept, a user would run the command again for nothing, and pay a second time."""
    with Paywall(lnd, scheme="Payment", form="mppx") as paywall:
        with broken_off(paywall) as url:
            assert command("get", url) == 6
        assert b"the next call pays anew" in command.err
        assert b"token" not in command.err
        paywall.answer_next(502, used=False, receipt=False)
        assert command("get", paywall.url_for("/other")) == 6
        kept = lnd.payments[-1].payment_hash
        assert b"the next call for the same request presents it" in command.err
        assert command("get", paywall.url_for("/other")) == 0
        assert f"nothing paid: what payment {kept} has bought used again" in command.err.decode()
        assert len(lnd.payments) == 2


def test_the_next_run_pays_nothing_and_says_so(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Who is told 'paid' for what wasn't paid keeps wrong accounts; and the token is to work where the node is down."""
    command("get", paywall.url)
    assert command("get", paywall.url, **NO_NODE) == 0
    assert command.out == paywall.content
    assert command.err.startswith(b"HTTP 200 OK; nothing paid: token of payment " + lnd.payments[0].payment_hash.encode())
    # Another page, to which the token goes as a guess.
    assert command("get", paywall.url_for("/another")) == 0
    assert command.err.startswith(b"HTTP 200 OK; nothing paid: token of payment ")
    assert len(lnd.payments) == 1
    books.check()


def test_free_pages_need_no_node(command: Command, paywall: Paywall, books: Books) -> None:
    """The command is to do where nothing has been set up yet."""
    assert command("get", paywall.url_for("/free"), **NO_NODE) == 0
    assert (command.out, command.err.split(b"\n")[0]) == (b"free\n", b"HTTP 200 OK; free")
    assert not books.ledger_path.exists()


def test_compressed_pages_arrive_as_the_server_sends_them(command: Command, paywall: Paywall) -> None:
    """A downloaded archive that is unpacked in passing no longer fits its checksum."""
    packed = gzip.compress(b"page" * 100)
    paywall.respond = lambda request: (200, {"Content-Encoding": "gzip"}, packed)
    assert command("get", paywall.url) == 0
    assert command.out == packed
    assert paywall.requests[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("how", ["text", "file", "stdin"])
def test_data_is_posted_whole_also_the_second_time(command: Command, paywall: Paywall, tmp_path: Path, how: str) -> None:
    """The paid request would arrive without its body: paid for, and refused."""
    body = "größe=1&b=2".encode()
    (tmp_path / "body").write_bytes(body)
    data = {"text": os.fsdecode(body), "file": "@body", "stdin": "-"}[how]
    assert command("get", paywall.url, "-d", data, stdin=body if how == "stdin" else b"") == 0
    assert [(r.method, r.body, r.status) for r in paywall.requests] == [("POST", body, 402), ("POST", body, 200)]
    assert paywall.requests[-1].headers["Content-Type"] == "application/x-www-form-urlencoded"


def test_method_and_headers_are_the_users(command: Command, paywall: Paywall) -> None:
    """A program that is used to curl would send something else than it says."""
    args = ("-X", "PUT", "-d", "{}", "-H", "content-type: application/json", "-H", "User-Agent:", "-H", "X-A:  b: c ")
    assert command("get", paywall.url, *args) == 0
    request = paywall.requests[-1]
    assert (request.method, request.headers["Content-Type"], request.headers["X-A"]) == ("PUT", "application/json", "b: c")
    assert "routeweiler" not in request.headers.get("User-Agent", "")


def test_redirects_are_followed_and_each_payment_is_reported(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """Money that was spent on the way would not be mentioned."""
    assert command("get", paywall.url_for(f"/redirect?to={paywall.url}")) == 0
    assert command.out == paywall.content
    assert lnd.payments[0].payment_hash.encode() in command.err


# get: where it goes


def test_a_file_is_replaced_by_a_whole_page(command: Command, paywall: Paywall, tmp_path: Path) -> None:
    """-o is how pages are kept; the file keeps its mode, and nothing else is left lying about."""
    kept = tmp_path / "out" / "page"
    kept.parent.mkdir()
    kept.write_bytes(b"old")
    kept.chmod(0o640)
    assert command("get", paywall.url, "-o", str(kept)) == 0
    assert (kept.read_bytes(), command.out) == (paywall.content, b"")
    assert os.name != "posix" or stat.S_IMODE(kept.stat().st_mode) == 0o640
    assert list(kept.parent.iterdir()) == [kept]


def test_a_page_that_breaks_off_leaves_the_file_as_it_was(command: Command, broken_page: str, tmp_path: Path) -> None:
    """Half a page under the name of a whole one is worse than none."""
    kept = tmp_path / "out" / "page"
    kept.parent.mkdir()
    kept.write_bytes(b"old")
    assert command("get", broken_page, "-o", str(kept)) == 1
    assert b"didn't arrive whole" in command.err
    assert kept.read_bytes() == b"old"
    assert list(kept.parent.iterdir()) == [kept]


def test_an_errors_page_goes_into_no_file(command: Command, paywall: Paywall, tmp_path: Path) -> None:
    """The last good copy would be overwritten by 'not now'."""
    kept = tmp_path / "page"
    kept.write_bytes(b"old")
    paywall.answer_next(500)
    assert command("get", paywall.url, "-o", str(kept)) == 6
    assert (kept.read_bytes(), command.out) == (b"old", b"")


def test_a_file_that_cannot_be_written_is_found_before_anything_is_paid(command: Command, paywall: Paywall, tmp_path: Path) -> None:
    """The page would be paid for and lost (promise 4)."""
    assert command("get", paywall.url, "-o", str(tmp_path / "missing" / "page")) == 2
    assert paywall.requests == []


@posix_only
def test_a_pipe_is_written_to_and_not_replaced(command: Command, paywall: Paywall, tmp_path: Path) -> None:
    """-o /dev/stdout, or /dev/null by root, would put a file in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert command("get", paywall.url, "-o", str(pipe)) == 0
    reader.join(TIMEOUT_S)
    assert read == [paywall.content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# get: how it ends


def test_1_the_server_cannot_be_reached(command: Command, paywall: Paywall) -> None:
    """A script can't tell a network error from one that has to do with money."""
    paywall.stop()
    assert command("get", paywall.url) == 1
    assert len(command.err.splitlines()) == 1


def test_1_an_http_error_without_a_payment(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """An error page would pass for the page."""
    command("get", paywall.url)
    paywall.answer_next(429, body=b"not now\n")
    assert command("get", paywall.url) == 1
    assert command.out == b"not now\n"
    assert command.err.startswith(b"HTTP 429 ")
    assert len(lnd.payments) == 1


def test_1_a_header_of_the_server_that_makes_no_sense(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """Exit code 2 says that the command is written wrongly, and that nothing was sent."""
    paywall.respond = lambda request: (200, {"Content-Length": "7"}, b"page")
    assert command("get", paywall.url) == 6
    assert command("get", paywall.url) == 1
    assert b"Content-Length" in command.err
    assert len(lnd.payments) == 1


@pytest.mark.parametrize(
    ("args", "environ"),
    [
        (["-H", "no colon"], {}),
        (["-d", "@missing"], {}),
        (["--max-sats", "-1"], {}),
        (["--no-such-option"], {}),
        ([], {"ROUTEWEILER_BUDGET": "plenty"}),
        ([], {"ROUTEWEILER_NETWORK": "mainnet"}),
    ],
)
def test_2_what_cannot_be_meant_is_refused_before_anything_is_sent(
    command: Command, paywall: Paywall, args: list[str], environ: dict[str, str]
) -> None:
    """A budget that isn't understood must not become no budget."""
    assert command("get", paywall.url, *args, **environ) == 2
    assert paywall.requests == []
    assert command.err


@pytest.mark.parametrize("url", ["example.com/page", "ftp://example.com/", "http://"])
def test_2_something_that_is_no_url(command: Command, url: str) -> None:
    """A typing error isn't the network's fault."""
    assert command("get", url) == 2


def test_3_above_the_budget(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The environment's budget would be decoration (promise 3)."""
    assert command("get", paywall.url, ROUTEWEILER_BUDGET="9 sat/call") == 3
    assert b"Nothing was spent" in command.err
    assert lnd.calls["SendPaymentV2"] == 0
    assert books.rows == []


def test_3_above_max_sats(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """The user's own word would be overrun (promise 3)."""
    assert command("get", paywall.url, "--max-sats", "9") == 3
    assert b"10 sat" in command.err
    assert b"--max-sats 9" in command.err
    assert lnd.calls["SendPaymentV2"] == 0


def test_max_sats_bounds_price_and_routing_together(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """'At most 10 sats' that cost 11 are a promise broken."""
    lnd.fee_msat = 1_000
    assert command("get", paywall.url, "--max-sats", "10") == 4
    assert lnd.spent_msat == 0
    assert command("get", paywall.url, "--max-sats", "11") == 0
    assert lnd.spent_msat == 11_000
    books.check()


def redirecting(urls: list[str], paywall: Paywall) -> None:
    """Let each of ``urls`` redirect to the next, once it is paid for."""
    paths = [urlsplit(url).path for url in urls]

    def respond(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
        at = paths.index(request.path) if request.path in paths else len(paths) - 1
        return (302, {"Location": urls[at + 1]}, b"") if at + 1 < len(paths) else (200, {}, b"end")

    paywall.respond = respond


@pytest.mark.parametrize("fee_msat", [0, 1_000])
def test_max_sats_is_for_the_command_with_all_its_redirects(
    command: Command, paywall: Paywall, lnd: FakeLnd, books: Books, fee_msat: int
) -> None:
    """A server that redirects from one paid page to the next could take many times what the user allowed."""
    lnd.fee_msat = fee_msat
    for number in range(4):
        paywall.add_service(f"/{number}", name=f"page{number}", price_msat=10_000)
    redirecting([paywall.url_for(f"/{number}") for number in range(4)], paywall)
    assert command("get", "--max-sats", "25", paywall.url_for("/0")) == 6
    assert lnd.spent_msat == 2 * (10_000 + fee_msat)
    assert b"--max-sats 25" in command.err
    assert b"limit(" not in command.err
    assert command("get", "--max-sats", str(2 * (10_000 + fee_msat) // 1000), paywall.url_for("/0")) == 0, "the rest is bought"
    assert command.out == b"end"
    books.check()


def test_max_sats_holds_an_unfinished_payment_back_that_would_be_sent_again(
    command: Command, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """An order of an earlier run, with that run's price and fee limit, would be sent past this run's limit."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    lnd.clear_faults()
    assert command("get", "--max-sats", "12", paywall.url) == 5
    assert b"--max-sats 12" in command.err
    assert lnd.payments == []
    assert command("get", "--max-sats", "20", paywall.url) == 0
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize(("max_sats", "code"), [("9", 3), ("12", 0)])
def test_a_dry_run_holds_the_price_against_max_sats(
    command: Command, paywall: Paywall, lnd: FakeLnd, max_sats: str, code: int
) -> None:
    """A dry run that says 'yes' to what the run then refuses is no use; the price is to be seen all the same."""
    assert command("get", paywall.url, "--dry-run", "--max-sats", max_sats, **NO_NODE) == code
    assert command.out.startswith(b"price         10 sat\n")
    assert (b"--max-sats 9" in command.err) is (code == 3)
    assert (b"at most 2 sat" in command.out) is (code == 0), "what routing may cost is lowered too"
    assert command("get", paywall.url, "--dry-run", "--json", "--max-sats", max_sats) == code
    assert command.json["quote"]["amountMsat"] == 10_000
    assert (command.json["error"] is None) is (code == 0)
    assert lnd.payments == []


@pytest.mark.parametrize(
    ("budget", "waits"),
    [
        ("9 sat", False),
        ("9 sat/call", False),
        ("9 sat/hour", False),
        ("15 sat", False),
        ("15 sat/hour", True),
        ("15 sat/day", True),
    ],
)
def test_only_a_window_that_rolls_advises_to_wait(
    command: Command, paywall: Paywall, lnd: FakeLnd, budget: str, waits: bool
) -> None:
    """Who waits for a cap to move on waits for ever. And a user of the shell sets variables, not arguments."""
    for name in ("one", "two"):
        paywall.add_service(f"/{name}", name=name, price_msat=10_000)
    environ = {"ROUTEWEILER_BUDGET": budget}
    if budget.startswith("15"):
        assert command("get", paywall.url_for("/one"), **environ) == 0
    assert command("get", paywall.url_for("/two"), **environ) == 3
    assert (b"wait" in command.err) is waits
    assert b"ROUTEWEILER_BUDGET" in command.err


def test_a_frozen_budget_says_how_it_is_thawed(command: Command, paywall: Paywall) -> None:
    """A freeze that says no way out, or one in Python to a user of the shell, is a dead end."""
    assert command("get", paywall.url_for("/first")) == 0
    paywall.add_service("/second", name="second", price_msat=10_000)
    assert command("budget", "freeze", "default") == 0
    assert command("get", paywall.url_for("/second")) == 3
    assert b"routeweiler-sync budget thaw default" in command.err
    assert b"Ledger" not in command.err
    assert command("budget", "thaw", "default") == 0
    assert command("get", paywall.url_for("/second")) == 0


def test_3_no_node(command: Command, paywall: Paywall) -> None:
    """The first thing that a new user meets: it has to say what to set."""
    assert command("get", paywall.url, **NO_NODE) == 3
    assert b"ROUTEWEILER_LNDCONNECT" in command.err
    assert b"LND_MACAROON_PATH" in command.err


def test_3_the_node_is_down(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Nothing was spent, and a script may try again at once."""
    lnd.stop()
    environ = {name: value.replace(":0", f":{lnd.port}") for name, value in lnd.environ.items()}
    assert command("get", paywall.url, **environ) == 3
    assert b"othing was spent" in command.err
    assert books.rows == []


@pytest.mark.parametrize("network", [None, "bitcoin"])
def test_3_an_invoice_of_another_network(command: Command, paywall: Paywall, lnd: FakeLnd, network: str | None) -> None:
    """A testnet node must not be told to pay a mainnet invoice, whether the network was named or is the node's to say."""
    paywall.faults.currency = "bc" if network is None else None
    environ = {} if network is None else {"ROUTEWEILER_NETWORK": network}
    assert command("get", paywall.url, **environ) == 3
    assert lnd.calls["SendPaymentV2"] == 0


def test_4_the_payment_fails(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """lnd's no is final: nothing was spent, and the next run may buy."""
    lnd.fail_next("NO_ROUTE")
    assert command("get", paywall.url) == 4
    assert b"NO_ROUTE" in command.err
    assert command("get", paywall.url) == 0
    books.check()


def test_5_the_outcome_is_unknown_and_the_next_run_ends_it(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A new purchase beside one whose order may still arrive pays twice (promise 1)."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    assert b"isn't finished" in command.err
    lnd.clear_faults()
    assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 1
    books.check()


@posix_only
def test_5_interrupted_while_paying(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Ctrl-C doesn't stop a payment: who isn't told so pays again somewhere else."""
    lnd.hang_next()
    with subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", "get", paywall.url],
        env=command.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        lnd.wait_for(lambda node: bool(node.payments))
        process.send_signal(signal.SIGINT)
        command.out, command.err = process.communicate(timeout=TIMEOUT_S)
    command.look_for_secrets()
    assert process.returncode == 5
    assert b"nothing is paid twice" in command.err
    lnd.release()
    assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 1
    books.check()


def test_6_the_connection_breaks_after_the_payment(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """It looks like any network error, but money has moved: the next run has to use what was bought (promise 2)."""
    paywall.cut_next("before")
    assert command("get", paywall.url) == 6
    assert command.err.startswith(b"paid 10 sat + 0 sat fee, payment hash " + lnd.payments[0].payment_hash.encode())
    assert command.err.count(lnd.payments[0].payment_hash.encode()) == 1, "told once, not in the library's log as well"
    assert command.err.rstrip().endswith(b". The token is kept, and the next call uses it.")
    assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("no answer", b"The payment is kept, and the next call for the same request presents it."),
        ("broken off", b"The payment was for this one answer: the next call pays anew."),
    ],
)
def test_what_becomes_of_a_charge_whose_page_didnt_arrive_is_told(command: Command, lnd: FakeLnd, fault: str, told: bytes) -> None:
    """A user who is told that the next call costs nothing calls again and again, and pays each time."""
    with Paywall(lnd, scheme="Payment", form="pympp", price_msat=10_000) as paywall:
        if fault == "no answer":
            paywall.cut_next("before")
        else:
            page = Download(b"page" * 1000)
            page.breaks_at = 1000
            paywall.respond = page.respond
        assert command("get", paywall.url) == 6
        assert command.err.rstrip().endswith(told)
        command("get", paywall.url)
        assert len(lnd.payments) == (1 if fault == "no answer" else 2)


@pytest.mark.parametrize("status", [None, 503])
def test_a_charge_that_is_presented_in_vain_again_is_told(command: Command, lnd: FakeLnd, status: int | None) -> None:
    """A user who isn't told that it is kept takes the money for lost, or the command's end for that of any free page."""
    with Paywall(lnd, scheme="Payment", form="pympp", price_msat=10_000) as paywall:
        for _ in range(2):
            if status is None:
                paywall.cut_next("before")
            else:
                paywall.answer_next(status, used=False, receipt=False)
            assert command("get", paywall.url) == 6
            assert lnd.payments[0].payment_hash.encode() in command.err
            assert command.err.rstrip().endswith(b"The payment is kept, and the next call for the same request presents it.")
        assert b"paid 10 sat" not in command.err
        assert b"nothing paid" in command.err
        assert command("get", paywall.url) == 0
    assert len(lnd.payments) == 1


def test_a_trace_that_cant_be_written_is_reported_after_the_outcome(
    command: Command, paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else an audit finds a payment without a line, of which nobody was warned; or a script takes the warning for the outcome."""
    assert command("get", paywall.url, ROUTEWEILER_TRACE=str(tmp_path)) == 0
    outcome, *warned = command.err.decode().splitlines()
    assert outcome == f"HTTP 200 OK; paid 10 sat + 0 sat fee, payment hash {lnd.payments[0].payment_hash}"
    assert len(warned) == 1
    assert "is lost" in warned[0]
    assert str(tmp_path) in warned[0]


def test_6_the_token_is_refused(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Paid, and cheated: the payment hash is what the user can complain with."""
    paywall.faults.refuse_tokens = True
    assert command("get", paywall.url) == 6
    assert command.err.count(lnd.payments[0].payment_hash.encode()) == 2
    books.check()


@pytest.mark.parametrize(
    ("error", "paid", "code"),
    [
        (requests.ConnectionError("x"), False, Exit.ERROR),
        (requests.ConnectionError("x"), True, Exit.UNDELIVERED),
        (requests.exceptions.InvalidURL("x"), False, Exit.USAGE),
        (errors.BudgetExceededError("x"), False, Exit.REFUSED),
        (errors.BudgetExceededError("x"), True, Exit.UNDELIVERED),
        (errors.FundingError("x"), False, Exit.REFUSED),
        (errors.LedgerError("x"), False, Exit.REFUSED),
        (errors.LedgerError("x", spent=None), False, Exit.PENDING),
        (errors.InvoicePaymentError("x"), False, Exit.FAILED),
        (errors.InvoicePaymentError("x"), True, Exit.UNDELIVERED),
        (errors.PaymentPendingError("x"), False, Exit.PENDING),
        (errors.PaymentPendingError("x"), True, Exit.PENDING),
        (errors.TokenRefusedError("x"), False, Exit.UNDELIVERED),
        (errors.PreimageMismatchError("x"), False, Exit.UNDELIVERED),
    ],
)
def test_exit_codes_say_what_became_of_the_money(error: requests.RequestException, paid: bool, code: Exit) -> None:
    """A script that reads 'refused' where a payment is pending buys somewhere else, and pays twice."""
    assert exit_for(error, paid=paid) == code


# get: --dry-run and --json


def test_a_dry_run_tells_the_price_and_pays_nothing(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The price is to be known before there is a node to pay it."""
    assert command("get", paywall.url, "--dry-run", **NO_NODE) == 0
    assert command.out.decode().splitlines()[:3] == [
        "price         10 sat",
        "routing       at most 10 sat",
        "budget        10 sat, before routing",
    ]
    assert command("get", paywall.url, "--dry-run", "--json") == 0
    assert (command.json["quote"]["amountMsat"], command.json["error"]) == (10_000, None)
    assert command("get", paywall.url_for("/free"), "--dry-run") == 0
    assert command.err.startswith(b"HTTP 200 OK; free")
    assert lnd.calls["SendPaymentV2"] == 0
    assert books.rows == []


def test_a_dry_run_says_which_scheme_would_be_paid(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """A charge opens one request, a token many: the same price buys something else."""
    with Paywall(lnd, scheme="Payment") as charges:
        for shop, scheme in ((paywall, "L402"), (charges, "Payment")):
            assert command("get", shop.url, "--dry-run", **NO_NODE) == 0
            assert f"\nscheme        {scheme}" in command.out.decode()
            assert command("get", shop.url, "--dry-run", "--json", **NO_NODE) == 0
            assert command.json["quote"]["scheme"] == scheme


def test_a_dry_run_carries_no_unfinished_payment_on(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The order would be sent again, and money would move in a dry run."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    lnd.clear_faults()
    before, calls = books.rows, lnd.calls
    assert command("get", paywall.url, "--dry-run") == 5
    assert (lnd.calls, lnd.payments) == (calls, [])
    assert books.rows == before


def test_json_tells_the_whole_outcome(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """Programs read this; a body that isn't text has to survive it."""
    lnd.fee_msat = 1_000
    paywall.respond = lambda request: (200, {"X-A": "b"}, b"\xff\x00" if request.path == "/bin" else "grün".encode())
    assert command("get", paywall.url, "--json") == 0
    told = command.json
    assert (told["url"], told["status"], told["headers"]["X-A"]) == (paywall.url, 200, "b")
    assert (told["body"], told["bodyEncoding"], told["error"], told["quote"]["amountMsat"]) == ("grün", "utf-8", None, 10_000)
    payment_hash = lnd.payments[0].payment_hash
    assert told["payment"] == {"paymentHash": payment_hash, "amountMsat": 10_000, "feeMsat": 1_000, "reused": False}
    assert told["spentMsat"] == 11_000
    assert command("get", paywall.url_for("/bin"), "--json") == 0
    assert (base64.b64decode(command.json["body"]), command.json["bodyEncoding"]) == (b"\xff\x00", "base64")
    assert (command.json["payment"]["reused"], command.json["spentMsat"]) == (True, 0)
    assert command("get", paywall.url, "--json") == 0
    assert (command.json["payment"]["reused"], command.json["spentMsat"]) == (True, 0)


def test_json_of_a_refusal_holds_no_token(command: Command, paywall: Paywall) -> None:
    """The 402's headers hold the token that is for sale; a log of this JSON mustn't (promise 6)."""
    assert command("get", paywall.url, "--json", "--max-sats", "9") == 3
    told = command.json
    assert 'macaroon="<redacted>"' in told["headers"]["WWW-Authenticate"]
    assert (told["status"], told["body"], told["payment"], told["spentMsat"]) == (402, None, None, 0)
    assert (told["error"]["code"], told["error"]["spent"]) == ("budget_exceeded", False)


def test_json_tells_of_a_page_that_breaks_off(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """A program that finds nothing on stdout wouldn't know that it has paid."""
    with broken_off(paywall) as url:
        assert command("get", url, "--json") == 6
    told = command.json
    assert (told["status"], told["body"], told["spentMsat"]) == (200, None, 10_000)
    assert (told["error"]["spent"], told["payment"]["paymentHash"]) == (True, lnd.payments[0].payment_hash)
    assert "didn't arrive whole" in told["error"]["message"]


@pytest.mark.parametrize("args", [("-X", "GET IT"), ("-X", "GÉT"), ("-H", "Ä: b"), ("-H", "A B: c")], ids=ascii)
def test_what_no_request_may_have_is_wrong_usage(command: Command, paywall: Paywall, args: Sequence[str]) -> None:
    """A traceback from deep within would be no advice, and its exit code would say that the network is at fault."""
    assert command("get", paywall.url, *args) == 2
    assert b"Traceback" not in command.err
    assert not paywall.requests


def test_a_servers_text_cannot_write_to_the_terminal(command: Command, paywall: Paywall) -> None:
    """An invoice's description may hold escape codes: it could paint over the price."""
    paywall.add_service("/evil", name="\x1b[2Jevil", price_msat=10_000)
    assert command("get", paywall.url_for("/evil"), "--dry-run") == 0
    assert b"\x1b" not in command.out
    assert b"evil" in command.out
    assert printable("a\x1b[2J\u202e\nb\u009b L402 abc:" + "0" * 64) == "a\\x1b[2J\\u202e\\nb\\x9b L402 <redacted>"


# demo
