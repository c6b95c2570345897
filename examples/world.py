"""Where the examples buy: from a paywall on this machine, through a fake lnd. No node, no network and no bitcoin is used.

In a program of your own, the session is this one, and the rest of an example stays as it is:

    with Session(budget_envelope=BUDGET) as session:  # pays with the wallet that the environment names
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync.testing import FakeLnd, Paywall


@contextmanager
def world(
    budget: BudgetEnvelope, make: Callable[..., Routeweiler] = Routeweiler, **options: Any
) -> Iterator[tuple[Routeweiler, Paywall]]:
    """Yield a session that pays from ``budget``, made by ``make``, and a shop to buy from. ``options`` are those of `Paywall`."""
    with TemporaryDirectory() as folder, FakeLnd() as lnd, Paywall(lnd, **options) as shop:
        lnd.fee_msat = 1_000  # what routing costs
        with make(funding=[lnd.funding()], budget_envelope=budget, ledger=f"{folder}/ledger.db") as session:
            yield session, shop
