"""A process that gets pages, to be killed; see `told_once`."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests

from routeweiler_sync import BudgetEnvelope, Funding, LndClient, Routeweiler, TraceSink
from routeweiler_sync._core.preload import prepare_to_pay

prepare_to_pay("funding.lnd.channel")  # in the process that forks the buyers, so that each is there at once

PAGES = 40
#: A session is closed, and another one made, after so many calls.
CALLS_PER_SESSION = (1, 12)
HTTP_TIMEOUT_S, PAYMENT_TIMEOUT_S = 30.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one buyer does until ``until_s``, in unix seconds."""

    seed: tuple[int, int]
    until_s: float
    walls: tuple[str, ...]
    lnd: dict[str, Any]
    ledger: str
    trace: str

    def session(self) -> Routeweiler:
        client = LndClient(**self.lnd)
        sink = TraceSink.sqlite(self.trace) if self.trace.endswith(".db") else TraceSink.jsonl(self.trace)
        return Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
            ledger=self.ledger,
            trace_sink=sink,
            budget_envelope=BudgetEnvelope("torture", cap_minor_units=10**9),
            payment_timeout=PAYMENT_TIMEOUT_S,
        )


def buy(job: Job) -> None:
    """Get pages until the time is over: the main function of a buyer."""
    draw = random.Random(repr(job.seed))
    while time.time() < job.until_s:
        with job.session() as session:
            for _ in range(draw.randint(*CALLS_PER_SESSION)):
                if time.time() >= job.until_s:
                    break
                with suppress(requests.RequestException):  # what it comes to is seen in the end
                    session.get(f"{draw.choice(job.walls)}/{draw.randrange(PAGES)}", timeout=HTTP_TIMEOUT_S)
