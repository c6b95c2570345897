"""One real lnd: started, stopped, killed, frozen, and asked through lncli.

Knows lnd's flags and lncli's words. Which nodes there are and how they hang together is told in `world`. lncli is a second way
to the node besides the library under test, so that what the library says can be checked against what the node says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build import Binaries
from .processes import CommandError, Daemon, Keeper, WorldError, free_port, run, wait_for

#: What a payer needs and no more: the macaroon that the library tells its users to bake.
PAYER_PERMISSIONS = (
    "uri:/routerrpc.Router/SendPaymentV2",
    "uri:/routerrpc.Router/TrackPaymentV2",
    "uri:/lnrpc.Lightning/GetInfo",
    "uri:/lnrpc.Lightning/ChannelBalance",
    "uri:/lnrpc.Lightning/DecodePayReq",
)
#: lnd's own default for a whole page is 100 (max_payments 0), which would make long test runs forget.
PAYMENTS_PAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Invoice:
    """An invoice of a node. `payment_hash` is 64 hex digits."""

    payment_request: str
    payment_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """How an lnd reaches btcd."""

    rpc_address: str
    user: str
    password: str
    cert: Path

    def flags(self) -> list[str]:
        return [
            "--bitcoin.node=btcd",
            f"--btcd.rpchost={self.rpc_address}",
            f"--btcd.rpcuser={self.user}",
            f"--btcd.rpcpass={self.password}",
            f"--btcd.rpccert={self.cert}",
        ]


class Node:
    """An lnd on 127.0.0.1 with a wallet that needs no password. Its ports, keys and macaroons survive stop, kill and start."""

    def __init__(self, name: str, binaries: Binaries, keeper: Keeper) -> None:
        self.name = name
        self.folder = keeper.folder / name
        self.grpc_host = "127.0.0.1"
        self.grpc_port = free_port()
        self.rest_port = free_port()
        self.peer_port = free_port()
        self.channels = 0  #: how many channels `start` waits for
        self.pubkey = ""  #: 66 hex digits, known from the first `start` on
        self._binaries = binaries
        self._keeper = keeper
        self._baked = 0
        self.daemon = Daemon(name, [], keeper=keeper)

    @property
    def tls_cert_path(self) -> Path:
        return self.folder / "tls.cert"

    @property
    def admin_macaroon_path(self) -> Path:
        return self.macaroon_path("admin")

    @property
    def grpc_address(self) -> str:
        """`host:port`."""
        return f"{self.grpc_host}:{self.grpc_port}"

    @property
    def rest_address(self) -> str:
        """`host:port`. HTTPS, with the certificate of `tls_cert_path`."""
        return f"{self.grpc_host}:{self.rest_port}"

    @property
    def peer_address(self) -> str:
        """`pubkey@host:port`, as `lncli connect` wants it."""
        return f"{self.pubkey}@{self.grpc_host}:{self.peer_port}"

    def macaroon_path(self, name: str) -> Path:
        """A macaroon that lnd made by itself: admin, readonly, invoice, router, …"""
        return self.folder / "data" / "chain" / "bitcoin" / "regtest" / f"{name}.macaroon"

    def open_offline(self) -> None:
        """Starts lnd without any chain, so that it makes its keys and certificate; `first_address` ends this."""
        self._launch(["--bitcoin.node=nochainbackend"])

    def first_address(self) -> str:
        """An address of the wallet that `open_offline` made, and ends lnd again.

        The miner has to know it before there is a chain, for btcd mines to the addresses on its command line only, and an lnd
        doesn't outlive a restart of btcd.
        """
        answer = wait_for(f"{self.name} has a wallet", lambda: self.lncli("newaddress", "p2wkh"), watched=[self.daemon])
        self.daemon.stop()
        return str(answer["address"])

    def open(self, chain: Chain) -> None:
        """The first start upon the chain; returns at once, `wait_until_ready` waits."""
        self._launch(chain.flags())

    def start(self, *, wait_for_channels: bool = True) -> None:
        """Starts a node that was stopped or killed, and waits until it is ready.

        That is: it answers all calls, knows the tip of the chain and, unless told otherwise, its channels are active, which takes
        peers that run.
        """
        self.daemon.start()
        self.wait_until_ready()
        if wait_for_channels:
            self.wait_for_channels()

    def stop(self) -> None:
        """SIGTERM, and waits for the end."""
        self.daemon.stop()

    def kill(self) -> None:
        """`kill -9`; the node stays down until `start`."""
        self.daemon.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, no answers. Payments through a frozen router stay in flight."""
        self.daemon.freeze()

    def thaw(self) -> None:
        self.daemon.thaw()

    def wait_until_ready(self) -> None:
        """Until lnd answers every call and has seen the tip of the chain. SendPaymentV2 would answer before: too early."""
        wait_for(
            f"{self.name} is SERVER_ACTIVE",
            lambda: self.lncli("state")["state"] == "SERVER_ACTIVE",
            watched=[self.daemon],
        )
        wait_for(f"{self.name} is synced to the chain", self._synced, watched=[self.daemon])

    def wait_for_channels(self) -> None:
        """Until all its channels can carry payments, as far as this end knows."""
        wait_for(f"{self.name} has {self.channels} active channels", self._channels_active, watched=[self.daemon])

    def lncli_text(self, *args: str | int) -> str:
        """What lncli prints. Raises CommandError with lnd's words."""
        return run(
            [
                self._binaries.lncli,
                "--network=regtest",
                f"--lnddir={self.folder}",
                f"--rpcserver={self.grpc_address}",
                *(str(arg) for arg in args),
            ],
            home=self._keeper.folder,
        )

    def lncli(self, *args: str | int) -> Any:
        """What lncli prints, parsed as JSON; where it prints nothing, None. Raises CommandError with lnd's words."""
        text = self.lncli_text(*args)
        return json.loads(text) if text.strip() else None

    def bake(self, *permissions: str, ip_address: str | None = None, timeout_s: int | None = None) -> Path:
        """A new macaroon file with these permissions (by default a payer's least), bound to an IP address or a time on demand."""
        options: list[str] = []
        if ip_address is not None:
            options += ["--ip_address", ip_address]
        if timeout_s is not None:
            options += ["--timeout", str(timeout_s)]
        self._baked += 1
        path = self.folder / f"baked-{self._baked}.macaroon"
        self.lncli_text("bakemacaroon", "--save_to", str(path), *options, *(permissions or PAYER_PERMISSIONS))
        return path

    def list_payments(self) -> list[dict[str, Any]]:
        """Every payment that this node has ever begun, oldest first, failed ones and those in flight too."""
        payments: list[dict[str, Any]] = []
        offset = 0
        while True:
            page = self.lncli(
                "listpayments",
                "--include_incomplete",
                "--paginate_forwards",
                f"--max_payments={PAYMENTS_PAGE}",
                f"--index_offset={offset}",
            )
            payments += page["payments"]
            if len(page["payments"]) < PAYMENTS_PAGE:
                return payments
            offset = int(page["last_index_offset"])

    def payments_of(self, payment_hash: str) -> list[dict[str, Any]]:
        """The payments of one invoice: none or one, else lnd is broken."""
        return [payment for payment in self.list_payments() if payment["payment_hash"] == payment_hash]

    def add_invoice(self, amt_msat: int, *, expiry_s: int = 3600, memo: str = "") -> Invoice:
        """Issues an invoice; 0 msat leaves the amount to the payer."""
        made = self.lncli("addinvoice", "--amt_msat", amt_msat, "--expiry", expiry_s, "--memo", memo)
        return Invoice(payment_request=made["payment_request"], payment_hash=made["r_hash"])

    def lookup_invoice(self, payment_hash: str) -> dict[str, Any]:
        """lnd's view of an invoice of this node: `state` is OPEN, SETTLED, CANCELED or ACCEPTED."""
        found: dict[str, Any] = self.lncli("lookupinvoice", payment_hash)
        return found

    def pay(self, payment_request: str, *, fee_limit_sat: int = 10) -> dict[str, Any]:
        """Pays through lncli, past the library. The payment as lnd tells it, FAILED ones too."""
        try:
            text = self.lncli_text(
                "payinvoice", "--force", "--json", "--timeout", "20s", "--fee_limit", fee_limit_sat, "--pay_req", payment_request
            )
        except CommandError as error:
            raise WorldError(f"{self.name} can't pay: {error}") from error
        payment: dict[str, Any] = json.loads(text)
        return payment

    def _launch(self, chain_flags: list[str]) -> None:
        self.daemon.argv = [
            str(self._binaries.lnd),
            f"--lnddir={self.folder}",
            f"--alias={self.name}",
            "--noseedbackup",
            "--nobootstrap",
            "--bitcoin.regtest",
            f"--rpclisten={self.grpc_address}",
            f"--restlisten={self.rest_address}",
            f"--listen={self.grpc_host}:{self.peer_port}",
            "--bitcoin.defaultchanconfs=1",
            "--trickledelay=50",
            "--db.batch-commit-interval=10ms",
            "--keep-failed-payment-attempts",
            "--accept-keysend",
            *chain_flags,
        ]
        self.daemon.start()

    def _synced(self) -> bool:
        info = self.lncli("getinfo")
        self.pubkey = info["identity_pubkey"]
        return bool(info["synced_to_chain"])

    def _channels_active(self) -> bool:
        channels = self.lncli("listchannels")["channels"]
        return len(channels) == self.channels and all(channel["active"] for channel in channels)
