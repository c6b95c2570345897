"""Torture: crowds of threads that want one page at once, cold - nothing bought, no ledger yet, no connection to anything.

    python -m tests.torture.cold_starts --rounds 1000 --threads 64 --seed 1

Each round: a fresh ledger file and a fresh paywall, one fake lnd for all; every other round the threads share one session. The
node's own record says how often it paid. ``--faults``: in every other round or so something also goes wrong that must neither
cost a second payment nor the page (broken streams, a node that knows nothing of the order, late settlements, slow answers).
``--first N`` begins at round N: a round can be repeated by itself. Exit code 1 unless each round paid once and gave all its pages.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import requests

from routeweiler_sync import Ledger, PaymentState, Routeweiler
from routeweiler_sync.funding.lightning import LightningFundingSource
from routeweiler_sync.testing import FakeLnd, Paywall

#: Generous: a slow machine mustn't look like a deadlock.
PATIENCE_S: Final = 120.0
PRICE_MSAT, FEE_MSAT_MAX = 10_000, 500
TOLD_EVERY_ROUNDS = 50

#: What can go wrong in a round, though each thread is to get its page for one payment.
FAULTS: dict[str, Callable[[FakeLnd, Paywall, random.Random], object]] = {
    "order lost": lambda lnd, paywall, dice: lnd.drop_next("before_init"),
    "stream broken": lambda lnd, paywall, dice: lnd.drop_next(dice.choice(("after_init", "in_flight"))),
    "word lost": lambda lnd, paywall, dice: lnd.drop_next("after_paying"),
    "settlement lags": lambda lnd, paywall, dice: setattr(paywall.faults, "settle_lag", dice.randint(1, 2)),
    "slow server": lambda lnd, paywall, dice: setattr(paywall.faults, "delay_s", dice.uniform(0.001, 0.02)),
    "routing costs": lambda lnd, paywall, dice: setattr(lnd, "fee_msat", dice.randint(1, FEE_MSAT_MAX)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one cold start came to. ``payments``: all that the node began in it; ``came_to``: statuses, and names of errors."""

    number: int
    shared: bool
    fault: str | None
    came_to: Counter[int | str]
    payments: int
    succeeded: int
    drift_msat: int

    @property
    def requests(self) -> int:
        """Calls made."""
        return self.came_to.total()

    @property
    def right(self) -> bool:
        """Whether there was exactly one payment, each call got its page, and the ledger agrees with the node to the msat."""
        return (self.payments, self.succeeded, self.drift_msat) == (1, 1, 0) and self.came_to.keys() == {200}

    def __str__(self) -> str:
        sessions = "one session" if self.shared else "a session each"
        return (
            f"round {self.number} ({sessions}, {self.fault or 'no fault'}): {dict(self.came_to)}, {self.payments} payments, "
            f"{self.succeeded} SUCCEEDED, drift {self.drift_msat} msat"
        )


def storm(sessions: Sequence[Routeweiler], url: str) -> Counter[int | str]:
    """One call for each of ``sessions``, all let go at once. What they came to."""
    came_to: list[int | str] = ["hangs"] * len(sessions)
    start = threading.Barrier(len(sessions))

    def call(at: int) -> None:
        try:
            start.wait(PATIENCE_S)
            came_to[at] = sessions[at].get(url, timeout=PATIENCE_S).status_code
        except requests.RequestException as error:
            came_to[at] = type(error).__name__
        except BaseException as error:  # a fault of ours: told, as the rest of the round is
            came_to[at] = f"fault: {error!r}"

    threads = [threading.Thread(target=call, args=(at,), daemon=True) for at in range(len(sessions))]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return Counter(came_to)


def cold_start(
    lnd: FakeLnd, funding: LightningFundingSource, folder: Path, plan: tuple[int, int], *, threads: int, faults: bool
) -> Round:
    """Round ``plan`` = (seed, number)."""
    seed, number = plan
    dice = random.Random(f"{seed}/{number}")
    shared = number % 2 == 1
    fault = dice.choice([None, *FAULTS]) if faults else None
    before, spent_before_msat = len(lnd.payments), lnd.spent_msat
    lnd.fee_msat = 0
    with tempfile.TemporaryDirectory(dir=folder) as place, Paywall(lnd, price_msat=PRICE_MSAT) as paywall:
        if fault is not None:
            FAULTS[fault](lnd, paywall, dice)
        path = Path(place) / "ledger.db"
        made = [Routeweiler(funding=[funding], ledger=path) for _ in range(1 if shared else threads)]
        came_to = storm(made * threads if shared else made, paywall.url)
        for session in made:
            session.close()
        ledger = Ledger.open(path)
        rows = list(ledger.payments())
        held_sat = sum((each.settled_minor_units + each.reserved_minor_units for each in ledger.envelopes()), Decimal(0))
        ledger.close()
    lnd.clear_faults()
    mine = lnd.payments[before:]
    spent_msat = lnd.spent_msat - spent_before_msat
    booked_msat = sum(row.amount_msat + row.fee_msat for row in rows if row.state is PaymentState.SETTLED)
    return Round(
        number=number,
        shared=shared,
        fault=fault,
        came_to=came_to,
        payments=len(mine),
        succeeded=sum(payment.status == "SUCCEEDED" for payment in mine),
        drift_msat=int(abs(spent_msat - booked_msat) + abs(spent_msat - 1000 * held_sat)),
    )


def torture(folder: Path, *, rounds: int, threads: int, seed: int, first: int = 0, faults: bool = False) -> list[Round]:
    """So many rounds on one fake lnd; wrong ones are printed as they come."""
    done: list[Round] = []
    began_s = time.monotonic()
    with FakeLnd() as lnd:
        funding = lnd.funding()
        for number in range(first, first + rounds):
            done.append(cold_start(lnd, funding, folder, (seed, number), threads=threads, faults=faults))
            if not done[-1].right:
                print("WRONG", done[-1], flush=True)
            elif len(done) % TOLD_EVERY_ROUNDS == 0:
                print(f"{len(done)} rounds, {time.monotonic() - began_s:.0f} s", flush=True)
    return done


def summary(done: Sequence[Round]) -> str:
    """The closing line."""
    return (
        f"{len(done)} rounds ({sum(each.shared for each in done)} with one session, {sum(each.fault is not None for each in done)} "
        f"with a fault), {sum(each.requests for each in done)} requests, {sum(each.payments for each in done)} payments, "
        f"{sum(each.succeeded for each in done)} SUCCEEDED, {sum(each.came_to[200] for each in done)} times 200, "
        f"{sum(each.drift_msat for each in done)} msat of drift, {sum(not each.right for each in done)} wrong"
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.cold_starts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--faults", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cold-starts-") as folder:
        done = torture(
            Path(folder), rounds=given.rounds, threads=given.threads, seed=given.seed, first=given.first, faults=given.faults
        )
    print(summary(done))
    return 0 if all(each.right for each in done) and len(done) == given.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
