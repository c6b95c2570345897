"""A thousand pages on an engine, each wanted by three tasks; a budget too small; workers killed in the midst of payments.

    python -m tests.engines.thousand --engine dask --pages 1000 --deaths 5

``--engine`` may be given more than once; without it all engines run, one after the other. The exit code is 1 if anything was paid
twice, lost, or came back other than it was.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback

from tests.postgres.server import Server

from .fleet import Fleet
from .pools import POOLS
from .shop import Shop


def run(engine: str, *, pages: int, deaths: int) -> dict[str, object]:
    """Both loads on this engine. Raises: AssertionError where a promise isn't kept."""
    with Server.make() as server, Shop.make() as shop, Fleet.make(server, shop) as fleet:
        begun = time.monotonic()
        with POOLS[engine].make() as pool:
            started = time.monotonic()
            refused = fleet.beyond_the_cap(pool, pages)
            capped = time.monotonic()
            killed = fleet.with_deaths(pool, pages, deaths=deaths)
            ended = time.monotonic()
        return {
            "engine": engine,
            "start_s": round(started - begun, 1),
            "beyond the cap, sessions pickled": {**refused, "s": round(capped - started, 1)},
            "with deaths, a session for each process": {**killed, "s": round(ended - capped, 1)},
            "paid msat": sum(payment.amount_msat for payment in shop.payments),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=sorted(POOLS))
    parser.add_argument("--pages", type=int, default=1_000)
    parser.add_argument("--deaths", type=int, default=5)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever is told to end stops what they have started
    failures = 0
    for engine in arguments.engine or sorted(POOLS):
        try:
            print(json.dumps(run(engine, pages=arguments.pages, deaths=arguments.deaths)), flush=True)
        except AssertionError:
            failures += 1
            print(f"{engine}: {traceback.format_exc()}", file=sys.stderr, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
