"""Measure what traffic without a 402, and the import, cost compared with `requests` itself.

    python -m benchmarks.free_traffic [--requests N] [--imports N] [--only TEXT] [--check 1.03 1.10] [--instructions]

A `Routeweiler` and a `requests.Session` fetch the same page in turns; which of them is first changes each time. Connections stay
open, the server has a process of its own and answers in one segment, and both sessions are made anew several times. The output has
the medians and their ratio, with the interval that holds the ratio in 95 of 100 resamples (bootstrap, of pairs of sessions and then
of their pairs of requests). ``import routeweiler_sync`` and ``import requests`` take turns too, each in a fresh interpreter that
counts only the processor time of its import. ``--check`` exits 1 if a ratio of traffic is above the first number, or that of the
import above the second. ``--instructions`` counts the instructions that the processor executes, by valgrind: load on the machine
doesn't change them, but the kernel's work isn't counted, so the share of this package looks too large.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import requests
from requests.adapters import HTTPAdapter

from routeweiler_sync import Ledger, Routeweiler, payment_of
from routeweiler_sync._core.urls import origin_of
from routeweiler_sync.ledger.types import Change, Intent, PaymentState
from routeweiler_sync.protocol.l402.credential import authorization

WARM_UP = 100
#: Pairs of sessions for a case. Where its buffers lie in memory makes one session faster than an equal one by a percent or two.
SESSIONS = 10
RESAMPLES = 1_000
STORED_TOKENS = 1_000
PATH = "/page"
PREIMAGE = b"\x07" * 32
TOKEN = "AgEEbHNhdA" + "t" * 310  # as long as a real one with three caveats
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'
#: Requests in a short and a long run. One request's instructions come from the difference, so the cost of starting drops out.
COUNTED = (100, 400)
TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The median seconds of this package (``ours_s``) and of `requests` (``theirs_s``), and the interval around their ratio."""

    name: str
    ours_s: float
    theirs_s: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """How many times what `requests` costs this package costs."""
        return self.ours_s / self.theirs_s

    @classmethod
    def of(cls, name: str, blocks: Sequence[Sequence[tuple[float, float]]]) -> Figure:
        """Return the figure for ``blocks`` of pairs of seconds (ours, theirs). A block has the pairs of the same two sessions.

        The two of a pair were measured right after each other, so that load on the machine slowed both.
        """
        chance = random.Random(1)
        ratios = []
        for _ in range(RESAMPLES):
            drawn = [pair for block in chance.choices(blocks, k=len(blocks)) for pair in chance.choices(block, k=len(block))]
            ratios.append(_medians(drawn)[0] / _medians(drawn)[1])
        ratios.sort()
        ours_s, theirs_s = _medians([pair for block in blocks for pair in block])
        low, high = ratios[RESAMPLES * 25 // 1000], ratios[RESAMPLES * 975 // 1000]
        return cls(name=name, ours_s=ours_s, theirs_s=theirs_s, low=low, high=high)


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    ours_s, theirs_s = zip(*pairs, strict=True)
    return median(ours_s), median(theirs_s)


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

    def check(self, answer: requests.Response) -> None:
        """Check that ``answer``, of the paying session, is the page, and that a token went along if the case says so."""
        payment = payment_of(answer)
        assert answer.status_code == 200
        assert payment is not None and payment.reused if self.token_goes_along else payment is None


CASES = [
    Case(name="no ledger yet"),
    Case(name="1,000 tokens of other origins", fill=tokens_of_others),
    Case(name="a foreign adapter mounted", ours=with_foreign_adapter),
    Case(name="a stored token goes along", fill=token_of_page, theirs=plain_with_credential, token_goes_along=True),
]

# -- time -----------------------------------------------------------------------------------------------------------------


def traffic(case: Case, url: str, folder: Path, rounds: int) -> Figure:
    """Measure one case: ``rounds`` pairs of requests, spread over `SESSIONS` pairs of sessions."""
    ledger = folder / f"{CASES.index(case)}.db"
    case.fill(ledger, url)
    return Figure.of(case.name, [block(case, url, ledger, number, rounds // SESSIONS) for number in range(SESSIONS)])


def block(case: Case, url: str, ledger: Path, number: int, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds (ours, theirs) of ``rounds`` pairs of requests, all of the same two sessions."""
    took: tuple[list[float], list[float]] = ([], [])
    with contextlib.ExitStack() as stack:
        makers = (case.ours, case.theirs)
        made = {side: stack.enter_context(makers[side](ledger)) for side in ((0, 1) if number % 2 else (1, 0))}
        gets = (made[0].get, made[1].get)
        case.check(gets[0](url))
        for n in range(WARM_UP):
            gets[n % 2](url)
        gc.collect()
        clock = time.perf_counter
        for n in range(rounds):
            for side in (0, 1) if n % 2 else (1, 0):
                get = gets[side]
                began_s = clock()
                get(url)
                took[side].append(clock() - began_s)
        case.check(gets[0](url))
    return list(zip(*took, strict=True))


def imports(rounds: int) -> Figure:
    """Measure the two imports ``rounds`` times, each in a fresh interpreter that takes the time itself."""
    took: dict[str, list[float]] = {"routeweiler_sync": [], "requests": []}
    for n in range(rounds + 1):
        for name in sorted(took, reverse=bool(n % 2)):
            timed = f"from time import process_time; t = process_time(); import {name}; print(process_time() - t)"
            done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
            if n:  # the first may have compiled
                took[name].append(float(done.stdout))
    return Figure.of("import", [[pair] for pair in zip(took["routeweiler_sync"], took["requests"], strict=True)])


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
    """Run the benchmark. Return the exit code: 1 if a ratio is above ``--check``."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--requests", type=int, default=5_000, help="pairs of requests in each case")
    parser.add_argument("--imports", type=int, default=50, help="pairs of imports; 0 for none")
    parser.add_argument("--only", default="", help="run only the cases whose name contains this text")
    parser.add_argument("--check", type=float, nargs=2, metavar=("TRAFFIC", "IMPORT"), help="exit 1 if a ratio is above its number")
    parser.add_argument("--instructions", action="store_true", help="also count instructions, with valgrind")
    parser.add_argument("--repeat", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.repeat:
        number, side, url, ledger, times = given.repeat
        repeat(int(number), side, url, Path(ledger), int(times))
        return 0
    chosen = [case for case in CASES if given.only in case.name]
    figures: list[tuple[Figure, float | None]] = []
    traffic_max, import_max = given.check or (None, None)
    print(f"{'':32}{'ours':>12}{'requests':>14}{'ratio':>8}   95 % of resamples")
    with tempfile.TemporaryDirectory(prefix="free-traffic-") as folder, server() as url:
        for case in chosen:
            figures.append((traffic(case, url, Path(folder), given.requests), traffic_max))
            show(figures[-1][0])
        if given.imports:
            figures.append((imports(given.imports), import_max))
            show(figures[-1][0])
        if given.instructions:
            count_instructions(chosen, url, Path(folder))
    too_dear = [figure for figure, most in figures if most is not None and figure.ratio > most]
    for figure in too_dear:
        print(f"{figure.name}: {figure.ratio:.3f} times the cost with requests is too much", file=sys.stderr)
    return int(bool(too_dear))


def show(figure: Figure) -> None:
    """Print one line of the table."""
    ours_us, theirs_us = f"{figure.ours_s * 1e6:,.0f} us", f"{figure.theirs_s * 1e6:,.0f} us"
    print(f"{figure.name:32}{ours_us:>12}{theirs_us:>14}{figure.ratio:8.3f}   {figure.low:.3f} to {figure.high:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
