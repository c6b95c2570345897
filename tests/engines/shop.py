"""A paywall whose every page costs, and the node that pays for them, in a process of their own: engines fork, and kill."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._lnd_book import FakePayment

PRICE_MSAT = 10_000
NETWORK = "bitcoin-regtest"
STOP_S = 20.0


def page(url: str) -> bytes:
    """What the page at this path or URL says."""
    return b"page " + url.rpartition("/")[2].encode()


class Shop:
    """The way to that process. Its node pays without a fee, so that the last millisatoshi of a budget can be spent."""

    def __init__(self, words: Connection) -> None:
        self._words = words
        self.environ: dict[str, str] = self._ask("environ")
        self.url: str = self._ask("url")

    @classmethod
    @contextlib.contextmanager
    def make(cls) -> Iterator[Shop]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        try:
            yield cls(ours)
        finally:
            ours.close()
            process.join(STOP_S)
            process.kill()

    def _ask(self, what: str) -> Any:
        self._words.send(what)
        return self._words.recv()

    @property
    def payments(self) -> list[FakePayment]:
        """All that the node has begun to pay."""
        return self._ask("payments")  # type: ignore[no-any-return]

    def hang_next(self) -> None:
        """Leave the next payment in flight, until `release`."""
        self._ask("hang_next")

    def hang_all(self) -> None:
        """Leave all payments in flight, until `release`."""
        self._ask("hang_all")

    def release(self) -> None:
        """Let what hangs go on."""
        self._ask("release")

    def wait_hanging(self) -> str:
        """The payment hash of one that hangs, once there is one."""
        return self._ask("wait_hanging")  # type: ignore[no-any-return]


def _serve(words: Connection) -> None:
    with FakeLnd() as lnd, Paywall(lnd, price_msat=PRICE_MSAT, sells="path") as wall:
        wall.respond = lambda request: (200, {}, page(request.path))

        def hanging(node: FakeLnd) -> list[str]:
            return [each.payment_hash for each in node.payments if each.status == "IN_FLIGHT"]

        def wait_hanging() -> str:
            lnd.wait_for(lambda node: bool(hanging(node)), 60.0)
            return hanging(lnd)[0]

        def release() -> None:
            lnd.clear_faults()
            lnd.release()

        deeds: dict[str, Any] = {
            "environ": lambda: lnd.environ,
            "url": lambda: wall.base_url,
            "payments": lambda: lnd.payments,
            "hang_next": lnd.hang_next,
            "hang_all": lambda: lnd.hang_next(times=None),
            "release": release,
            "wait_hanging": wait_hanging,
        }
        with contextlib.suppress(EOFError):
            while True:
                words.send(deeds[words.recv()]())
