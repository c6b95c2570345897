"""Measure what a purchase costs, beside a bare loop of `requests` and grpcio, and beside other libraries.

    python -m benchmarks.purchase [--node fake|lnd] [--peers FOLDER | --install-peers] [--only TEXT] [--check]

Three kinds of purchase: *warm*, with a session that has bought before; *cold*, with a new client, ledger and session, whose
construction counts; and a *fresh process* that imports, buys one page, closes and ends. Each library has an interpreter of its own
(`benchmarks.buyers`), and so have the node and the server (`benchmarks.shop`); while one library buys, the others wait. On ``lnd``
each purchase starts at a random moment: back to back, purchases fall in step with the tick of 50 ms at which lnd commits updates of
its channels, and the slower ones would seem as fast as the fastest.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from platformdirs import user_cache_path

from benchmarks import measure
from benchmarks.measure import Figure, Goal
from benchmarks.shop import open_shop

ROOT = Path(__file__).parent.parent
PEERS = {"routeweiler": "0.1.2", "l402-requests": "0.9.0", "l402sdk": "0.1.0"}
KINDS = ["warm", "cold", "fresh process"]
#: Rounds of each kind.
SIZES = {
    "fake": {"full": (100, 60, 15), "short": (40, 20, 5), "tiny": (2, 2, 1)},
    "lnd": {"full": (25, 30, 6), "short": (12, 20, 4), "tiny": (2, 2, 1)},
}
WARM_UP = 3
#: Longer than lnd's tick, which is 50 ms.
RANDOM_PAUSE_S = 0.1
TIMEOUT_S = 120
GOALS = {
    ("fake", "warm", "bare loop"): Goal(of="difference", most=5.0),
    ("lnd", "cold", "bare loop"): Goal(of="ratio", most=1.05),
    **{("lnd", "cold", peer): Goal(of="ratio", most=1.0) for peer in PEERS},
}


class Worker:
    """A running `benchmarks.buyers`, with one library."""

    def __init__(self, name: str, python: str, shop_file: Path, cpu: bool = False) -> None:
        self.name = name
        self.command = [python, "-m", "benchmarks.buyers", name, str(shop_file)]
        arguments = [*self.command, "serve", *(["cpu"] if cpu else [])]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())

    def buy(self, kind: str, url: str) -> float:
        """Buy one page. Return the seconds that it took."""
        if kind == "fresh process":
            began_s = time.perf_counter()
            subprocess.run([*self.command, "once", url], check=True, timeout=TIMEOUT_S, env=environment())
            return time.perf_counter() - began_s
        self.order(f"{kind} {url}")
        return self.answer()

    def order(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Wait for the answer to the line that was sent."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}: see above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=TIMEOUT_S)


def environment() -> dict[str, str]:
    """Return the environment of a buyer: as here, but compiled modules are kept, as everywhere."""
    here = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    return {**here, "PYTHONPATH": str(ROOT)}


# -- the peers ------------------------------------------------------------------------------------------------------------


def peers_folder(given: Path | None, install: bool) -> Path:
    """Return the virtual environment of the peers, and make it first if ``install``."""
    folder = given or user_cache_path("routeweiler-sync-benchmarks") / "peers"
    if install and not peers_python(folder).exists():
        print(f"installing {', '.join(PEERS)}")
        venv.create(folder, with_pip=True)
        wanted = [f"{name}=={version}" for name, version in PEERS.items()]
        subprocess.run([peers_python(folder), "-m", "pip", "install", "-q", *wanted], check=True)
    return folder


def peers_python(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def installed_peers(folder: Path) -> tuple[list[str], list[str]]:
    """Return the peers that ``folder`` has in the wanted version, and why each of the others is left out."""
    python = peers_python(folder)
    if not python.exists():
        return [], [f"Left out: {', '.join(PEERS)}. They aren't installed; --install-peers does it."]
    here, notes = [], []
    for name, version in PEERS.items():
        asked = [str(python), "-c", f"from importlib.metadata import version; print(version({name!r}))"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=False).stdout.strip()
        if found == version:
            here.append(name)
        else:
            notes.append(f"Left out: {name}. The version here is {found or 'none'}, the wanted one {version}.")
    return here, notes


# -- the measurement ------------------------------------------------------------------------------------------------------


def purchases(workers: Sequence[Worker], kind: str, urls: Iterator[str], rounds: int, pause_s: float) -> dict[str, list[float]]:
    """Let all ``workers`` buy in turns. Return the seconds of their purchases."""
    by_name = {worker.name: worker for worker in workers}
    took: dict[str, list[float]] = defaultdict(list)
    warm_up = min(WARM_UP, rounds)
    for n, order in enumerate(measure.orders(list(by_name), rounds + warm_up)):
        for name in order:
            time.sleep(random.uniform(0, pause_s))
            took_s = by_name[name].buy(kind, next(urls))
            if n >= warm_up:
                took[name].append(took_s)
    return took


def measure_node(node: str, peers: Path, names: Sequence[str], size: str, cpu: bool, only: str) -> list[Figure]:
    """Return all figures of one kind of node."""
    figures = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="purchase-")))
        shop = stack.enter_context(open_shop(node))
        urls = map(shop.url, count())
        file = shop.write(folder / "shop.json")
        workers = []
        for name in [measure.OURS, "bare loop", *names]:
            python = str(peers_python(peers)) if name in PEERS else sys.executable
            workers.append(stack.enter_context(contextlib.closing(Worker(name, python, file, cpu))))
        for kind, rounds in zip(KINDS, SIZES[node][size], strict=True):
            if only not in kind:
                continue
            took = purchases(workers, kind, urls, rounds, RANDOM_PAUSE_S if node == "lnd" else 0.0)
            title = f"{kind} purchase" if kind != "fresh process" else kind
            for name in ["bare loop", *names]:
                goal = GOALS.get((node, kind, name))
                theirs = f"{name} {PEERS[name]}" if name in PEERS else name
                figures.append(measure.compare(title, took[measure.OURS], took[name], against=theirs, unit="ms", goal=goal))
    return figures


def can_have_lnd() -> bool:
    """Build lnd, btcd and aperture if need be. Return False where that can't be done."""
    from tests.regtest.build import BuildError, binaries

    try:
        binaries()
    except BuildError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__, cpu=True)
    parser.add_argument("--node", choices=["fake", "lnd"], default="fake")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="a virtual environment that has the other libraries")
    parser.add_argument("--install-peers", action="store_true", help="make this environment first, if it isn't there")
    parser.add_argument("--only", default="", help="measure only the kinds of purchase whose name contains this text")
    given = parser.parse_args(arguments)
    benchmark = "purchase" if given.node == "fake" else "purchase_lnd"
    if given.node == "lnd" and not can_have_lnd():
        return measure.finish(benchmark, given, [], ["Not measured: lnd isn't built here (python -m tests.regtest.build)."])
    peers = peers_folder(given.peers, given.install_peers)
    names, notes = installed_peers(peers)
    figures = measure_node(given.node, peers, names, given.size, given.cpu, given.only)
    return measure.finish(benchmark, given, figures, notes)


if __name__ == "__main__":
    sys.exit(main())
