"""Buy pages with one library, in an interpreter of its own. `benchmarks.purchase` starts one such process for each library.

    python -m benchmarks.buyers NAME SHOP.json once URL     buy one page, and end
    python -m benchmarks.buyers NAME SHOP.json serve        do what the lines of stdin say

The lines are ``warm URL`` and ``cold URL``, each answered with the seconds of the purchase, and ``many SECONDS FIRST``: buy the
pages with the number FIRST and above for so long, answered with how many were bought a second.

``warm`` buys with one session that stays open. ``cold`` makes a new client with a new ledger (if the library has one) first, and
counts that; closing it isn't counted. Only what a library needs is imported, and only when it is chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from json import loads
from pathlib import Path
from types import TracebackType
from typing import Any

STUBS = Path(__file__).parent.parent / "routeweiler_sync" / "funding" / "lnd" / "stubs"
TIMEOUT_S = 60
MAX_FEE_MSAT = 10_000


class Buyer:
    """What all have: `get` buys the page and returns its status."""

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        raise NotImplementedError

    def get(self, url: str) -> int:
        """Buy the page, whatever it takes. Return the status of the last answer, whose body was read."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open."""


class Ours(Buyer):
    """This package: a ledger, a budget with all its limits; each payment is on disk before it is ordered."""

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        from routeweiler_sync import BudgetEnvelope, Funding, LndClient, Routeweiler

        client = LndClient(
            grpc_host=shop["grpc_host"],
            grpc_port=shop["grpc_port"],
            tls_cert_path=shop["tls_cert_path"],
            macaroon_path=shop["macaroon_path"],
        )
        funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest")
        # The default limits, but so high that no benchmark comes near.
        envelope = BudgetEnvelope("benchmark", per_call_minor_units=1_000, per_hour_minor_units=10**9, per_day_minor_units=10**9)
        ledger = shop["ledger"] or folder / "ledger.db"
        self.session = Routeweiler(funding=[funding], ledger=ledger, budget_envelope=envelope)
        self._client = client

    def get(self, url: str) -> int:
        return self.session.get(url, timeout=TIMEOUT_S).status_code

    def close(self) -> None:
        self.session.close()
        self._client.close()


class BareLoop(Buyer):
    """`requests` and grpcio by hand, with the calls that a purchase needs. It keeps nothing, checks nothing, limits nothing."""

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        import grpc
        import requests

        sys.path.insert(0, str(STUBS))  # the generated module alone, not the package above it
        import routeweiler_lnd_pb2 as pb

        credentials = grpc.ssl_channel_credentials(Path(shop["tls_cert_path"]).read_bytes())
        self._channel = grpc.secure_channel(f"{shop['grpc_host']}:{shop['grpc_port']}", credentials)
        self._send = self._channel.unary_stream(
            "/routerrpc.Router/SendPaymentV2",
            request_serializer=pb.SendPaymentRequest.SerializeToString,
            response_deserializer=pb.Payment.FromString,
        )
        self._pb = pb
        self._metadata = [("macaroon", Path(shop["macaroon_path"]).read_bytes().hex())]
        self.session = requests.Session()

    def get(self, url: str) -> int:
        challenge = self.session.get(url, timeout=TIMEOUT_S).headers["WWW-Authenticate"]
        found = re.search(r'macaroon="([^"]*)", invoice="([^"]*)"', challenge)
        assert found is not None
        order = self._pb.SendPaymentRequest(payment_request=found[2], fee_limit_msat=MAX_FEE_MSAT, timeout_seconds=TIMEOUT_S)
        for payment in self._send(order, timeout=TIMEOUT_S, metadata=self._metadata):
            if payment.status == self._pb.Payment.SUCCEEDED:
                break
        else:
            raise RuntimeError("not paid")
        headers = {"Authorization": f"L402 {found[1]}:{payment.payment_preimage}"}
        return self.session.get(url, headers=headers, timeout=TIMEOUT_S).status_code

    def close(self) -> None:
        self.session.close()
        self._channel.close()


class Asynchronous(Buyer):
    """A library for asyncio, with an event loop that stays."""

    _client: Any

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._open(shop, folder))

    async def _open(self, shop: dict[str, Any], folder: Path) -> None:
        raise NotImplementedError

    def get(self, url: str) -> int:
        return int(self._loop.run_until_complete(self._client.get(url)).status_code)

    def close(self) -> None:
        self._loop.run_until_complete(self._client.__aexit__(None, None, None))
        self._loop.close()


class RouteweilerAsync(Asynchronous):
    """``routeweiler``: with its SQLite file for traces and tokens, as its README shows.

    Without an envelope: they are in fiat, and ask a server on the internet for the price of a bitcoin. The file is written with
    ``synchronous=NORMAL``, so nothing waits for the disk. It makes a new channel to lnd for each payment.
    """

    async def _open(self, shop: dict[str, Any], folder: Path) -> None:
        from routeweiler import Funding, Routeweiler, TraceSink
        from routeweiler.funding.lightning import LndClient

        client = LndClient(
            grpc_host=shop["grpc_host"],
            grpc_port=shop["grpc_port"],
            macaroon_path=shop["macaroon_path"],
            tls_cert_path=shop["tls_cert_path"],
        )
        # Given the node's key, as the server's address is given: asking the node for it would cost the peer another call.
        funding = Funding.lightning_lnd(
            client=client, network="bitcoin-regtest", node_pubkey=shop["node_pubkey"], max_fee_msat=MAX_FEE_MSAT
        )
        self._client = Routeweiler(
            funding=[funding], trace_sink=TraceSink.sqlite(str(folder / "trace.db")), keystore_root=folder / "keys"
        )
        await self._client.__aenter__()


class L402Requests(Buyer):
    """``l402-requests``, its synchronous client over lnd's REST interface. It keeps tokens and budget in memory, nothing on disk.

    It makes a new HTTP client for each call and another for each payment, with a certificate store of its own. Its wallet for lnd
    takes the preimage, which lnd gives in hex, for base64, so that the server refuses the token. That is undone here.
    """

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        import base64

        from l402_requests import L402Client
        from l402_requests.wallets import lnd

        class LndWallet(lnd.LndWallet):  # type: ignore[misc]
            async def pay_invoice(self, bolt11: str) -> str:
                return base64.b64encode(bytes.fromhex(await super().pay_invoice(bolt11))).decode()

        macaroon_hex = Path(shop["macaroon_path"]).read_bytes().hex()
        self._client = L402Client(wallet=LndWallet(shop["rest_url"], macaroon_hex, shop["tls_cert_path"]), budget=None)

    def get(self, url: str) -> int:
        return int(self._client.get(url).status_code)


class L402Sdk(Buyer):
    """``l402sdk``, in Rust, over lnd's REST interface. It keeps tokens and budget in memory, nothing on disk.

    Its gRPC client refuses the certificate that lnd makes for itself; its REST client takes any certificate.
    """

    def __init__(self, shop: dict[str, Any], folder: Path) -> None:
        from l402 import L402Client

        self._client = L402Client.with_lnd_rest(shop["rest_url"], Path(shop["macaroon_path"]).read_bytes().hex())

    def get(self, url: str) -> int:
        answer = self._client.get(url)
        assert answer.paid
        answer.text()
        return int(answer.status)


BUYERS: dict[str, type[Buyer]] = {
    "routeweiler_sync": Ours,
    "bare loop": BareLoop,
    "routeweiler": RouteweilerAsync,
    "l402-requests": L402Requests,
    "l402sdk": L402Sdk,
}


class _Open:
    """A buyer in a folder of its own, which are both gone after the block."""

    def __init__(self, make: type[Buyer], shop: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="buyer-", ignore_cleanup_errors=True)
        self._make, self._shop = make, shop

    def __enter__(self) -> Buyer:
        self._buyer = self._make(self._shop, Path(self._folder.name))
        return self._buyer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._buyer.close()
        self._folder.cleanup()


def serve(make: type[Buyer], shop: dict[str, Any], clock: Callable[[], float]) -> None:
    """Do what the lines of stdin say. Write an answer to each to stdout."""
    with contextlib.ExitStack() as stack:
        warm = None
        for line in sys.stdin:
            how, what, *more = line.split()
            if how == "cold":
                answer: float = buy_cold(make, shop, what, clock)
            else:
                warm = warm or stack.enter_context(_Open(make, shop))
                answer = buy(warm, what, clock) if how == "warm" else buy_many(warm, shop, float(what), int(more[0]))
            print(answer, flush=True)


def buy(buyer: Buyer, url: str, clock: Callable[[], float]) -> float:
    """Buy a page. Return the seconds."""
    began_s = clock()
    status = buyer.get(url)
    took_s = clock() - began_s
    assert status == 200, status
    return took_s


def buy_cold(make: type[Buyer], shop: dict[str, Any], url: str, clock: Callable[[], float]) -> float:
    """Make a buyer and buy a page with it. Return the seconds of both."""
    new = _Open(make, shop)
    began_s = clock()
    with new as buyer:
        status = buyer.get(url)
        took_s = clock() - began_s
    assert status == 200, status
    return took_s


def buy_many(buyer: Buyer, shop: dict[str, Any], seconds: float, first: int) -> float:
    """Buy pages for ``seconds``, and finish the last. Return how many a second."""
    bought, began_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < seconds:
        assert buyer.get(shop["page"].format(first + bought)) == 200
        bought += 1
    return bought / took_s


def main(arguments: list[str]) -> None:
    """Do what the arguments say."""
    name, file, how, *more = arguments
    make, shop = BUYERS[name], loads(Path(file).read_text(encoding="utf-8"))
    if how == "once":
        with _Open(make, shop) as buyer:
            assert buyer.get(more[0]) == 200
    else:
        serve(make, shop, time.process_time if "cpu" in more else time.perf_counter)


if __name__ == "__main__":
    main(sys.argv[1:])
