"""A process that buys pages, to be killed; and the one that finishes what it has left.

Each line of its report is one JSON object, in one write: what was written before a kill stays.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import requests

from routeweiler_sync import (
    BudgetEnvelope,
    LightningFundingSource,
    PaymentPendingError,
    Policy,
    Routeweiler,
    RouteweilerError,
    TokenRefusedError,
    TraceSink,
    payment_of,
)
from routeweiler_sync._core.preload import prepare_to_pay
from routeweiler_sync.payments import lifecycle
from tests.support.wallet_contract import Recipe

prepare_to_pay("funding.lnd.channel")  # in the process that forks the buyers, so that each is there at once

NETWORK = "bitcoin-regtest"
ENVELOPE = BudgetEnvelope("torture", cap_minor_units=100_000_000, per_call_minor_units=1_000)
HTTP_TIMEOUT_S, READY_S = 30.0, 10.0
#: A finisher that is told "pending" for so long leaves the row to the judge: it may be an orphan of lnd.
PATIENCE_S = 5.0
FINISH_S = 90.0
FINISH_PAUSE_S = 0.2
#: Longer than any invoice lives.
LONG_S = 10**9


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does. ``urls``: one a thread. ``finish``: until each page is there, then `recover`.

    ``outlived``: it behaves as long after the expiry of all invoices, where a wallet's "not paid so far" ends a row.
    ``prefer``: a rail; a payment of it that is refused is forgotten by the finisher.
    """

    name: str
    urls: tuple[str, ...]
    wallet: Recipe
    ledger: str
    trace: str
    trace_kind: str
    report: str
    log: str
    payment_timeout_s: float
    calls: int = 1
    warm: bool = False
    finish: bool = False
    outlived: bool = False
    prefer: str | None = None


class Reporter:
    def __init__(self, job: Job) -> None:
        self._who = job.name
        self._file = os.open(job.report, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    def tell(self, what: str, **facts: Any) -> None:
        line = {"at": round(time.time(), 4), "who": self._who, "what": what, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def work(job: Job, go: Connection) -> None:
    """The process's main function; waits for a word on ``go``."""
    log = os.open(job.log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {job.name} %(threadName)s %(levelname)s %(message)s")
    reporter = Reporter(job)
    if job.outlived:
        lifecycle.OUTLIVED_S = -LONG_S
    client = job.wallet.build()
    funding = LightningFundingSource(client=client, network=NETWORK)
    session = Routeweiler(
        funding=[funding],
        ledger=job.ledger,
        trace_sink=TraceSink.sqlite(job.trace) if job.trace_kind == "sqlite" else TraceSink.jsonl(job.trace),
        budget_envelope=ENVELOPE,
        payment_timeout=job.payment_timeout_s,
        policy=Policy(default_rail=job.prefer),
    )
    if job.warm:
        funding.ready(READY_S)
    go.send("ready")
    go.recv()
    if job.finish:
        _finish(job, session, reporter)
    else:
        threads = [threading.Thread(target=_buy, args=(job, session, url, reporter)) for url in job.urls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    session.close()
    client.close()
    reporter.tell("done")


def _call(session: Routeweiler, url: str, reporter: Reporter) -> RouteweilerError | bool:
    """One call, reported: whether the page came, or our error."""
    try:
        response = session.get(url, timeout=HTTP_TIMEOUT_S)
    except RouteweilerError as error:
        reporter.tell(
            "error",
            url=url,
            code=error.code,
            kind=type(error).__name__,
            spent=error.spent,
            hash=error.payment_hash,
            text=str(error),
        )
        return error
    except requests.RequestException as error:
        reporter.tell("http", url=url, kind=type(error).__name__, text=str(error)[:300])
        return False
    except BaseException as error:
        reporter.tell("bug", url=url, kind=type(error).__name__, text=str(error)[:1000])
        raise
    payment = payment_of(response)
    reporter.tell(
        "page",
        url=url,
        status=response.status_code,
        hash=payment.payment_hash if payment else None,
        reused=payment.reused if payment else None,
    )
    return response.status_code == 200


def _buy(job: Job, session: Routeweiler, url: str, reporter: Reporter) -> None:
    for _ in range(job.calls):
        _call(session, url, reporter)


def _finish(job: Job, session: Routeweiler, reporter: Reporter) -> None:
    deadline = time.monotonic() + FINISH_S
    for url in job.urls:
        pending_since: float | None = None
        while (got := _call(session, url, reporter)) is not True and time.monotonic() < deadline:
            if isinstance(got, TokenRefusedError) and job.prefer and got.payment_hash:
                session.ledger.forget(got.payment_hash)  # as its user would, who has been told
            if isinstance(got, PaymentPendingError):
                pending_since = pending_since or time.monotonic()
                if time.monotonic() - pending_since > PATIENCE_S:
                    break
            else:
                pending_since = None
            time.sleep(FINISH_PAUSE_S)
    for _ in range(20):
        try:
            rows = session.recover()
        except RouteweilerError as error:
            reporter.tell("recover failed", kind=type(error).__name__, spent=error.spent, hash=error.payment_hash, text=str(error))
            time.sleep(FINISH_PAUSE_S)
            continue
        left = [row.payment_hash for row in rows if row.unfinished]
        reporter.tell("recovered", rows={row.payment_hash: row.state.value for row in rows}, left=left)
        return
