"""What the engines' workers do: functions of a module, so that each engine can name them to its workers."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from routeweiler_sync import Funding, LndClient, Routeweiler

from .shop import NETWORK

#: Names a folder in which each running task leaves a file: which process does what.
RUNNING = "ENGINES_RUNNING"
ENVELOPE = "fleet"
LEDGER = "ROUTEWEILER_LEDGER"
#: Names a page that a process fetches with its session before it forks its workers.
FIRST = "ENGINES_FIRST"


@dataclass(frozen=True, slots=True)
class Page:
    """What came of a call. ``bought``: this very call has paid for it."""

    status: int
    content: bytes
    payment_hash: str
    bought: bool


def new_session(**more: Any) -> Routeweiler:
    """A session on the shared ledger and budget. The worker's environment says where node and ledger are."""
    return Routeweiler(
        funding=[Funding.lightning_lnd(client=LndClient.from_env(), network=NETWORK)],
        ledger=os.environ[LEDGER],
        budget_envelope=ENVELOPE,
        **more,
    )


@cache
def own_session() -> Routeweiler:
    """The one session of this process, made when it is first needed."""
    return new_session()


def fetch(session: Routeweiler, url: str) -> Page:
    """Fetch ``url`` with this session; an engine has pickled it."""
    with _running(url):
        response = session.get(url, timeout=60.0)
    payment = response.payment
    assert payment is not None
    return Page(response.status_code, response.content, payment.payment_hash, not payment.reused)


def fetch_here(url: str) -> Page:
    """Fetch ``url`` with the session of this process."""
    return fetch(own_session(), url)


@contextlib.contextmanager
def _running(url: str) -> Iterator[None]:
    mark = Path(os.environ[RUNNING], f"{os.getpid()}-{threading.get_ident()}")
    mark.write_text(url)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def pid_of(path: str) -> int:
    """The process of a task that fetches this path now."""
    for mark in Path(os.environ[RUNNING]).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if mark.read_text().endswith(path):
                return int(mark.name.partition("-")[0])
    raise LookupError(path)


def forget(pid: int) -> None:
    """Remove what a process that was killed has left in the folder of the running tasks."""
    for mark in Path(os.environ[RUNNING]).glob(f"{pid}-*"):
        mark.unlink(missing_ok=True)
