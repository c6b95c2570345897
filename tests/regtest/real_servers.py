"""Servers of L402 that others wrote, run as processes on 127.0.0.1 with invoices of a real lnd, and the walk that buys from each.

Knows which servers there are, how each is started, and what a session should pay there at each step. How they are installed is told
in `server_builds`. What each sells is in `servers/`.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routeweiler_sync import BudgetEnvelope, Funding, Ledger, LndClient, PaymentState, Routeweiler

from .processes import CommandError, Daemon, Keeper, free_port, wait_for
from .server_builds import SERVERS, Runtimes
from .wire import Exchange, Wire
from .world import World

NETWORK = "bitcoin-regtest"
#: By all the rules that offer a token before one is bought.
REQUESTS_MOST = 8
LATER_S = 25 * 3600
BODY = {"question": "what is for sale?", "pages": [1, 2]}

#: What is done in each walk, in this order, by one session; the last step is another session with the same ledger.
STEPS = (
    "GET",
    "again",
    "another path",
    "POST",
    "used up or expired",
    "new key",
    "new session",
)


def package_of(name: str, script: str) -> str:
    """Return the name and the version of a package that a script runs, as pinned."""
    if script.endswith(".js"):
        pinned = str(json.loads((SERVERS / "package.json").read_text())["dependencies"][name])
        package, _, version = pinned.removeprefix("npm:").rpartition("@")
        return f"{package or name} {version} (npm)"
    found = re.search(rf"^{name}==(\S+)$", (SERVERS / "requirements.txt").read_text(), re.MULTILINE)
    assert found, f"{name} isn't pinned"
    return f"{name} {found[1]} (PyPI)"


@dataclass(frozen=True, kw_only=True, slots=True)
class RealServer:
    """A server, and what a session should pay there.

    `payments` has one number for each of STEPS. `expires`: tokens live for a time, so the fifth step comes a day later. Else it is
    one more call. `pays`: a call ends with 200. Else the server's 402 is returned as it came.
    """

    name: str
    script: str
    tokens: str
    refuses: str
    payments: Sequence[int]
    why: str
    expires: bool = False
    pays: bool = True

    @property
    def package(self) -> str:
        """Its name and version, as pinned."""
        return package_of(self.name, self.script)


REAL_SERVERS = (
    RealServer(
        name="l402kit",
        script="l402kit_server.py",
        tokens="one use, any page",
        refuses="used: 401, no challenge; bad: 402, a new challenge",
        payments=(1, 1, 1, 1, 1, 0, 0),
        why="a token serves once, so each call is a purchase; restarted, the server has forgotten which were used, and takes them",
    ),
    RealServer(
        name="pylsat",
        script="pylsat_server.py",
        tokens="one use, any page",
        refuses="403, no challenge",
        payments=(1, 1, 1, 1, 1, 1, 1),
        why="a token serves once, so each call is a purchase",
    ),
    RealServer(
        name="lightning-toll",
        script="lightning_toll_server.py",
        tokens="one path and method, an hour",
        refuses="401, no challenge",
        payments=(1, 0, 1, 1, 1, 1, 0),
        why="path and method are written into the token; expiry and a new key end it",
        expires=True,
    ),
    RealServer(
        name="bolthub",
        script="bolthub_server.py",
        tokens="the whole server, 15 minutes",
        refuses="402, a new challenge",
        payments=(1, 0, 0, 0, 1, 1, 0),
        why="one token opens all, until it expires or the key is changed",
        expires=True,
    ),
    RealServer(
        name="boltwall",
        script="boltwall_server.js",
        tokens="the whole server, as long as was paid for",
        refuses="401, no challenge",
        payments=(1, 0, 0, 0, 1, 1, 0),
        why="one token opens all, until it expires or the key is changed",
        expires=True,
    ),
    RealServer(
        name="next-l402",
        script="next_l402_server.js",
        tokens="the whole server, for ever",
        refuses="402, a new challenge",
        payments=(1, 0, 0, 0, 0, 1, 0),
        why="one token opens all; its expiry of a day is written into it, and not checked",
        expires=True,
    ),
    RealServer(
        name="discourse-toll",
        script="discourse_toll_server.py",
        tokens="one path and method, ten minutes",
        refuses="401, no challenge",
        payments=(0, 0, 0, 0, 0, 0, 0),
        why="its challenge is in the body alone, so the 402 is returned and nothing is paid",
        expires=True,
        pays=False,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What came of one step: how many payments the payer's lnd settled, the answer or the error, and what went over the wire."""

    name: str
    payments: int
    outcome: str
    exchanges: Sequence[Exchange]

    @property
    def on_the_wire(self) -> str:
        """The statuses in order. An asterisk: a token went along."""
        return " ".join(f"{exchange.status}{'' if exchange.token is None else '*'}" for exchange in self.exchanges)


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """What came of all steps at one server."""

    server: RealServer
    steps: Sequence[Step]
    booked: frozenset[str]  #: payment hashes that are settled or retired in the ledger
    paid: frozenset[str]  #: payment hashes that lnd has settled in this walk
    tokens_elsewhere: int  #: requests with an Authorization header that another origin got
    outside: Sequence[str]  #: other machines that the server wanted to reach
    log: str


class RunningServer:
    """A server as a process. Its port stays, whatever its key and its clock."""

    def __init__(
        self, name: str, script: str, runtimes: Runtimes, world: World, keeper: Keeper, settings: Mapping[str, object] | None = None
    ) -> None:
        """``settings`` are variables of its environment; they may be changed, and hold from the next start."""
        self.port = free_port()
        self.settings = dict(settings or {})
        self._name, self._script, self._runtimes, self._world = name, script, runtimes, world
        self._key, self._ahead_s = secrets.token_hex(32), 0
        self.daemon = Daemon(name, [], keeper=keeper)

    def start(self) -> None:
        payee, runtimes = self._world.payee, self._runtimes
        script = SERVERS / self._script
        if script.suffix == ".js":
            program = [runtimes.node, "--require", SERVERS / "guard.js", script]
        else:
            program = [runtimes.python, "-B", script]
        environment = {
            "SERVER_PORT": self.port,
            "SERVER_KEY": self._key,
            "SERVER_CLOCK_AHEAD_S": self._ahead_s,
            "LND_REST": f"https://{payee.rest_address}",
            "LND_GRPC": payee.grpc_address,
            "LND_CERT": payee.tls_cert_path,
            "LND_MACAROON": payee.macaroon_path("invoice"),
            "NODE_EXTRA_CA_CERTS": payee.tls_cert_path,
            "NODE_PATH": f"{runtimes.node_modules}:{SERVERS / 'node_stand_ins'}",
            **self.settings,
        }
        settings = [f"{name}={value}" for name, value in environment.items()]
        self.daemon.argv = ["env", "-u", "PYTHONPATH", *settings, *map(str, program)]
        self.daemon.start()
        wait_for(f"{self._name} listens", self._listens, watched=[self.daemon])

    def restart(self, *, new_key: bool = False, later_s: int = 0) -> None:
        """End it and start it, with a new key or with a clock that is ahead."""
        self.daemon.stop()
        if new_key:
            self._key = secrets.token_hex(32)
        self._ahead_s += later_s
        self.start()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError as error:
            raise CommandError(type(error).__name__) from error
        return True


def walk(server: RealServer, runtimes: Runtimes, world: World, folder: Path) -> Walk:
    """Start the server, buy from it in seven steps, and return what came of them. The ledger is in `folder`, which is empty."""
    keeper = Keeper()
    running = RunningServer(server.name, server.script, runtimes, world, keeper)
    try:
        running.start()
        with Wire(running.port) as wire, Wire(None) as elsewhere:
            before = _settled(world)
            steps = _Walker(server, running, world, folder, wire, elsewhere).steps()
            paid = _settled(world) - before
        text = running.daemon.log.read_text(errors="replace")
        return Walk(
            server=server,
            steps=steps,
            booked=_booked(folder),
            paid=paid,
            tokens_elsewhere=sum(exchange.token is not None for exchange in elsewhere.exchanges),
            outside=[line for line in text.splitlines() if line.startswith("OUTSIDE")],
            log=running.daemon.tail(),
        )
    finally:
        running.daemon.kill()
        keeper.close()


class _Walker:
    def __init__(self, server: RealServer, running: RunningServer, world: World, folder: Path, wire: Wire, elsewhere: Wire) -> None:
        self._server, self._running, self._world, self._folder = server, running, world, folder
        self._wire, self._elsewhere = wire, elsewhere
        self._settled = _settled(world)

    def steps(self) -> list[Step]:
        done: list[Step] = []
        with self._session() as session:
            acts: list[Callable[[], Step]] = [
                lambda: self._step(session, "GET", "/a"),
                lambda: self._step(session, "GET", "/a"),
                lambda: self._step(session, "GET", "/b"),
                lambda: self._step(session, "POST", "/a"),
                lambda: self._later(session),
                lambda: self._with_new_key(session),
            ]
            for name, act in zip(STEPS, acts, strict=False):
                done.append(self._named(name, act()))
            session.get(f"{self._elsewhere.url}/a")
        with self._session() as session:
            done.append(self._named(STEPS[-1], self._step(session, "GET", "/a")))
            session.get(f"{self._elsewhere.url}/a")
        return done

    def _named(self, name: str, step: Step) -> Step:
        return Step(name=name, payments=step.payments, outcome=step.outcome, exchanges=step.exchanges)

    def _later(self, session: Routeweiler) -> Step:
        if self._server.expires:
            self._running.restart(later_s=LATER_S)
        return self._step(session, "GET", "/a")

    def _with_new_key(self, session: Routeweiler) -> Step:
        self._running.restart(new_key=True)
        return self._step(session, "GET", "/a")

    def _step(self, session: Routeweiler, method: str, path: str) -> Step:
        before, seen = self._settled, len(self._wire.exchanges)
        try:
            answer = session.request(method, self._wire.url + path, json=BODY if method == "POST" else None)
        except Exception as error:  # whatever the core says is what came of the step
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = str(answer.status_code)
            if answer.status_code == 200:
                outcome += _difference(answer.json(), method, path)
        self._settled = _settled(self._world)
        return Step(
            name="",
            payments=len(self._settled - before),
            outcome=outcome,
            exchanges=tuple(self._wire.exchanges[seen:]),
        )

    @contextmanager
    def _session(self) -> Iterator[Routeweiler]:
        payer = self._world.payer
        client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(), tls_cert_path=payer.tls_cert_path)
        with (
            closing(client),
            Routeweiler(
                funding=[Funding.lightning_lnd(client=client, network=NETWORK)],
                ledger=self._folder / "ledger.db",
                budget_envelope=BudgetEnvelope("servers", per_call_minor_units=100, cap_minor_units=10_000),
            ) as session,
        ):
            yield session


def _difference(page: dict[str, Any], method: str, path: str) -> str:
    """Return what is wrong with a page that was bought, nothing where it is the right one."""
    body = json.loads(page["body"]) if page["body"] else None
    right = (page["method"], page["path"], body) == (method, path, BODY if method == "POST" else None)
    return "" if right else f", but the page is of {page}"


def _settled(world: World) -> frozenset[str]:
    return frozenset(payment["payment_hash"] for payment in world.payer.list_payments() if payment["status"] == "SUCCEEDED")


def _booked(folder: Path) -> frozenset[str]:
    path = folder / "ledger.db"
    if not path.exists():
        return frozenset()  # nothing was ever asked of it
    ledger = Ledger.open(path)
    try:
        rows = list(ledger.payments())
    finally:
        ledger.close()
    return frozenset(row.payment_hash for row in rows if row.state in (PaymentState.SETTLED, PaymentState.RETIRED))
