"""Measure what traffic without a 402, and the import, cost compared with `requests` itself.

    python -m benchmarks.free_traffic [--requests N] [--imports N] [--only TEXT] [--check] [--instructions]

A `Routeweiler` and a `requests.Session` fetch the same page in turns. Connections stay open, the server has a process of its own
and answers in one segment. Both sessions are made anew for each block (see `benchmarks.measure` for the arithmetic). ``import
routeweiler_sync`` and ``import requests`` take turns too, each in a fresh interpreter that counts only the processor time of its
import. ``--instructions`` counts the instructions that the processor executes, by valgrind: load on the machine doesn't change
them, but the kernel's work isn't counted, so the share of this package looks too large.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from benchmarks import measure
from benchmarks.measure import Figure, Goal
from routeweiler_sync import Ledger, Routeweiler, payment_of
from routeweiler_sync._core.urls import origin_of
from routeweiler_sync.ledger.types import Change, Intent, PaymentState
from routeweiler_sync.protocol.l402.credential import authorization

WARM_UP = 50
#: Pairs of sessions for a case (each is a block), pairs of requests in each, and pairs of imports.
SIZES = {"full": (20, 300, 40), "short": (20, 100, 20), "tiny": (2, 5, 2)}
STORED_TOKENS = 1_000
PATH = "/page"
PREIMAGE = b"\x07" * 32
TOKEN = "AgEEbHNhdA" + "t" * 310  # as long as a real one with three caveats
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'
#: Requests in a short and a long run. One request's instructions come from the difference, so the cost of starting drops out.
COUNTED = (100, 400)
TIMEOUT_S = 900


# -- the server -----------------------------------------------------------------------------------------------------------


def serve(port_sender: Connection) -> None:
    """Answer each request at once with the same bytes, until the parent ends the process. Send the port to ``port_sender``."""

    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            if received.endswith(b"\r\n\r\n"):
                connection.sendall(ANSWER)
                received = b""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port_sender.send(listener.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run `serve` in a process of its own, and yield the URL of its page."""
    spawn = multiprocessing.get_context("spawn")
    port_receiver, port_sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(port_sender,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port_receiver.recv()}{PATH}"
    finally:
        process.kill()
        process.join()


# -- the cases ------------------------------------------------------------------------------------------------------------


def ours(ledger: Path) -> Routeweiler:
    """Return a `Routeweiler` with its defaults."""
    return Routeweiler(ledger=ledger)


def with_foreign_adapter(ledger: Path) -> Routeweiler:
    """Return a `Routeweiler` with an `HTTPAdapter` mounted in place of the `PaywallAdapter`, as many programs mount one."""
    session = ours(ledger)
    session.mount("http://", HTTPAdapter())
    return session


def plain(ledger: Path) -> requests.Session:
    """Return a session of `requests`."""
    return requests.Session()


def plain_with_credential(ledger: Path) -> requests.Session:
    """Return a session of `requests` that sends the token, as a user who has bought it elsewhere would do."""
    session = requests.Session()
    session.headers["Authorization"] = authorization("L402", TOKEN, PREIMAGE)
    return session


def no_tokens(ledger: Path, url: str) -> None:
    """Make no ledger: nothing has ever been paid."""


def tokens_of_others(ledger: Path, url: str) -> None:
    """Make a ledger with `STORED_TOKENS` live tokens, each for another origin, none for that of ``url``."""
    store(ledger, [f"https://api-{n}.example" for n in range(STORED_TOKENS)])


def token_of_page(ledger: Path, url: str) -> None:
    """Make a ledger with a live token for the page ``url``, which was accepted and reported before."""
    store(ledger, [origin_of(url)])


def store(ledger: Path, origins: Sequence[str]) -> None:
    """Book a payment for each origin in ``ledger``, as a purchase does."""
    with contextlib.closing(Ledger.open(ledger)) as opened:
        for n, origin in enumerate(origins):
            preimage = PREIMAGE if n == 0 else n.to_bytes(32, "big")
            payment_hash = hashlib.sha256(preimage).hexdigest()
            intent = Intent(
                payment_hash=payment_hash,
                origin=origin,
                scope="services=page:0",
                path=PATH,
                node_pubkey="02" * 33,
                network="bitcoin-regtest",
                bolt11="l" * 300,
                scheme="L402",
                token=TOKEN,
                amount_msat=10_000,
                fee_cap_msat=1_000,
                resource_digest="0" * 32,
            )
            opened.open_payment(intent, None)
            settled = Change(state=PaymentState.SETTLED, answered=1, preimage=preimage, fee_msat=0)
            opened.change(payment_hash, lambda row, settled=settled: settled)  # type: ignore[misc]
            opened.mark(payment_hash, accepted=True, reported=True)
            opened.learn(origin, PATH, intent.scope)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the ledger holds (``fill``), and which two kinds of session are compared (``ours``, ``theirs``)."""

    name: str
    fill: Callable[[Path, str], None] = no_tokens
    ours: Callable[[Path], requests.Session] = ours
    theirs: Callable[[Path], requests.Session] = plain
    token_goes_along: bool = False
    goal: Goal | None = None

    def check(self, answer: requests.Response) -> None:
        """Check that ``answer``, of the paying session, is the page, and that a token went along if the case says so."""
        payment = payment_of(answer)
        assert answer.status_code == 200
        assert payment is not None and payment.reused if self.token_goes_along else payment is None


NO_DEARER = Goal(of="ratio", most=1.00)
CASES = [
    Case(name="no ledger yet", goal=NO_DEARER),
    Case(name="1,000 tokens of other origins", fill=tokens_of_others, goal=NO_DEARER),
    Case(name="a foreign adapter mounted", ours=with_foreign_adapter, goal=NO_DEARER),
    Case(
        name="a stored token goes along",
        fill=token_of_page,
        theirs=plain_with_credential,
        token_goes_along=True,
        goal=Goal(of="ratio", most=1.05),
    ),
]

# -- time -----------------------------------------------------------------------------------------------------------------


def traffic(case: Case, url: str, folder: Path, sessions: int, rounds: int, clock: Callable[[], float]) -> Figure:
    """Measure one case with ``sessions`` pairs of sessions, and ``rounds`` pairs of requests of each."""
    ledger = folder / f"{CASES.index(case)}.db"
    case.fill(ledger, url)
    took: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(sessions):
        for side, seconds in enumerate(block(case, url, ledger, number, rounds, clock)):
            took[side].append(seconds)
    return measure.compare(case.name, *took, against="requests", goal=case.goal)


def block(
    case: Case, url: str, ledger: Path, number: int, rounds: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Return the seconds of ``rounds`` requests by ours and by theirs, all of the same two sessions."""
    with contextlib.ExitStack() as stack:
        makers = {"ours": case.ours, "theirs": case.theirs}
        made = {side: stack.enter_context(makers[side](ledger)) for side in sorted(makers, reverse=bool(number % 2))}
        case.check(made["ours"].get(url))
        gets = {side: partial(session.get, url) for side, session in made.items()}
        took = measure.in_turns(gets, rounds, warm_up=min(WARM_UP, rounds), clock=clock)
        case.check(made["ours"].get(url))
    return took["ours"], took["theirs"]


def imports(rounds: int, folder: Path) -> Figure:
    """Measure the two imports ``rounds`` times, each in a fresh interpreter that takes the time itself.

    Compiled modules are kept in ``folder``, also where the environment forbids that.
    """
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    took: dict[str, list[float]] = {measure.OURS: [], "requests": []}
    for n, order in enumerate(measure.orders(list(took), rounds + 1)):
        for name in order:
            timed = f"from time import process_time; t = process_time(); import {name}; print(process_time() - t)"
            command = [sys.executable, "-c", timed]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=environ)
            if n:  # the first has compiled
                took[name].append(float(done.stdout))
    return measure.compare("import", *took.values(), against="requests", unit="ms", goal=Goal(of="ratio", most=1.05))


# -- instructions ---------------------------------------------------------------------------------------------------------


def repeat(number: int, side: str, url: str, ledger: Path, times: int) -> None:
    """Send ``times`` requests by one side of a case (``ours`` or ``theirs``). This is what valgrind runs."""
    case = CASES[number]
    with (case.ours if side == "ours" else case.theirs)(ledger) as session:
        for _ in range(times):
            session.get(url)


def instructions_of(program: Sequence[str]) -> int:
    """Return how many instructions python executes for ``program``, its arguments."""
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={os.devnull}", sys.executable]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([*valgrind, *program], env=environ, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", ""))


def count_instructions(chosen: Sequence[Case], url: str, folder: Path) -> None:
    """Print the instructions of a request and of the import, with this package and with `requests`."""
    if shutil.which("valgrind") is None:
        raise SystemExit("--instructions needs valgrind")

    def of_request(number: int, side: str, ledger: Path) -> float:
        short, long = (
            instructions_of(["-m", "benchmarks.free_traffic", "--repeat", str(number), side, url, str(ledger), str(times)])
            for times in COUNTED
        )
        return (long - short) / (COUNTED[1] - COUNTED[0])

    print(f"\n{'instructions':32}{'ours':>12}{'requests':>14}{'ratio':>8}")
    for case in chosen:
        number = CASES.index(case)
        ledger = folder / f"counted-{number}.db"
        case.fill(ledger, url)
        own, plain_ones = of_request(number, "ours", ledger), of_request(number, "theirs", ledger)
        print(f"{case.name:32}{own:12,.0f}{plain_ones:14,.0f}{own / plain_ones:8.3f}")
    bare, own, plain_ones = (instructions_of(["-c", text]) for text in ("pass", "import routeweiler_sync", "import requests"))
    print(f"{'import':32}{own - bare:12,.0f}{plain_ones - bare:14,.0f}{(own - bare) / (plain_ones - bare):8.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__, cpu=True)
    parser.add_argument("--requests", type=int, help="pairs of requests in each case, spread over the sessions")
    parser.add_argument("--imports", type=int, help="pairs of imports; 0 for none")
    parser.add_argument("--only", default="", help="run only the cases whose name contains this text")
    parser.add_argument("--instructions", action="store_true", help="also count instructions, with valgrind")
    parser.add_argument("--repeat", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.repeat:
        number, side, url, ledger, times = given.repeat
        repeat(int(number), side, url, Path(ledger), int(times))
        return 0
    sessions, rounds, import_rounds = SIZES[given.size]
    if given.requests:
        rounds = max(given.requests // sessions, 1)
    if given.imports is not None:
        import_rounds = given.imports
    chosen = [case for case in CASES if given.only in case.name]
    with tempfile.TemporaryDirectory(prefix="free-traffic-") as folder, server() as url:
        figures = [traffic(case, url, Path(folder), sessions, rounds, measure.clock_of(given)) for case in chosen]
        if import_rounds:
            figures.append(imports(import_rounds, Path(folder)))
        if given.instructions:
            count_instructions(chosen, url, Path(folder))
    return measure.finish("free_traffic", given, figures)


if __name__ == "__main__":
    sys.exit(main())
