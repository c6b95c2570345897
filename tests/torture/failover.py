"""A fleet buys while its database's primary dies, again and again, and the standby takes over.

    python -m tests.torture.failover --rounds 30 --seed 1

Half of the workers come through a PgBouncer in transaction mode, which is pointed at the new primary; the others name both servers
in their URL, and find the one that takes writes by themselves. Commits wait for the standby. Each round waits for purchases, ends
the primary in the midst of them, promotes the standby, waits until each worker buys again, and makes another standby. At the end
`fleet_judge` holds ledger, trace, workers' reports and the nodes' own lists of payments against each other: nothing may be paid
twice, nothing be lost. Choices come from the seed, instants from the machine.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from routeweiler_sync import BudgetEnvelope
from routeweiler_sync.testing import Paywall
from tests.postgres.bouncer import Bouncer
from tests.postgres.server import Server, until

from .fleet import FEE_MSAT_MAX, PRICES_MSAT, START, Network, Worker, address_of, carried_to_its_end, stopped
from .fleet_judge import Judge
from .fleet_worker import HTTP_TIMEOUT_S, KINDS, Job, session_of, work

ENVELOPE = BudgetEnvelope("fleet", cap_minor_units=10_000_000)
#: A round waits for so many purchases, and then for an instant that is chosen by chance, before the primary ends.
BUY_BEFORE, INSTANT_S_MAX = 4, 0.5
#: Each worker must have bought again so long after the standby was promoted.
BACK_S = 120.0
ENDS: dict[str, Callable[[Server], None]] = {"killed": Server.kill, "stopped": lambda server: server.stop("immediate")}


class Failover:
    """One run: `round` as often as one likes, `finish`; then `findings` and `figures`."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, *, processes: int, seed: int) -> None:
        self._dice, self._seed, self._folder, self._began_s = random.Random(seed), seed, folder, time.time()
        self._network = stack.enter_context(Network.make())
        self._walls = [stack.enter_context(Paywall(self._network, dynamic=True, service=f"wall{n}")) for n in range(2)]
        for wall in self._walls:
            for kind, price_msat in zip(KINDS, PRICES_MSAT, strict=True):
                wall.add_service(kind, name=f"kind{kind[1:]}", price_msat=price_msat, dynamic=True)
        self._servers: list[contextlib.ExitStack] = [stack.enter_context(contextlib.ExitStack()) for _ in range(2)]
        self.primary = self._servers[0].enter_context(Server.make())
        self._database = self.primary.new_database()
        self._add_standby()
        both = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        self.bouncer = stack.enter_context(Bouncer.make(self.primary))
        direct = self.primary.url(self._database)
        self._urls = [self.bouncer.url(self._database), direct.replace(f"127.0.0.1:{self.primary.port}", both)]
        self._report = folder / "report.jsonl"
        self._report.touch()
        self.figures: Counter[str] = Counter()
        self.findings: list[str] = []
        context: Any = multiprocessing.get_context(START)
        if START == "forkserver":
            context.set_forkserver_preload(["tests.torture.fleet_worker"])
        with session_of(self._job(0, "conductor"), ENVELOPE) as session:
            session.get(f"{self._walls[0].base_url}/first").raise_for_status()
        self._workers: dict[str, Worker] = {}
        stack.callback(self._kill_workers)
        for n in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(self._job(n, str(n)), theirs), daemon=True)
            process.start()
            self._workers[str(n)] = Worker(process=process, words=ours)

    def _job(self, n: int, name: str) -> Job:
        """Of worker ``n``: odd ones have the second node; two by two, they come by the one way and by the other."""
        walls = [each.base_url for each in self._walls]
        return Job(
            name=name,
            seed=f"{self._seed}:{name}",
            node=address_of(self._network.nodes[n % 2]),
            ledger=self._urls[n // 2 % 2],
            trace=str(self._folder / "trace.jsonl"),
            report=str(self._report),
            envelope=ENVELOPE.id,
            walls=tuple(walls),
            closing_envelope=ENVELOPE.id,
            closing_wall=walls[0],
            closing_needs=1,
            began_s=self._began_s,
            payment_timeout_s=HTTP_TIMEOUT_S,
        )

    def _add_standby(self, port: int | None = None) -> None:
        self.standby = self._servers[1].enter_context(self.primary.standby(port))
        self.primary.waits_for_standby = True

    def round(self) -> None:
        """One failover."""
        for node in self._network.nodes:
            node.fee_msat = self._dice.randint(0, FEE_MSAT_MAX)
        before = self._paid()
        until(lambda: self._paid() >= before + BUY_BEFORE, BACK_S)
        time.sleep(self._dice.uniform(0, INSTANT_S_MAX))  # the instant of the fault; nothing is waited for
        name = self._dice.choice(list(ENDS))
        ENDS[name](self.primary)
        self.figures[f"primaries {name}"] += 1
        repoint_first = self._dice.random() < 0.5  # for a moment, the bouncer's workers then meet a standby
        if repoint_first:
            self.bouncer.point(self.standby)
        self.standby.promote()
        if not repoint_first:
            self.bouncer.point(self.standby)
        promoted_s = time.time()
        dead, self.primary = self.primary, self.standby
        self._servers.reverse()
        self._servers[1].close()  # of the dead one nothing is left
        self._add_standby(dead.port)
        try:
            until(lambda: self._who_bought_since(promoted_s) >= self._workers.keys(), BACK_S)
        except AssertionError:
            missing = sorted(self._workers.keys() - self._who_bought_since(promoted_s))
            self.findings.append(f"STUCK: workers {missing} haven't bought {BACK_S:.0f} s after a failover")
        self.figures["rounds"] += 1
        self.figures["slowest to be back, ms"] = max(self.figures["slowest to be back, ms"], int((time.time() - promoted_s) * 1000))

    def _paid(self) -> int:
        return sum(payment.status == "SUCCEEDED" for node in self._network.nodes for payment in node.payments)

    def _who_bought_since(self, since_s: float) -> set[str]:
        reports = map(json.loads, self._report.read_text().splitlines())
        return {each["who"] for each in reports if each["at"] > since_s and each["what"] == "page" and not each.get("reused", True)}

    def finish(self) -> None:
        """Wait for the workers, carry what they have left to its end, each node its own, and judge."""
        self.findings += stopped(self._workers)
        url, jobs = self.primary.url(self._database), [self._job(n, "finisher") for n in (0, 1)]
        self.figures["left unfinished"] = carried_to_its_end(url, jobs, ENVELOPE.id, self._network.nodes)
        judge = Judge(
            url=url,
            trace=self._folder / "trace.jsonl",
            report=self._report,
            nodes=self._network.nodes,
            repurchases=Counter(),
            figures=self.figures,
        )
        self.findings += judge.findings()

    def _kill_workers(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.join()


def run(folder: Path, *, processes: int, rounds: int, seed: int) -> Failover:
    """A whole run; what was found and counted is in it."""
    with contextlib.ExitStack() as stack:
        failover = Failover(stack, folder, processes=processes, seed=seed)
        for _ in range(rounds):
            failover.round()
            if failover.findings:
                break
        failover.finish()
        return failover


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.failover", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="failover-"))
    failover = run(folder, **vars(arguments))
    print(", ".join(f"{name} {count}" for name, count in sorted(failover.figures.items())))
    for finding in failover.findings:
        print(f"FOUND {finding}")
    print(json.dumps({"seed": arguments.seed, "findings": len(failover.findings), "seconds": round(time.monotonic() - began_s)}))
    if failover.findings:
        print(f"report and trace are kept in {folder}")
    return 1 if failover.findings else 0


if __name__ == "__main__":
    sys.exit(main())
