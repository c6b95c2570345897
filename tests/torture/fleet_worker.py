"""One worker of a fleet: a process with a node of its own that buys at random until it is told to stop, or is killed.

What it was given and told goes to a report that outlives it, one JSON line in one write. It judges nothing.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg  # noqa: F401 - in the process that forks the workers, so that each is there at once
import requests

from routeweiler_sync import BudgetEnvelope, Funding, LndClient, Routeweiler, RouteweilerError, TraceSink, payment_of
from routeweiler_sync._core.preload import prepare_to_pay

prepare_to_pay("funding.lnd.channel")

NETWORK = "bitcoin-regtest"
HTTP_TIMEOUT_S = 30.0
PAUSE_S_MAX = 0.03
#: Paths under which a paywall sells, each at a price of its own; what lies under them are the needs.
KINDS = ("/a", "/b", "/c", "/d")
#: Needs come up one after the other, so many a second, each wanted as long as so many are: few enough that workers meet in them.
NEEDS_PER_S, NEEDS_WANTED = 6.0, 36
#: So often a worker wants the newest one, at the same instant as the others.
NEWEST_SHARE = 0.5

#: The words that a worker is told: buy the closing needs; say so when the last of them is refused, and end; end.
CLOSE, LAST, STOP = "close", "last", "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """Where a node is, and the files that open it."""

    port: int
    macaroon_path: str
    tls_cert_path: str

    def client(self) -> LndClient:
        return LndClient("127.0.0.1", self.port, self.macaroon_path, tls_cert_path=self.tls_cert_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is started with. ``walls``: base URLs. ``closing_needs``: how many the closing wall sells."""

    name: str
    seed: str
    node: NodeAddress
    ledger: str
    trace: str
    report: str
    envelope: str
    walls: tuple[str, ...]
    closing_envelope: str
    closing_wall: str
    closing_needs: int
    began_s: float
    payment_timeout_s: float


class Reporter:
    """Appends to the fleet's report."""

    def __init__(self, job: Job) -> None:
        self._who = job.name
        self._file = os.open(job.report, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    def tell(self, what: str, **facts: Any) -> None:
        os.write(self._file, json.dumps({"at": round(time.time(), 4), "who": self._who, "what": what, **facts}).encode() + b"\n")


def session_of(job: Job, envelope: BudgetEnvelope | str, payment_timeout_s: float | None = None) -> Routeweiler:
    """A session that pays over the job's node, on the shared ledger."""
    return Routeweiler(
        funding=[Funding.lightning_lnd(client=job.node.client(), network=NETWORK)],
        ledger=job.ledger,
        trace_sink=TraceSink.jsonl(job.trace),
        budget_envelope=envelope,
        payment_timeout=payment_timeout_s or job.payment_timeout_s,
    )


def work(job: Job, words: Connection) -> None:
    """The process's main function."""
    logging.disable(logging.WARNING)
    reporter, dice = Reporter(job), random.Random(job.seed)
    reporter.tell("start", node_port=job.node.port)
    word, sessions = "", {each: session_of(job, each) for each in (job.envelope, job.closing_envelope)}
    # The cap alone may refuse the last call: it has time enough to come to that, also on a machine that is busy.
    sessions[LAST] = session_of(job, job.closing_envelope, HTTP_TIMEOUT_S)

    def any_need() -> str:
        age = 0 if dice.random() < NEWEST_SHARE else dice.randrange(NEEDS_WANTED)
        number = int((time.time() - job.began_s) * NEEDS_PER_S) - age
        where = random.Random(number)  # the same for all workers
        return f"{where.choice(job.walls)}{where.choice(KINDS)}/{number}"

    def closing_need() -> str:
        return f"{job.closing_wall}/need/{dice.randrange(job.closing_needs)}"

    needs: dict[str, tuple[str, Callable[[], str]]] = {
        "": (job.envelope, any_need),
        CLOSE: (job.closing_envelope, closing_need),
        LAST: (LAST, lambda: f"{job.closing_wall}/one-more/{job.name}"),
    }
    while word in needs:
        name, token_request = needs[word]
        call(sessions[name], token_request(), reporter, last=word == LAST)
        if word == LAST:
            break
        if words.poll(dice.uniform(0, PAUSE_S_MAX)):
            word = words.recv()
    for session in sessions.values():
        session.close()
    reporter.tell("done")


def call(session: Routeweiler, url: str, reporter: Reporter, *, last: bool = False) -> None:
    """One call, reported."""
    about: dict[str, Any] = {"url": url, "last": last}
    try:
        response = session.get(url, timeout=HTTP_TIMEOUT_S)
    except RouteweilerError as error:
        about |= {"code": error.code, "spent": error.spent, "hash": error.payment_hash, "text": str(error)}
        reporter.tell("error", **about)
    except requests.RequestException as error:
        reporter.tell("http", kind=type(error).__name__, text=str(error)[:300], **about)
    except BaseException as error:
        reporter.tell("bug", kind=type(error).__name__, text=str(error)[:1_000], **about)
        raise
    else:
        payment = payment_of(response)
        paid = {"hash": payment.payment_hash, "reused": payment.reused} if payment else {"hash": None}
        reporter.tell("page", status=response.status_code, **about, **paid)
