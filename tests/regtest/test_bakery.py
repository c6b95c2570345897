"""The macaroon of ``routeweiler-sync bakery`` on the real lnd: baked as printed, enough to pay, and too little for more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from routeweiler_sync import Funding, FundingError, Ledger, LndClient, PaymentPendingError, PaymentState, Routeweiler

from .build import binaries
from .processes import CommandError, wait_for
from .world import World

NETWORK = "bitcoin-regtest"
PAYING = {"/routerrpc.Router/SendPaymentV2", "/routerrpc.Router/TrackPaymentV2", "/lnrpc.Lightning/GetInfo"}
#: What a thief of a macaroon would try first, as lncli's words. The last would make a macaroon of everything.
MORE = {
    "send coins": "sendcoins --force --addr {address} --amt 20000",
    "open a channel": "openchannel --node_key {payee} --local_amt 20000",
    "close all channels": "closeallchannels --force --skip_confirmation",
    "make an address": "newaddress p2wkh",
    "make an invoice": "addinvoice --amt 1",
    "list invoices": "listinvoices",
    "list payments": "listpayments",
    "list channels": "listchannels",
    "read the wallet": "walletbalance",
    "sign a message": "signmessage hello",
    "export the channels": "exportchanbackup --all",
    "change fees": "updatechanpolicy --base_fee_msat 0 --fee_rate 0 --time_lock_delta 40",
    "stop the node": "stop",
    "bake a macaroon": "bakemacaroon info:read",
    "bake it again with more": "bakemacaroon uri:/lnrpc.Lightning/SendCoins",
}


class Bakery:
    """The command, and a shell whose lncli reaches the payer."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        payer = world.payer
        lncli = folder / "bin" / "lncli"
        lncli.parent.mkdir()
        lncli.write_text(
            f'#!/bin/sh\nexec "{binaries().lncli}" "--lnddir={payer.folder}" "--rpcserver={payer.grpc_address}" "$@"\n'
        )
        lncli.chmod(0o700)

    def routeweiler(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "routeweiler_sync", *args],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def bake(self, *options: str) -> Path:
        """Run what the command prints, in a shell, as a user does who pipes it there. Return the macaroon's file."""
        path = self.folder / "the payer's.macaroon"
        path.unlink(missing_ok=True)
        printed = self.routeweiler("bakery", "--network", NETWORK, "--save-to", str(path), *options)
        assert printed.returncode == 0, printed.stderr
        assert len(printed.stdout.splitlines()) == 1
        shell = subprocess.run(
            ["sh"],
            input=printed.stdout,
            env={"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert shell.returncode == 0, shell.stderr
        return path

    def environ(self, macaroon: Path) -> dict[str, str]:
        return {**self.world.environment(), "POLAR_LND_MACAROON": str(macaroon)}

    @contextmanager
    def client(self, macaroon: Path) -> Iterator[LndClient]:
        payer = self.world.payer
        with closing(LndClient(payer.grpc_host, payer.grpc_port, macaroon, tls_cert_path=payer.tls_cert_path)) as client:
            yield client


@pytest.fixture
def bakery(world: World, tmp_path: Path) -> Bakery:
    return Bakery(world, tmp_path)


def test_the_printed_macaroon_buys_asks_and_recovers(world: World, bakery: Bakery, tmp_path: Path) -> None:
    """Too narrow for one of the three, users would take the admin's: the one that can do everything."""
    macaroon, ledger_path = bakery.bake(), tmp_path / "ledger.db"
    with bakery.client(macaroon) as client:
        funding = Funding.lightning_lnd(client=client, network=NETWORK)
        with Routeweiler(funding=[funding], ledger=ledger_path, payment_timeout=3) as session:
            response = session.get(world.url("service-a", "page"))
            assert (response.status_code, response.payment and response.payment.amount_msat) == (200, 10_000)
            assert response.payment is not None
            bought = client.track_payment(bytes.fromhex(response.payment.payment_hash))
            assert (bought.state, bought.fee_msat) == ("succeeded", response.payment.fee_msat)
            world.router.freeze()
            with pytest.raises(PaymentPendingError) as pending:
                session.get(world.url("service-b", "page"))
    stuck = pending.value.payment_hash
    assert stuck is not None
    environ = bakery.environ(macaroon)
    assert bakery.routeweiler("payments", "recover", "--ledger", str(ledger_path), **environ).returncode == 5
    world.router.thaw()
    wait_for(
        "the payment has arrived",
        lambda: [known["status"] for known in world.payer.payments_of(stuck)] == ["SUCCEEDED"],
        watched=[world.payer.daemon],
    )
    done = bakery.routeweiler("payments", "recover", "--ledger", str(ledger_path), **environ)
    assert done.returncode == 0, done.stderr
    with closing(Ledger.open(ledger_path)) as ledger:
        assert [row.state for row in ledger.payments()] == [PaymentState.SETTLED] * 2


def test_the_printed_macaroon_can_do_no_more(world: World, bakery: Bakery) -> None:
    """A macaroon on a machine that fetches pages is stolen one day: it must not empty the node's wallet."""
    macaroon = bakery.bake()
    places = {"address": world.router.lncli("newaddress", "p2wkh")["address"], "payee": world.payee.pubkey}
    for deed, words in MORE.items():
        with pytest.raises(CommandError) as refused:
            world.payer.lncli_text(f"--macaroonpath={macaroon}", *words.format(**places).split())
        assert "permission denied" in str(refused.value), deed
    assert world.payer.lncli("state")["state"] == "SERVER_ACTIVE"


def test_of_all_calls_of_lnd_the_macaroon_permits_three(world: World, bakery: Bakery) -> None:
    """A list of deeds leaves out what its author didn't think of. lnd itself says which calls there are."""
    macaroon = bakery.bake()
    permissions = world.payer.lncli("listpermissions")["method_permissions"]
    assert len(permissions) > 80
    metadata = [("macaroon", macaroon.read_bytes().hex())]
    credentials = grpc.ssl_channel_credentials(world.payer.tls_cert_path.read_bytes())
    permitted = set()
    with grpc.secure_channel(world.payer.grpc_address, credentials) as channel:
        for path in permissions:
            call = channel.unary_stream(path)(b"", metadata=metadata, timeout=30)
            try:
                next(call)
            except grpc.RpcError as error:
                if "permission denied" in error.details():  # type: ignore[attr-defined]  # a Call as well
                    continue
            permitted.add(path)
            call.cancel()
    assert permitted == PAYING


@pytest.mark.slow
def test_the_options_widen_and_narrow_it_as_they_say(world: World, bakery: Bakery) -> None:
    """An option that lnd reads otherwise gives rights that the user hasn't meant to give, or a macaroon that fails at night."""
    with bakery.client(bakery.bake("--balance")) as client:
        assert client.channel_balance().local_msat > 0
        with pytest.raises(FundingError, match="permit"):
            next(iter(client.list_payments()))
    with bakery.client(bakery.bake("--audit", "--ip-address", "127.0.0.1", "--timeout", "600")) as client:
        next(iter(client.list_payments()), None)
        with pytest.raises(FundingError, match="permit"):
            client.channel_balance()
    with bakery.client(bakery.bake("--ip-address", "10.9.8.7")) as client, pytest.raises(FundingError, match="IP address"):
        client.get_info()
    with bakery.client(bakery.bake("--root-key-id", "402")) as client:
        client.get_info()
        world.payer.lncli("deletemacaroonid", "402")
        with pytest.raises(FundingError, match="revoked"):
            client.get_info()
