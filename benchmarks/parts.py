"""Take a warm purchase on the fake node apart: how long each part takes.

    python -m benchmarks.parts [--purchases N]

Methods of the session's rooms are timed while it buys. One that is called while another is being timed counts for the other, so
the parts and the rest add up to the purchase. The rest is what no part has: the session's own work, and hand-overs between threads.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from requests.adapters import HTTPAdapter

from benchmarks import measure
from benchmarks.buyers import Ours
from benchmarks.shop import open_shop
from routeweiler_sync import Ledger
from routeweiler_sync.funding.lnd.node_client import LndNodeClient
from routeweiler_sync.protocol.l402 import challenge

SIZES = {"full": 400, "short": 150, "tiny": 3}
WARM_UP = 10
#: What each part is made of: an object, and the names of its functions.
PARTS: dict[str, list[tuple[Any, list[str]]]] = {
    "two HTTP requests": [(HTTPAdapter, ["send"])],
    "the order to the node, until it is settled": [(LndNodeClient, ["send"])],
    "asking whether the node is ready": [(LndNodeClient, ["check_ready"])],
    "reading the invoice": [(challenge, ["decode_invoice"])],
    "ledger: what it has for the page": [(Ledger, ["found", "newest_accepted"])],
    "ledger: the intent, before the order": [(Ledger, ["open_payment", "count_send"])],
    "ledger: the settlement, before the page": [(Ledger, ["change"])],
    "ledger: what was learned, after the page": [(Ledger, ["mark", "learn", "claim_report", "release_report"])],
}


class Stopwatch:
    """The seconds of each part of one purchase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._busy = False

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time counted for ``part``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return function(*args, **kwargs)
            self._busy, began_s = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - began_s
                self._busy = False

        return call


def one_purchase(buyer: Ours, url: str, watch: Stopwatch) -> dict[str, float]:
    """Buy a page. Return the seconds of its parts, of the rest, and of all."""
    watch.seconds = dict.fromkeys(PARTS, 0.0)
    began_s = time.perf_counter()
    assert buyer.get(url) == 200
    took_s = time.perf_counter() - began_s
    return {**watch.seconds, "the rest": took_s - sum(watch.seconds.values()), "the whole purchase": took_s}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--purchases", type=int)
    given = parser.parse_args(arguments)
    took: dict[str, list[float]] = defaultdict(list)
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for part, places in PARTS.items():
            for place, names in places:
                for name in names:
                    timed = watch.timed(part, getattr(place, name))
                    stack.enter_context(mock.patch.object(place, name, timed))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parts-")))
        shop = stack.enter_context(open_shop("fake"))
        buyer = stack.enter_context(contextlib.closing(Ours(shop.as_data(), folder)))
        for number in range(WARM_UP + (given.purchases or SIZES[given.size])):
            for name, seconds in one_purchase(buyer, shop.url(number), watch).items():
                if number >= WARM_UP:
                    took[name].append(seconds)
    return measure.finish("parts", given, [measure.single(name, seconds, unit="ms") for name, seconds in took.items()])


if __name__ == "__main__":
    sys.exit(main())
