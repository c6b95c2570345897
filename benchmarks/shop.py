"""What the benchmarks buy from, in a process of its own: a node that pays, and a server that asks for payment.

`open_shop` yields a `Shop`, which says how both are reached. ``fake`` is `FakeLnd` with a `Paywall` of the testing kit. ``lnd`` is
the world of ``tests/regtest``: three real lnds in a row, a real aperture, and a real btcd.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 600
PRICE_SAT = 10
#: aperture sells one token for all pages of a service. So that each purchase needs a token of its own, each has a service.
SERVICES = 1_000


@dataclass(frozen=True, kw_only=True)
class Shop:
    """How the paying node and the server are reached.

    All pages are sold one by one. ``page`` is the address of the one with the number ``{}``. Its path has two parts, because a peer
    keeps its tokens by these.
    """

    page: str
    grpc_host: str
    grpc_port: int
    rest_url: str
    tls_cert_path: str
    macaroon_path: str
    node_pubkey: str

    def url(self, number: int) -> str:
        """Return the address of a page."""
        return self.page.format(number)

    def write(self, file: Path, ledger: str | None = None) -> Path:
        """Write this to ``file`` as JSON, for `benchmarks.buyers`. They share ``ledger``; without one, each has its own."""
        file.write_text(json.dumps(self.as_data(ledger)), encoding="utf-8")
        return file

    def as_data(self, ledger: str | None = None) -> dict[str, Any]:
        """Return what a buyer needs."""
        return {**asdict(self), "ledger": ledger}


@contextlib.contextmanager
def open_shop(node: str) -> Iterator[Shop]:
    """Run a shop in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target={"fake": _serve_fake, "lnd": _serve_lnd}[node], args=(far,))
    process.start()
    far.close()
    try:
        if not near.poll(START_TIMEOUT_S):
            raise TimeoutError(f"the shop with the node {node!r} didn't start in {START_TIMEOUT_S} s")
        yield Shop(**near.recv())
    finally:
        near.close()  # what it waits for
        process.join(START_TIMEOUT_S)


def _serve_fake(pipe: Connection) -> None:
    from routeweiler_sync.testing import FakeLnd, Paywall

    with FakeLnd() as lnd, Paywall(lnd, dynamic=True, price_msat=PRICE_SAT * 1_000) as paywall:
        _serve(
            pipe,
            page=paywall.url_for("/s{}/page"),
            grpc_host=lnd.host,
            grpc_port=lnd.port,
            rest_url=lnd.rest_url,
            tls_cert_path=lnd.tls_cert_path,
            macaroon_path=lnd.macaroon_path,
            node_pubkey=lnd.node_pubkey,
        )


def _serve_lnd(pipe: Connection) -> None:
    from tests.regtest.build import binaries
    from tests.regtest.world import Service, start_world

    services = [Service(name=f"s{number}", price_sat=PRICE_SAT) for number in range(SERVICES)]
    with start_world(binaries()) as world, world.another_aperture(services) as aperture:
        _serve(
            pipe,
            page=f"{aperture.url}/s{{}}/page",
            grpc_host=world.payer.grpc_host,
            grpc_port=world.payer.grpc_port,
            rest_url=f"https://{world.payer.rest_address}",
            tls_cert_path=str(world.payer.tls_cert_path),
            macaroon_path=str(world.payer.admin_macaroon_path),
            node_pubkey=world.payer.pubkey,
        )


def _serve(pipe: Connection, **place: Any) -> None:
    pipe.send(place)
    with contextlib.suppress(EOFError):
        pipe.recv()
