"""A crowd that wants one page: threads of this process, and of processes of their own that begin on a word. What each came to."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from routeweiler_sync import Funding, LndClient, Routeweiler, RouteweilerError, TraceSink
from routeweiler_sync.funding.lightning import LightningFundingSource

from .ledger_builders import PATIENCE_S, at_once

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call came to: a page's ``status``, or the name of an ``error`` of ours with its ``spent`` and hash (hex)."""

    status: int | None = None
    error: str | None = None
    spent: bool | None = None
    payment_hash: str | None = None
    lasted_s: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process does: ``threads`` calls at once. ``freezes``: it hangs for good as it is about to send the order."""

    url: str
    ledger: str
    trace: str
    node: Mapping[str, str]
    threads: int
    payment_timeout_s: float
    freezes: bool = False


def outcome_of(call: Callable[[], Any]) -> Outcome:
    """Make the call, and tell what it came to. An error that isn't ours passes."""
    began_s = time.monotonic()
    try:
        response = call()
    except RouteweilerError as error:
        return Outcome(
            error=type(error).__name__,
            spent=error.spent,
            payment_hash=error.payment_hash,
            lasted_s=time.monotonic() - began_s,
        )
    return Outcome(
        status=response.status_code,
        payment_hash=response.payment.payment_hash if response.payment else None,
        lasted_s=time.monotonic() - began_s,
    )


def get_at_once(session: Routeweiler, url: str, threads: int) -> list[Outcome]:
    """``threads`` calls over one session, all at once."""
    return at_once([lambda: outcome_of(lambda: session.get(url, timeout=PATIENCE_S))] * threads)


def _work(job: Job, word: Connection) -> None:
    """The process's main function. Says "ready", waits for a word, buys, sends its outcomes."""
    if job.freezes:
        _freeze_before_the_order(word)
    host, _, port = job.node["LND_GRPC_HOST"].rpartition(":")
    client = LndClient(host, int(port), job.node["LND_MACAROON_PATH"], tls_cert_path=job.node["LND_TLS_CERT_PATH"])
    session = Routeweiler(
        funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
        ledger=job.ledger,
        trace_sink=TraceSink.jsonl(job.trace),
        payment_timeout=job.payment_timeout_s,
    )
    with session:
        word.send("ready")
        word.recv()
        word.send(get_at_once(session, job.url, job.threads))


def _freeze_before_the_order(word: Connection) -> None:
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        word.send("frozen")
        threading.Event().wait()

    LightningFundingSource.send = send  # type: ignore[method-assign]


class Buyers:
    """A process of buyers, ready when made."""

    def __init__(self, job: Job) -> None:
        self._word, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_work, args=(job, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def heard(self) -> Any:
        """The next thing that the process says."""
        if not self._word.poll(PATIENCE_S):
            raise TimeoutError("the buyers say nothing")
        return self._word.recv()

    def go(self) -> None:
        self._word.send("go")

    def kill(self) -> None:
        """As by kill -9: it is gone when this returns."""
        self.process.kill()
        self.process.join(PATIENCE_S)
        assert not self.process.is_alive()


@contextmanager
def crowd(job: Job, *, processes: int) -> Iterator[list[Buyers]]:
    """So many processes, all ready; what is left of them at the end is killed."""
    buyers = [Buyers(job) for _ in range(processes)]
    try:
        for each in buyers:
            assert each.heard() == "ready"
        yield buyers
    finally:
        for each in buyers:
            each.kill()
