"""Buyers over any wallet, as processes that die: where they are told to, or when the test kills them.

A server process has everything imported and opens nothing; it forks a child for each job, so that a death costs milliseconds.

    python -m tests.support.wallet_buyers        (reads jobs as lines of JSON, answers with pids and exit codes)
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from typing import Any

from routeweiler_sync import LightningFundingSource, Routeweiler, RouteweilerError, TraceSink

from .crashing_buyer import DIED, die_at
from .forked_jobs import serve
from .wallet_contract import NETWORK, Recipe

#: No call waits so long unless something is broken.
PAYMENT_TIMEOUT_S = 20.0


def buy(recipe: list[Any], url: str, ledger: str, trace: str, point: str | None) -> None:
    """Make one call over the wallet of ``recipe``, and die at ``point`` (see `crashing_buyer`) if there is one."""
    if point is not None:
        die_at(point)
    client = Recipe(name=recipe[0], arguments=recipe[1]).build()
    with (
        Routeweiler(
            funding=[LightningFundingSource(client=client, network=NETWORK)],
            ledger=ledger,
            trace_sink=TraceSink.jsonl(trace),
            payment_timeout=PAYMENT_TIMEOUT_S,
        ) as session,
        contextlib.suppress(RouteweilerError),
    ):
        session.get(url, timeout=30)


class Buyers:
    """The server above, running inside ``with``."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.wallet_buyers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Buyers:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=30)
        assert self._server.returncode == 0

    def begin(self, recipe: Recipe, url: str, ledger: object, trace: object, point: str | None = None) -> int:
        """Start a buyer. Returns its process id."""
        job = {
            "recipe": [recipe.name, recipe.arguments],
            "url": url,
            "ledger": str(ledger),
            "trace": str(trace),
            "point": point,
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def ended(self) -> int:
        """The exit code of the buyer, once it has ended: `DIED` at its point, -9 if killed."""
        code = int(self._line())
        assert code in (0, DIED, -signal.SIGKILL), f"the buyer ended with {code}"
        return code

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


if __name__ == "__main__":
    serve(buy, tells_pid=True)
