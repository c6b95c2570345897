"""A fleet on one PostgreSQL ledger, half of it on a second node, under random load at its budgets' limits, while things go wrong.

    python -m tests.torture.fleet --processes 16 --seconds 120 --seed 1

Workers are processes, killed -9 and replaced at random instants; streams drop, payments hang, fail, arrive late; nodes restart,
walls refuse tokens; backends of the database are ended, its server is restarted. Then all faults end, and the fleet spends a last
budget to the millisatoshi. What is wrong is found by `fleet_judge`. Choices come from the seed, instants from the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import requests

from routeweiler_sync import BudgetEnvelope, Ledger, RouteweilerError
from routeweiler_sync.testing import FakeInvoice, FakeLnd, Paywall
from tests.postgres.server import Server

from .fleet_judge import MICRO, Judge, Reader, sats
from .fleet_worker import CLOSE, KINDS, LAST, STOP, Job, NodeAddress, session_of, work

#: One for each of `KINDS`; no sum of them is round, so that limits are met at every remainder.
PRICES_MSAT = (1_000, 7_777, 20_001, 55_000)
FEE_MSAT_MAX = 3_000
#: Which limit binds each envelope: half of the workers draw on the one, half on the other.
ENVELOPES = {"by cap": "cap_minor_units", "by hour": "per_hour_minor_units"}
FIRST_LIMIT_SAT, RAISE_SAT = 300, (100, 400)
#: A limit is raised once so little of it is left for so long.
NEAR_SAT, NEAR_FOR_S = 60, 0.5
CLOSING, CLOSING_NEEDS, CLOSING_PRICE_MSAT, CLOSING_CAP_SAT = "closing", 60, 10_000, 400
FAULT_EVERY_S = (0.02, 0.15)
HANG_S_MAX, HOLD_S_MAX = 3.0, 2.5
PAYMENT_TIMEOUT_S = (1.0, 4.0)
CLOSE_S, FINISH_S, STOP_S = 90.0, 90.0, 60.0
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Network:
    """Two nodes with ways to one payee. Each would pay an invoice that the other has paid: nothing but the ledger is in the way."""

    def __init__(self, first: FakeLnd, second: FakeLnd) -> None:
        self.nodes = (first, second)
        ours, theirs = first._book, second._book
        theirs.payee_key, theirs.payee_pubkey, theirs.invoices = ours.payee_key, ours.payee_pubkey, ours.invoices

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[Network]:
        with FakeLnd() as first, FakeLnd() as second:
            yield cls(first, second)

    def invoice(self, amount_msat: int | None, **arguments: Any) -> FakeInvoice:
        """Issued by the payee: the network is what a `Paywall` needs of a node."""
        return self.nodes[0].invoice(amount_msat, **arguments)

    def settled(self, payment_hash: bytes) -> bool:
        return any(node.settled(payment_hash) for node in self.nodes)

    @property
    def spent_msat(self) -> int:
        return sum(node.spent_msat for node in self.nodes)


def address_of(node: FakeLnd) -> NodeAddress:
    return NodeAddress(port=node.port, macaroon_path=node.macaroon_path, tls_cert_path=node.tls_cert_path)


@dataclass(kw_only=True)
class Worker:
    process: BaseProcess
    words: Connection

    def tell(self, word: str) -> None:
        with contextlib.suppress(OSError):
            self.words.send(word)


def stopped(workers: Mapping[str, Worker]) -> list[str]:
    """Let each worker end, and wait for it. Return a finding for each that didn't end well; it is killed."""
    findings = []
    for name, worker in workers.items():
        worker.tell(STOP)
        worker.process.join(STOP_S)
        if worker.process.exitcode != 0:
            findings.append(f"worker {name} ended with {worker.process.exitcode}")
            worker.process.kill()
    return findings


def carried_to_its_end(url: str, jobs: Sequence[Job], envelope: str, nodes: Sequence[FakeLnd]) -> int:
    """Carry what is left in the ledger to its end, each node its own, by sessions of ``jobs``. Return how much is left even so."""
    ledger, until_s = Ledger.open(url), time.monotonic() + FINISH_S
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(session_of(job, envelope)) for job in jobs]
        while (left := ledger.unfinished()) and time.monotonic() < until_s:
            for session, node in zip(sessions, nodes, strict=True):
                session.recover()
                for row in (each for each in ledger.unfinished() if each.node_pubkey == node.node_pubkey):
                    with contextlib.suppress(requests.RequestException):
                        session.get(row.origin + row.path)
        for session in sessions:
            session.recover()  # tells what crashes left untold
    ledger.close()
    return len(left)


class Fleet:
    """One run: `load` for as long as one likes, `close`, `finish`; then `findings` and `figures`."""

    def __init__(self, server: Server, network: Network, walls: list[Paywall], folder: Path, *, processes: int, seed: int) -> None:
        self._server, self._network, self._walls, self._folder = server, network, walls, folder
        self._dice, self._seed = random.Random(seed), seed
        self._database = server.new_database()
        self.url = server.url(self._database)
        self._context: Any = multiprocessing.get_context(START)
        if START == "forkserver":
            self._context.set_forkserver_preload(["tests.torture.fleet_worker"])
        self._began_s = time.time()
        self._limits_sat = dict.fromkeys(ENVELOPES, FIRST_LIMIT_SAT)
        self._near_since: dict[str, float] = {}
        self._repurchases: Counter[str] = Counter()
        self._later: list[tuple[float, Any]] = []
        self._workers: list[Worker] = []
        self.figures: Counter[str] = Counter()
        self.findings: list[str] = []
        for envelope in ENVELOPES:
            self._limit(envelope)
        self.reader = Reader(self.url, lambda: network.spent_msat)
        self.reader.start()
        self._workers = [self._start(n) for n in range(processes)]

    # -- workers ----------------------------------------------------------------------------------------------------------

    def _job(self, n: int, name: str, *, envelope: str | None = None, wall: str | None = None) -> Job:
        """Of worker ``n``: odd ones have the second node, and each node's draw on both envelopes."""
        walls = [each.base_url for each in self._walls]
        return Job(
            name=name,
            seed=f"{self._seed}:{name}",
            node=address_of(self._network.nodes[n % 2]),
            ledger=self.url,
            trace=str(self._folder / "trace.jsonl"),
            report=str(self._folder / "report.jsonl"),
            envelope=envelope or list(ENVELOPES)[n // 2 % 2],
            walls=tuple(walls[:-1]),
            closing_envelope=CLOSING,
            closing_wall=wall or walls[-1],
            closing_needs=CLOSING_NEEDS,
            began_s=self._began_s,
            payment_timeout_s=self._dice.uniform(*PAYMENT_TIMEOUT_S),
        )

    def _start(self, n: int, word: str = "") -> Worker:
        self.figures["workers started"] += 1
        ours, theirs = self._context.Pipe()
        job = self._job(n, f"{n}.{self.figures['workers started']}")
        process = self._context.Process(target=work, args=(job, theirs), daemon=True)
        process.start()
        worker = Worker(process=process, words=ours)
        if word:
            worker.tell(word)
        return worker

    def _replace(self, word: str = "") -> None:
        """Kill a worker, wherever it is, and start another in its place."""
        n = self._dice.randrange(len(self._workers))
        self._workers[n].process.kill()
        self._workers[n].process.join()
        self._workers[n] = self._start(n, word)

    # -- load and faults --------------------------------------------------------------------------------------------------

    def load(self, seconds: float) -> None:
        """Load at the limits, and faults; in the middle of it the database's server is restarted."""
        until_s = time.monotonic() + seconds
        restarts = [("fast", until_s - seconds / 2), ("immediate", until_s - seconds / 4)]
        while time.monotonic() < until_s:
            time.sleep(self._dice.uniform(*FAULT_EVERY_S))  # the pace of the faults; nothing is waited for
            self._fault()
            self._due(time.monotonic())
            for envelope in ENVELOPES:
                self._raise_if_near(envelope)
            if restarts and time.monotonic() > restarts[0][1]:
                self._server.stop(restarts.pop(0)[0])
                self._server.start()
                self.figures["server restarts"] += 1

    def _fault(self) -> None:
        node, wall = self._dice.choice(self._network.nodes), self._walls[1]
        faults: dict[str, tuple[int, Any]] = {
            "worker killed": (6, self._replace),
            "stream dropped": (
                8,
                lambda: node.drop_next(self._dice.choice(("before_init", "after_init", "in_flight", "after_paying"))),
            ),
            "payment hung": (9, partial(self._hang, node)),
            "payment failed": (5, lambda: node.fail_next(self._dice.choice(("NO_ROUTE", "TIMEOUT", "INSUFFICIENT_BALANCE")))),
            "order held": (4, partial(self._hold, node)),
            "node restarted": (1, node.restart),
            "fee changed": (6, lambda: setattr(node, "fee_msat", self._dice.randint(0, FEE_MSAT_MAX))),
            "tokens revoked": (2, partial(self._revoke, wall)),
            "page cut": (2, lambda: self._walls[2].cut_next(self._dice.choice(("before", "after")))),
            # not 503: two of those in one call, with a 402 between them, refuse the token, and another is bought (`server_rules`)
            "page refused": (2, lambda: self._walls[2].answer_next(429)),
            "backend ended": (3, self._end_backend),
        }
        (name,) = self._dice.choices(list(faults), weights=[weight for weight, _ in faults.values()])
        faults[name][1]()
        self.figures[name] += 1

    def _hang(self, node: FakeLnd) -> None:
        node.hang_next()
        fail = self._dice.choice((None, None, None, "TIMEOUT"))
        self._later.append((time.monotonic() + self._dice.uniform(0, HANG_S_MAX), partial(node.release, fail=fail)))

    def _hold(self, node: FakeLnd) -> None:
        node.hold_orders()
        self._later.append((time.monotonic() + self._dice.uniform(0, HOLD_S_MAX), node.deliver_orders))

    def _revoke(self, wall: Paywall) -> None:
        self._repurchases[wall.base_url] += 1  # before: whoever is refused may buy at once
        wall.revoke_tokens()

    def _end_backend(self) -> None:
        self._server.admin(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
            f"WHERE datname = '{self._database}' ORDER BY random() LIMIT 1) AS one"
        )

    def _due(self, now_s: float) -> None:
        due, self._later = [d for at, d in self._later if at <= now_s], [(at, d) for at, d in self._later if at > now_s]
        for deed in due:
            deed()

    # -- limits -----------------------------------------------------------------------------------------------------------

    def _limit(self, envelope: str) -> None:
        """Make the envelope's limit what it is to be: by a purchase of its own, as any session that brings one does."""
        limits: dict[str, Any] = {ENVELOPES[envelope]: self._limits_sat[envelope]}
        self._buy_with(BudgetEnvelope(envelope, **limits))

    def _buy_with(self, envelope: BudgetEnvelope) -> None:
        wall = self._walls[-1].base_url
        with session_of(self._job(0, "conductor"), envelope) as session, contextlib.suppress(RouteweilerError):
            session.get(f"{wall}/limit/{self.figures['limits set']}")
        self.figures["limits set"] += 1

    def _raise_if_near(self, envelope: str) -> None:
        sight = self.reader.envelopes.get(envelope)
        if sight is None or sight.left_micro > NEAR_SAT * MICRO:
            self._near_since.pop(envelope, None)
        elif time.monotonic() - self._near_since.setdefault(envelope, time.monotonic()) > NEAR_FOR_S:
            del self._near_since[envelope]
            self._limits_sat[envelope] += self._dice.randint(*RAISE_SAT)
            self._limit(envelope)

    # -- the end ----------------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """End all faults, and all that they have held up."""
        self._due(float("inf"))
        for node in self._network.nodes:
            node.clear_faults()
            node.fee_msat = 0
            node.deliver_orders()
            node.release()

    def close(self, *, kills: int = 2) -> None:
        """Equal prices, free routes: the last budget is spent exactly, though workers are still killed; then all are refused."""
        self._buy_with(BudgetEnvelope(CLOSING, cap_minor_units=CLOSING_CAP_SAT))
        for worker in self._workers:
            worker.tell(CLOSE)
        for _ in range(kills):
            self._replace(CLOSE)

        def spent() -> bool:
            sight = self.reader.envelopes.get(CLOSING)
            return sight is not None and (sight.left_micro, sight.reserved_micro) == (0, 0)

        if not self.reader.wait_for(spent, CLOSE_S):
            self.findings.append(f"the closing budget isn't spent exactly: {self.reader.envelopes.get(CLOSING)}")
        for worker in self._workers:
            worker.tell(LAST)

    def finish(self) -> None:
        """Wait for the workers, and carry what they have left to its end, each node its own."""
        self.findings += stopped({str(n): worker for n, worker in enumerate(self._workers)})
        jobs = [self._job(n, "finisher") for n in (0, 1)]
        self.figures["left unfinished"] = carried_to_its_end(self.url, jobs, next(iter(ENVELOPES)), self._network.nodes)

    def judge(self) -> None:
        """Fill `findings` and `figures`."""
        self.reader.stop()
        judge = Judge(
            url=self.url,
            trace=self._folder / "trace.jsonl",
            report=self._folder / "report.jsonl",
            nodes=self._network.nodes,
            repurchases=self._repurchases,
            figures=self.figures,
        )
        self.findings += self.reader.findings + judge.findings()
        self.figures["reader's looks"], self.figures["reader's connections"] = self.reader.looks, self.reader.connections

    def kill(self) -> None:
        """End whatever is left of it."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()


def run(server: Server, folder: Path, *, processes: int, seconds: float, seed: int) -> Fleet:
    """A whole run; what was found and counted is in the fleet."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network.make())
        walls = [stack.enter_context(Paywall(network, dynamic=True, service=f"wall{n}")) for n in range(4)]
        for wall in walls[:-1]:
            for kind, price_msat in zip(KINDS, PRICES_MSAT, strict=True):
                wall.add_service(kind, name=f"kind{kind[1:]}", price_msat=price_msat, dynamic=True)
        walls[2].faults.settle_lag = 1
        walls[-1].price_msat = CLOSING_PRICE_MSAT
        fleet = Fleet(server, network, walls, folder, processes=processes, seed=seed)
        try:
            fleet.load(seconds)
            fleet.calm()
            fleet.close()
            fleet.finish()
            fleet.judge()
        finally:
            fleet.kill()
            fleet.reader.stop()
        return fleet


def told(fleet: Fleet) -> str:
    """The figures of a run, for people."""
    lines = [", ".join(f"{name} {count}" for name, count in sorted(fleet.figures.items()))]
    for id, sight in sorted(fleet.reader.envelopes.items()):
        least = sats(fleet.reader.least_left_micro[id])
        lines.append(f"{id}: {sats(sight.settled_micro)} of {sats(sight.limit_micro)} settled; least that was ever left: {least}")
    return "\n".join([*lines, *(f"FOUND {finding}" for finding in fleet.findings)] or ["nothing found"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load and the faults last")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="fleet-"))
    with Server.make() as server:
        fleet = run(server, folder, **vars(arguments))
    print(told(fleet))
    print(json.dumps({"seed": arguments.seed, "findings": len(fleet.findings), "seconds": round(time.monotonic() - began_s)}))
    if fleet.findings:
        print(f"report and trace are kept in {folder}")
    return 1 if fleet.findings else 0


if __name__ == "__main__":
    sys.exit(main())
