"""Torture: buyers of single-use payments, killed at random moments between the 402 and the page, on the real world.

    python -m tests.torture.single_use --moments 300 --seed 1

At each moment a process buys a page of its own by the scheme ``Payment``, from one server after the other; when the 402 has gone
out it is killed, some random time later. A fresh process goes on until the page is there. Then lnd's own list, the ledger, and
what a relay saw in front of the server are held against each other: no page is paid twice, unless what was paid before was
delivered, or refused and told so. Exit code 1 where a promise was broken. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routeweiler_sync import Ledger
from routeweiler_sync.ledger.types import PaymentRow
from tests.regtest.build import binaries
from tests.regtest.payment_servers import BOTH, MPPX, MPPX_011, PYMPP, SERVICE, running
from tests.regtest.server_builds import Runtimes, runtimes
from tests.regtest.wire import Exchange, Wire
from tests.regtest.world import World, start_world
from tests.support.wallet_contract import Recipe

from .buyer import ENVELOPE, Job
from .kill_nine import BUYERS_END_S, FINISHER_END_S, FINISHER_PAYMENT_TIMEOUT_S, Process

RAIL = "mpp-lightning"
SERVERS = (BOTH, MPPX, MPPX_011, PYMPP)
#: The longest that a buyer is left alive after its 402, in times of an undisturbed purchase.
ALIVE_MAX = 1.1
#: The same after its payment has reached the relay: what comes then takes this long.
PRESENTED_MAX_S = 0.01
#: How many of ten buyers are killed so.
PRESENTED_OF_TEN = 4
SEEN_S = 30.0
POLL_S = 0.002
PAYMENT_TIMEOUT_S = 20.0
NEVER_NS = 2**63
FINDING_WORDS = ("DOUBLE", "LOST", "DRIFT", "CLAIM")


@dataclass
class Moment:
    """One purchase that was killed. ``reached`` is what relay and ledger had seen of it by then.

    ``delivered`` counts payments that the server answered with a page, ``refused_and_told`` others. ``refusals_told``: of both.
    """

    name: str
    server: str
    aim: str
    after_s: float
    reached: str = "?"
    payments: int = 0
    delivered: int = 0
    refused_and_told: int = 0
    refusals_told: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        outcome = "; ".join(self.findings) or "ok"
        counts = f"{self.payments} paid, {self.delivered} delivered, {self.refused_and_told} refused and told"
        when = f"{self.after_s * 1e3:.0f} ms after it {self.aim} ({self.reached})"
        return f"{self.name} {self.server}, killed {when} → {counts}: {outcome}"


class Torturer:
    """Does the moments, one after the other, on one ledger."""

    def __init__(self, world: World, folder: Path, wires: dict[str, Wire], seed: int) -> None:
        self._world, self._folder, self._wires, self._seed = world, folder, wires, seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.torture.buyer"])
        self._known = {payment["payment_hash"] for payment in world.payer.list_payments()}
        self._last_index = max(int(payment["payment_index"]) for payment in world.payer.list_payments())
        self._said_unspent: dict[str, str] = {}
        self._purchase_s = self._undisturbed_s()

    def _undisturbed_s(self) -> dict[str, float]:
        """Return how long each server takes from the 402 to the page, as things are on this machine, by its name."""
        took = {}
        for server, turn in itertools.product(SERVERS, range(2)):  # the first purchase finds everything cold
            wire, path = self._wires[server.name], f"/{SERVICE}/undisturbed/{self._seed}/{turn}"
            buyer = self._start("undisturbed", wire.url + path, self._folder / "report-undisturbed.jsonl")
            assert buyer.end(BUYERS_END_S)
            first, *_, last = self._seen(wire, path)
            took[server.name] = (last.at_ns - first.at_ns) / 1e9
        self._remember(self._new_payments())
        return took

    def moment(self, number: int) -> Moment:
        chance = random.Random(f"{self._seed}:{number}")
        server = SERVERS[number % len(SERVERS)]
        presents = chance.randrange(10) < PRESENTED_OF_TEN
        after_s = chance.uniform(0, PRESENTED_MAX_S if presents else ALIVE_MAX * self._purchase_s[server.name])
        aim = "presented" if presents else "was challenged"
        done = Moment(name=f"{self._seed}:{number}", server=server.name, aim=aim, after_s=after_s)
        wire, path = self._wires[server.name], f"/{SERVICE}/killed/{self._seed}/{number}"
        report = self._folder / f"report-{number}.jsonl"
        try:
            buyer = self._start("buyer", wire.url + path, report)
            try:
                self._wait_for(lambda: path in wire.presented if presents else self._seen(wire, path))
                time.sleep(done.after_s)
                buyer.signal(signal.SIGKILL)
                done.reached = self._reached(wire, path)
            finally:
                if not buyer.end(BUYERS_END_S):
                    done.findings.append("the buyer hangs")
            finisher = self._start("finisher", wire.url + path, report, finish=True, payment_timeout_s=FINISHER_PAYMENT_TIMEOUT_S)
            if not finisher.end(FINISHER_END_S):
                done.findings.append("the finisher hangs")
            reports = [json.loads(line) for line in report.read_text().splitlines()]
            self._judge(done, self._seen(wire, path), reports)
        except Exception:
            done.findings.append(f"the moment itself failed: {traceback.format_exc()}")
        return done

    def _wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + SEEN_S
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError("the buyer doesn't ask, or doesn't present")
            time.sleep(POLL_S)

    def _seen(self, wire: Wire, path: str) -> list[Exchange]:
        return [exchange for exchange in list(wire.exchanges) if exchange.path == path]

    def _reached(self, wire: Wire, path: str) -> str:
        shown = [exchange for exchange in self._seen(wire, path) if exchange.token]
        if shown:
            return f"answered {shown[-1].status}"
        if path in wire.presented:
            return "presented"
        rows = [row for payment_hash, row in self._rows().items() if payment_hash not in self._known]
        return "paid" if any(row.settled_at for row in rows) else "in the ledger" if rows else "not in the ledger"

    def _start(self, name: str, url: str, report: Path, **other: Any) -> Process:
        payer = self._world.payer
        values: dict[str, Any] = {
            "name": name,
            "urls": (url,),
            "wallet": Recipe(
                name="LndClient",
                arguments={
                    "grpc_host": "127.0.0.1",
                    "grpc_port": payer.grpc_port,
                    "macaroon_path": str(payer.admin_macaroon_path),
                    "tls_cert_path": str(payer.tls_cert_path),
                },
            ),
            "ledger": str(self._folder / "ledger.db"),
            "trace": str(self._folder / "trace.jsonl"),
            "trace_kind": "jsonl",
            "report": str(report),
            "log": str(self._folder / "log.txt"),
            "payment_timeout_s": PAYMENT_TIMEOUT_S,
            "warm": True,
            "prefer": RAIL,
        }
        process = Process.start(self._context, Job(**values | other))
        process.wait_ready()
        process.go.send("go")
        return process

    # The judgement

    def _new_payments(self) -> list[dict[str, Any]]:
        """lnd's list of what came since `_remember`. All of them would take a second, some hundred payments on."""
        options = ("--include_incomplete", "--paginate_forwards", f"--index_offset={self._last_index}")
        listed: list[dict[str, Any]] = self._world.payer.lncli("listpayments", *options)["payments"]
        return listed

    def _remember(self, payments: list[dict[str, Any]]) -> None:
        self._known |= {payment["payment_hash"] for payment in payments}
        self._last_index = max([self._last_index, *(int(payment["payment_index"]) for payment in payments)])

    def _rows(self) -> dict[str, PaymentRow]:
        ledger = Ledger.open(self._folder / "ledger.db")
        try:
            return {row.payment_hash: row for row in ledger.payments()}
        finally:
            ledger.close()

    def _judge(self, done: Moment, exchanges: list[Exchange], reports: list[dict[str, Any]]) -> None:
        """What lnd paid since the last moment, against the ledger, the relay and the reports of both processes."""
        payments, rows = self._new_payments(), self._rows()
        paid = {payment["payment_hash"]: payment for payment in payments if payment["status"] == "SUCCEEDED"}
        done.payments = len(paid)
        told_refused = {
            report["hash"]
            for report in reports
            if report["what"] == "error" and report["kind"] == "TokenRefusedError" and report["spent"]
        }
        done.refusals_told = len(told_refused)
        pages = [report for report in reports if report["what"] == "page" and report["status"] == 200]
        if not pages:
            done.findings.append("the page never came")
        ended_ns = 0  # when the payment before was delivered or refused
        for payment_hash in sorted(paid, key=lambda each: int(paid[each]["creation_time_ns"])):
            if int(paid[payment_hash]["creation_time_ns"]) < ended_ns:
                done.findings.append(f"DOUBLE: {payment_hash} was paid before the one in hand was delivered or refused")
            answers = [exchange for exchange in exchanges if exchange.payment_hash == payment_hash and exchange.status]
            delivered = [exchange.at_ns for exchange in answers if 200 <= exchange.status < 300]
            refused = [exchange.at_ns for exchange in answers if exchange.status >= 400]
            ended_ns = max(ended_ns, min((*delivered, *refused), default=NEVER_NS))
            if delivered:
                done.delivered += 1
            elif refused and payment_hash in told_refused:
                done.refused_and_told += 1
            else:
                done.findings.append(f"LOST: {payment_hash} was paid, and {'refused untold' if refused else 'never answered'}")
        done.findings += self._books(paid, rows)
        done.findings += self._claims(reports, paid)
        done.findings += [f"a buyer fell: {report['kind']}: {report['text']}" for report in reports if report["what"] == "bug"]
        unended = [payment["payment_hash"] for payment in payments if payment["status"] not in ("SUCCEEDED", "FAILED")]
        done.findings += [f"lnd hasn't ended {payment_hash}" for payment_hash in unended]
        self._remember(payments)

    def _books(self, paid: dict[str, Any], rows: dict[str, PaymentRow]) -> list[str]:
        findings = [f"DRIFT: row {h} is unfinished ({row.state.value})" for h, row in rows.items() if row.unfinished]
        for h, payment in paid.items():
            booked = (rows[h].amount_msat, rows[h].fee_msat) if h in rows and rows[h].settled_at else None
            listed = (int(payment["value_msat"]), int(payment["fee_msat"]))
            if booked != listed:
                findings.append(f"DRIFT: {h}: lnd has {listed}, the ledger {booked}")
        listed_hashes = self._known | paid.keys()
        findings += [f"DRIFT: {h} is booked and not paid" for h, row in rows.items() if row.settled_at and h not in listed_hashes]
        ledger = Ledger.open(self._folder / "ledger.db")
        envelope, untold = ledger.envelope(ENVELOPE.id), ledger.unreported()
        ledger.close()
        spent_msat = sum(row.amount_msat + row.fee_msat for row in rows.values() if row.settled_at is not None)
        spent_sat, reserved_sat = envelope.settled_minor_units, envelope.reserved_minor_units
        if spent_sat * 1_000 != spent_msat or reserved_sat:
            findings.append(f"DRIFT: envelope {spent_sat} sat and {reserved_sat} reserved, rows {spent_msat} msat")
        return [*findings, *(f"DRIFT: {row.payment_hash} is settled and untold" for row in untold)]

    def _claims(self, reports: list[dict[str, Any]], paid: dict[str, Any]) -> list[str]:
        for report in reports:
            if report["what"] == "error" and report["hash"] and report["spent"] is False:
                self._said_unspent[report["hash"]] = report["text"]
        false = [
            f"CLAIM: {report['hash']} was told as spent"
            for report in reports
            if report["what"] == "error" and report["hash"] and report["spent"] and report["hash"] not in self._known | paid.keys()
        ]
        return false + [f"CLAIM: {h} is paid, but {text}" for h, text in self._said_unspent.items() if h in paid]


def torture(world: World, folder: Path, programs: Runtimes, *, seed: int, first: int, moments: int) -> list[Moment]:
    """Do the moments; print each on a line."""
    done = []
    with ExitStack() as stack:
        wires = {
            server.name: stack.enter_context(Wire(stack.enter_context(running(server, world, programs)).port)) for server in SERVERS
        }
        torturer = Torturer(world, folder, wires, seed)
        for number in range(first, first + moments):
            done.append(torturer.moment(number))
            print(done[-1], flush=True)
    return done


def summary(done: list[Moment]) -> str:
    """Return the figures of a run."""
    findings = [finding for each in done for finding in each.findings]
    counts = {word: sum(finding.startswith(word) for finding in findings) for word in FINDING_WORDS}
    reached = Counter(each.reached for each in done)
    return "\n".join(
        (
            f"moments {len(done)}, payments {sum(each.payments for each in done)}, "
            f"delivered {sum(each.delivered for each in done)}, refused and told {sum(each.refused_and_told for each in done)}; "
            f"delivered to the dead, and then refused and told {sum(each.refusals_told - each.refused_and_told for each in done)}",
            f"double payments {counts['DOUBLE']}, lost payments {counts['LOST']}, drifts {counts['DRIFT']}, "
            f"false claims {counts['CLAIM']}, other findings {len(findings) - sum(counts.values())}",
            "killed when: " + ", ".join(f"{name} {count}" for name, count in sorted(reached.items())),
            "moments with findings: " + (", ".join(each.name for each in done if each.findings) or "none"),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first moment")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="single-use-"))
    started = time.monotonic()
    with start_world(binaries()) as world:
        done = torture(world, folder, runtimes(), **vars(arguments))
    print(summary(done))
    print(f"{time.monotonic() - started:.0f} s")
    if any(each.findings for each in done):
        print(f"books and logs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
