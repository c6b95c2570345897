"""Four processes with one budget: what one of them buys, all can read, and nothing is bought twice.

The processes share a ledger, here a file. For several machines it is a database:

    ROUTEWEILER_LEDGER=postgresql://worker@db.internal/l402

It prints:

    20 tasks in 4 processes have read 20 pages
    5 pages were bought, for 55 sat
    45 sat are left of 100
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from routeweiler_sync import Session
from routeweiler_sync.testing import FakeLnd, Paywall

PROCESSES, PAGES, TASKS = 4, 5, 20


@cache
def session() -> Session:
    """Return the session of this process. Wallet and ledger are those that the environment names; the budget is known by its id."""
    return Session(budget_envelope="fleet")


def task(url: str) -> str:
    """Fetch a page."""
    response = session().get(url, timeout=60)
    response.raise_for_status()
    return str(response.text)


if __name__ == "__main__":
    with TemporaryDirectory() as folder, FakeLnd() as lnd, Paywall(lnd, sells="path") as shop:
        lnd.fee_msat = 1_000
        ledger = str(Path(folder, "ledger.db"))
        os.environ.update(lnd.environ, ROUTEWEILER_LEDGER=ledger)  # the processes inherit it
        set_limits = ["budget", "set", "fleet", "--per-call", "20", "--cap", "100", "--json"]  # once for all workers
        subprocess.run([sys.executable, "-m", "routeweiler_sync", *set_limits], check=True, stdout=subprocess.DEVNULL)
        urls = [shop.url_for(f"/page/{number % PAGES}") for number in range(TASKS)]
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            pages = list(pool.map(task, urls))
        print(f"{TASKS} tasks in {PROCESSES} processes have read {len(pages)} pages")
        with Session() as reader:
            spending, budget = reader.ledger.spending(), reader.ledger.envelope("fleet")
        print(f"{spending.payments} pages were bought, for {spending.total_msat // 1000} sat")
        print(f"{budget.headroom_minor_units:.0f} sat are left of {budget.limits.cap_minor_units}")
