"""Torture: purchases on the real world, with everything around them killed, cut and frozen at random instants.

    python -m tests.torture.kill_nine --rounds 100 --seed 1 --wallet lnbits

Each round: processes with threads buy pages on one ledger; something is killed, cut or frozen; a fresh process finishes; then the
wallet's own list of payments, and lnd's, are held against ledger, trace and every error's word. Exit code 1 where a promise was
broken. ``--first N`` begins at round N: a round can be repeated by itself. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.regtest.build import binaries
from tests.regtest.node import Node
from tests.regtest.real_wallets import WALLETS, RealWallet
from tests.regtest.world import World, start_world
from tests.support.tcp_relay import Wire

from .buyer import Job, work
from .judge import Books
from .plan import Fault, Plan, draw
from .watcher import Watcher

READY_S = 30.0
BUYERS_END_S = 90.0
FINISHER_END_S = 150.0
FINISHERS_MAX = 4
FINISHER_PAYMENT_TIMEOUT_S = 3.0
#: An order that was held gets so long to do its harm before the judgement.
HELD_ORDER_S = 0.5
FINDING_WORDS = ("DOUBLE", "LOST", "DRIFT", "CLAIM", "TWICE")


@dataclass
class Process:
    """A buyer, or a finisher, forked from a server that has everything imported."""

    process: BaseProcess
    go: Connection

    @classmethod
    def start(cls, context: Any, job: Job) -> Process:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def wait_ready(self) -> None:
        if not self.go.poll(READY_S):
            raise TimeoutError("a buyer doesn't get ready")
        self.go.recv()

    def signal(self, number: signal.Signals) -> None:
        if self.process.is_alive() and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def end(self, timeout_s: float) -> bool:
        """Whether it ended by itself."""
        self.process.join(timeout_s)
        ended = not self.process.is_alive()
        self.process.kill()
        self.process.join()
        self.go.close()
        return ended


@dataclass
class Round:
    """One round: `run` does it, `outcome` is what it came to."""

    plan: Plan
    world: World
    wallet: RealWallet
    books: Books
    context: Any
    findings: list[str] = field(default_factory=list)
    payments: int = 0
    paid_msat: int = 0
    pages: int = 0
    orphans: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    #: Rows that stayed open until time ended them.
    pending: int = 0
    aimed: bool = True
    reports: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._undo: list[threading.Thread] = []
        self._killed_at_ns = 0
        self._buyers: list[Process] = []
        self._wire: Wire
        name = self.plan.name.replace(":", "-")
        self.report_path = self.books.folder / f"report-{name}.jsonl"
        self.log_path = self.books.folder / f"log-{name}.txt"

    def run(self) -> None:
        plan, world = self.plan, self.world
        self.books.begin_round()
        urls = {service: world.url(service, f"round/{plan.name.replace(':', '/')}") for service in plan.services}
        self._wire = Wire(self.wallet.port)
        watcher = Watcher(self.books.ledger_path, world.payer, self.books.known)
        try:
            self._buyers = [
                Process.start(self.context, self._job(f"buyer{i}", tuple(urls[s] for s in services)))
                for i, services in enumerate(plan.buyers)
            ]
            for buyer in self._buyers:
                buyer.wait_ready()
            for buyer in self._buyers:
                buyer.go.send("go")
            self.aimed = plan.aim == "go" or watcher.wait(plan.aim)
            time.sleep(plan.delay_ms / 1000)
            for i, fault in enumerate(plan.faults):
                time.sleep(plan.gap_ms / 1000 if i else 0)
                self._strike(fault)
            if not plan.overlap:
                self._wait_for_buyers()
            self._finish(urls)
            self._wait_for_buyers()
        finally:
            for buyer in self._buyers:
                buyer.end(0)
            for thread in self._undo:
                thread.join()
            if any(fault.kind == "hold order" for fault in plan.faults):
                time.sleep(HELD_ORDER_S)
            watcher.close()
            self._wire.close()
            self._mend()
        self.reports = self._read_reports()
        found, self.payments, self.paid_msat = self.books.judge(self.reports, urls)
        self.findings += found
        self.pages = sum(1 for r in self.reports if r["what"] == "page" and r["status"] == 200)
        self.errors = Counter(f"{r['code']}/{r['spent']}" for r in self.reports if r["what"] == "error")
        self.errors += Counter("http" for r in self.reports if r["what"] == "http")

    # -- faults -----------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        kind, node = fault.kind, self._frozen_by(fault)
        if kind == "kill wallet":
            self.wallet.stop()
            self._later(fault.size, self.wallet.start)
        elif node is not None:
            node.freeze()
            self._later(fault.size, node.thaw)
        elif kind == "kill buyers":
            for buyer in self._buyers[: max(1, round(fault.size * len(self._buyers)))]:
                buyer.signal(signal.SIGKILL)
        elif kind == "stop buyers":
            for buyer in self._buyers:
                buyer.signal(signal.SIGSTOP)
            self._later(fault.size, self._let_buyers_go_on)
        elif kind == "kill payer":
            self._killed_at_ns = time.time_ns()
            self.world.payer.kill()
            self._later(fault.size, self.world.payer.daemon.start)
        elif kind == "hold order":
            self._wire.hold()
            self._later(fault.size, self._wire.release)
        elif kind.endswith(" at byte"):
            self._wire.arm(int(fault.size), kind.removesuffix(" at byte"))
        else:
            self._wire.strike(kind)

    def _let_buyers_go_on(self) -> None:
        for buyer in self._buyers:
            buyer.signal(signal.SIGCONT)

    def _frozen_by(self, fault: Fault) -> Node | RealWallet | None:
        world = self.world
        nodes: dict[str, Node | RealWallet] = {
            "freeze payer": world.payer,
            "freeze router": world.router,
            "freeze payee": world.payee,
            "freeze wallet": self.wallet,
        }
        return nodes.get(fault.kind)

    def _later(self, seconds: float, act: Any) -> None:
        timer = threading.Timer(seconds, act)
        timer.start()
        self._undo.append(timer)

    def _mend(self) -> None:
        """The next round finds a whole world."""
        world = self.world
        if any(fault.kind == "kill payer" for fault in self.plan.faults):
            world.payer.wait_until_ready()
            world.payer.wait_for_channels()
        self.wallet.thaw()
        self.wallet.start()
        if not world.mend() and any(fault.kind == "kill payer" or self._frozen_by(fault) for fault in self.plan.faults):
            world.reset_mission_control()

    # -- processes --------------------------------------------------------------------------------------------------------

    def _job(self, name: str, urls: tuple[str, ...], **other: Any) -> Job:
        plan = self.plan
        values: dict[str, Any] = {
            "name": name,
            "urls": urls,
            "wallet": self.wallet.through(self._wire.port),
            "ledger": str(self.books.ledger_path),
            "trace": str(self.books.trace_path(plan.trace)),
            "trace_kind": plan.trace,
            "report": str(self.report_path),
            "log": str(self.log_path),
            "payment_timeout_s": plan.payment_timeout_s,
            "calls": plan.calls,
            "warm": plan.warm,
        }
        return Job(**values | other)

    def _wait_for_buyers(self) -> None:
        for buyer in self._buyers:
            if not buyer.end(BUYERS_END_S):
                self.findings.append("a buyer hangs")

    def _finish(self, urls: dict[str, str]) -> None:
        """Fresh processes until every need is met and no row is open; what proves to be an orphan of lnd's is abandoned."""
        for i in range(FINISHERS_MAX):
            job = self._job(
                f"finisher{i}",
                tuple(urls.values()),
                wallet=self.wallet.recipe,
                payment_timeout_s=FINISHER_PAYMENT_TIMEOUT_S,
                warm=False,
                finish=True,
                # A wallet whose "failed" isn't final leaves rows that only time ends. By now no order is under way any more.
                outlived=i > 0 and not self.wallet.sends_again,
            )
            finisher = Process.start(self.context, job)
            finisher.wait_ready()
            finisher.go.send("go")
            if not finisher.end(FINISHER_END_S):
                self.findings.append(f"{job.name} hangs")
            for thread in self._undo:
                thread.join()
            left = [row.payment_hash for row in self.books.rows().values() if row.unfinished]
            if self.plan.overlap and left:
                self._wait_for_buyers()  # theirs may be under way yet
                left = [row.payment_hash for row in self.books.rows().values() if row.unfinished]
            if not left:
                return
            self._mend()
            self.pending += 0 if i or self.wallet.sends_again else len(left)
            for payment_hash in left:
                if self.books.is_orphan(payment_hash):
                    self.orphans.append(self._about_orphan(payment_hash))
                    self.books.abandon(payment_hash)

    def _about_orphan(self, payment_hash: str) -> str:
        found = self.world.payer.payments_of(payment_hash)
        if not found:
            return f"{payment_hash[:16]}, which lnd never got"
        (payment,) = found
        age_ms = (self._killed_at_ns - int(payment["creation_time_ns"])) / 1e6
        attempts = [htlc["status"] for htlc in payment["htlcs"]]
        return f"{payment_hash[:16]}, begun {age_ms:.0f} ms before the kill, attempts {attempts}"

    def _read_reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.report_path.read_text().splitlines()] if self.report_path.exists() else []

    # -- what is told -----------------------------------------------------------------------------------------------------

    def line(self, seconds: float) -> str:
        errors = " ".join(f"{name}x{count}" for name, count in sorted(self.errors.items()))
        outcome = "; ".join(self.findings) or "ok"
        missed = "" if self.aimed else " (aim missed)"
        orphans = f", ORPHAN {' and '.join(self.orphans)}" if self.orphans else ""
        return (
            f"{self.plan.name} {self.plan}{missed} → {self.pages} pages, {self.payments} paid{orphans}, {errors or 'no errors'}: "
            f"{outcome} ({seconds:.1f} s)"
        )

    def dossier(self) -> str:
        """Everything that is needed to understand a finding; no token or preimage."""
        lines = [f"=== {self.plan!r}", *(json.dumps(report) for report in self.reports), "--- rows"]
        rows = {h: row for h, row in self.books.rows().items() if h not in self.books.known}
        lines += [
            f"{h} {r.scope} {r.state.value} sends {r.sends_ever}/{r.sends_unanswered} {r.failure_code} {r.created_at.isoformat()} "
            f"settled {r.settled_at} valid_until {r.valid_until}"
            for h, r in rows.items()
        ]
        lines.append("--- lnd")
        lines += [
            f"{p['payment_hash']} {p['status']} {p['failure_reason']} {p['value_msat']}+{p['fee_msat']} {p['creation_time_ns']} "
            f"attempts {[htlc['status'] for htlc in p['htlcs']]}"
            for p in self.world.payer.list_payments()
            if p["payment_hash"] not in self.books.known
        ]
        lines += ["--- log", self.log_path.read_text() if self.log_path.exists() else ""]
        return "\n".join(lines)


def torture(
    world: World,
    folder: Path,
    *,
    seed: int,
    first: int,
    rounds: int,
    wallet: str = "lnd",
    seconds: float = math.inf,
    only: str = "",
    verbose: bool = False,
) -> list[Round]:
    """The rounds, done; printed one a line, those with findings at length. After ``seconds`` no round is begun."""
    with WALLETS[wallet](world) as real:
        return _torture(world, real, folder, seed, first, rounds, seconds, only, verbose)


def _torture(
    world: World,
    wallet: RealWallet,
    folder: Path,
    seed: int,
    first: int,
    rounds: int,
    seconds: float,
    only: str,
    verbose: bool,
) -> list[Round]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.torture.buyer"])
    books, done, until = Books(folder, world, wallet), list[Round](), time.monotonic() + seconds
    plans = (plan for number in itertools.count(first) if only in str(plan := draw(seed, number, own_process=wallet.own_process)))
    for plan in itertools.islice(plans, rounds):
        started = time.monotonic()
        if started > until:
            break
        each = Round(plan, world, wallet, books, context)
        try:
            each.run()
        except Exception:
            each.findings.append(f"the round itself failed: {traceback.format_exc()}")
        done.append(each)
        print(each.line(time.monotonic() - started), flush=True)
        if each.findings or verbose:
            print(each.dossier(), flush=True)
    return done


def summary(done: list[Round]) -> str:
    findings = [finding for each in done for finding in each.findings]
    counts = {word: sum(finding.startswith(word) for finding in findings) for word in FINDING_WORDS}
    errors: Counter[str] = sum((each.errors for each in done), Counter())
    faults = Counter(fault.kind for each in done for fault in each.plan.faults)
    return "\n".join(
        (
            f"rounds {len(done)}, needs {sum(len(each.plan.services) for each in done)}, "
            f"pages {sum(each.pages for each in done)}, payments {sum(each.payments for each in done)} "
            f"({sum(each.paid_msat for each in done)} msat), ended by time alone {sum(each.pending for each in done)}, "
            f"orphans {sum(len(each.orphans) for each in done)}, "
            f"aims missed {sum(not each.aimed for each in done)}",
            f"double payments {counts['DOUBLE']}, lost tokens {counts['LOST']}, drifts {counts['DRIFT']}, "
            f"false claims {counts['CLAIM']}, payments told twice {counts['TWICE']}, "
            f"other findings {len(findings) - sum(counts.values())}",
            "faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())),
            "errors told (code/spent): " + ", ".join(f"{name} {count}" for name, count in sorted(errors.items())),
            "rounds with findings: " + (", ".join(each.plan.name for each in done if each.findings) or "none"),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wallet", choices=list(WALLETS), default="lnd")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="rounds whose plan, as it is printed, contains this, e.g. 'kill payer'")
    parser.add_argument("--verbose", action="store_true", help="tell every round at length")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    started = time.monotonic()
    with start_world(binaries()) as world:
        done = torture(world, folder, **vars(arguments))
    print(summary(done))
    print(f"{time.monotonic() - started:.0f} s")
    if any(each.findings for each in done):
        print(f"books and logs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
