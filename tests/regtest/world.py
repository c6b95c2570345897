"""A whole Lightning world on 127.0.0.1: btcd, three real lnds, aperture and the service behind it.

    payer ──── router ──── payee ◀── aperture ──▶ backend
          fees: 1 sat + 1 ppm

Knows the order in which a world comes up, and what each part needs of the others. `python -m tests.regtest.world` starts one to
play with and prints what a client's environment needs. Nothing here uses the library under test.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from .backend import Backend
from .build import Binaries, Report, binaries
from .node import Chain, Node
from .processes import CommandError, Daemon, Keeper, PortTakenError, free_port, run, wait_for

START_ATTEMPTS = 3
#: Coinbases mature after 100 blocks, and below 432 blocks segwit isn't active on regtest: no funding transaction would be mined.
FIRST_BLOCKS = 440
#: A channel is announced to the others after six.
ANNOUNCED_BLOCKS = 6
CHANNEL_SAT = 10_000_000
PUSHED_SAT = 4_000_000
PROBE_TIMEOUT_S = 5.0
#: A fresh channel may lack bandwidth for a moment (INSUFFICIENT_BALANCE), and a restarted one its route.
PAYABLE_PAUSE_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A service in aperture: `/NAME/…` costs `price_sat`. `timeout_s`: how long a token lives, None for ever.

    `more` are further settings of the service, by aperture's own names.
    """

    name: str
    price_sat: int = 1
    auth: str = "on"
    timeout_s: int | None = None
    more: Mapping[str, object] = field(default_factory=dict)


SERVICES = (
    Service(name="service-a", price_sat=10),
    Service(name="service-b", price_sat=25),
    Service(name="costly", price_sat=5_000),
    Service(name="short-lived", price_sat=3, timeout_s=3),
    Service(name="freebie", price_sat=5, auth="freebie 1"),  # one free call in the life of an aperture process
    Service(name="free", auth="off"),
)


class Btcd:
    """The chain: no wallet, mines to given addresses on demand."""

    def __init__(self, programs: Binaries, keeper: Keeper, mining_addresses: list[str]) -> None:
        folder = keeper.folder / "btcd"
        self.chain = Chain(
            rpc_address=f"127.0.0.1:{free_port()}", user="regtest", password=secrets.token_hex(16), cert=folder / "rpc.cert"
        )
        self._btcctl = programs.btcctl
        self._keeper = keeper
        (keeper.folder / ".btcd").mkdir()  # btcctl fails without its home
        self.daemon = Daemon(
            "btcd",
            [
                programs.btcd,
                "--regtest",
                "--txindex",
                f"--datadir={folder / 'data'}",
                f"--logdir={folder / 'logs'}",
                f"--rpccert={self.chain.cert}",
                f"--rpckey={folder / 'rpc.key'}",
                f"--rpcuser={self.chain.user}",
                f"--rpcpass={self.chain.password}",
                f"--listen=127.0.0.1:{free_port()}",
                f"--rpclisten={self.chain.rpc_address}",
                "--nodnsseed",
                "--nobanning",
                "--nostalldetect",
                "--rejectnonstd",
                "--trickleinterval=100ms",
                *(f"--miningaddr={address}" for address in mining_addresses),
            ],
            keeper=keeper,
        )

    def btcctl(self, *args: str | int) -> str:
        chain = self.chain
        return run(
            [
                self._btcctl,
                "--regtest",
                f"--rpcserver={chain.rpc_address}",
                f"--rpcuser={chain.user}",
                f"--rpcpass={chain.password}",
                f"--rpccert={chain.cert}",
                *(str(arg) for arg in args),
            ],
            home=self._keeper.folder,
        )

    def start(self) -> None:
        self.daemon.start()
        wait_for("btcd answers", lambda: self.btcctl("getblockcount"), watched=[self.daemon])

    def height(self) -> int:
        return int(self.btcctl("getblockcount"))

    def generate(self, blocks: int) -> None:
        self.btcctl("generate", blocks)


class Aperture:
    """A paywall, whose invoices are the payee's. It checks with the payee that an invoice is really paid (`strictverify`).

    `settings` are aperture's own, by its names; they may be changed before a start. With `tls` it makes its own certificate.
    """

    def __init__(
        self,
        programs: Binaries,
        keeper: Keeper,
        payee: Node,
        backend: Backend,
        *,
        name: str = "aperture",
        services: Sequence[Service] = SERVICES,
        tls: bool = False,
        authenticator: Mapping[str, object] | None = None,
        **settings: object,
    ) -> None:
        self.folder = keeper.folder / name
        self.folder.mkdir()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{free_port()}"
        self.settings: dict[str, object] = {
            "listenaddr": self.url.partition("://")[2],
            "insecure": not tls,
            "basedir": str(self.folder),
            "staticroot": str(self.folder),
            "debuglevel": "info",
            "strictverify": True,
            "dbbackend": "sqlite",
            # The database's file has to be named so: `dbfile`, as in aperture's own sample, is ignored.
            "sqlite": {"databasefilename": str(self.folder / "aperture.db")},
            "authenticator": {
                "network": "regtest",
                "lndhost": payee.grpc_address,
                "tlspath": str(payee.tls_cert_path),
                "macdir": str(payee.macaroon_path("invoice").parent),
                **(authenticator or {}),
            },
            "services": [_service_config(service, backend) for service in services],
            **settings,
        }
        self._config = self.folder / "aperture.yaml"
        self.daemon = Daemon(name, [programs.aperture, f"--configfile={self._config}"], keeper=keeper)

    @property
    def tls_cert_path(self) -> Path:
        """The certificate that aperture made for itself."""
        return self.folder / "tls.cert"

    def start(self) -> None:
        self._config.write_text(json.dumps(self.settings, indent=1))  # JSON is YAML
        self.daemon.start()
        wait_for("aperture answers", self._answers, watched=[self.daemon])

    def restart(self, *, forget: Sequence[str] = ()) -> None:
        """Ends and starts it on the same port. Its tokens stay valid; `freebie` and rate limits count anew.

        `forget` names files that are removed in between, by pattern: without `aperture.db*` no token is known any more.
        """
        self.daemon.stop()
        for pattern in forget:
            for path in self.folder.glob(pattern):
                path.unlink()
        self.start()

    def _answers(self) -> bool:
        try:
            # OPTIONS is answered by aperture itself, without a charge and without the backend.
            verify = str(self.tls_cert_path) if self.tls_cert_path.exists() else True
            return bool(requests.options(f"{self.url}/free/", timeout=PROBE_TIMEOUT_S, verify=verify).status_code)
        except requests.RequestException as error:
            raise CommandError(type(error).__name__) from error


def _service_config(service: Service, backend: Backend) -> dict[str, object]:
    config: dict[str, object] = {
        "name": service.name,
        "hostregexp": ".*",
        "pathregexp": f"^/{service.name}/.*$",
        "address": backend.address,
        "protocol": "http",
        "auth": service.auth,
        "price": service.price_sat,
        **service.more,
    }
    if service.timeout_s is not None:
        config["timeout"] = service.timeout_s
    return config


class World:
    """All of it. `start_world` makes one; as a context manager it is gone after its block, whatever happened there.

    Public: `payer`, `router`, `payee` (Node), `btcd`, `aperture`, `backend`, and what is said below.
    """

    def __init__(self, programs: Binaries, *, report: Report = print) -> None:
        self._report = report
        self._programs = programs
        self._keeper = Keeper()
        self.payer, self.router, self.payee = (Node(name, programs, self._keeper) for name in ("payer", "router", "payee"))
        self.backend = Backend()
        self.btcd: Btcd
        self.aperture: Aperture
        self._more: list[Aperture] = []
        self._beside: list[Daemon] = []
        self._apertures = 0

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        return self.payer, self.router, self.payee

    @property
    def aperture_url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self.aperture.url

    def url(self, service: str, path: str = "") -> str:
        """The address of a path of one of SERVICES, through the paywall."""
        assert service in {known.name for known in SERVICES}
        return f"{self.aperture.url}/{service}/{path.lstrip('/')}"

    @contextmanager
    def another_aperture(self, services: Sequence[Service], **settings: Any) -> Iterator[Aperture]:
        """A further aperture with services and settings of its own, running, for as long as the block lasts."""
        self._apertures += 1
        aperture = Aperture(
            self._programs,
            self._keeper,
            self.payee,
            self.backend,
            name=f"aperture-{self._apertures}",
            services=services,
            **settings,
        )
        self._more.append(aperture)
        try:
            aperture.start()
            yield aperture
        finally:
            self._more.remove(aperture)
            aperture.daemon.kill()

    @property
    def folder(self) -> Path:
        """Where its parts keep their files; removed with the world."""
        return self._keeper.folder

    def daemon_beside(self, name: str) -> Daemon:
        """A further program, not started yet. It is thawed, shown in logs and ended with the world."""
        self._beside.append(Daemon(name, [], keeper=self._keeper))
        return self._beside[-1]

    def mine(self, blocks: int) -> None:
        """Mines, and waits until every node that runs has seen it."""
        self.btcd.generate(blocks)
        height = self.btcd.height()
        for node in self.nodes:
            if node.daemon.running and not node.daemon.frozen:
                wait_for(
                    f"{node.name} is at block {height}",
                    lambda node=node: (info := node.lncli("getinfo"))["synced_to_chain"] and info["block_height"] >= height,  # type: ignore[misc]
                    watched=[node.daemon, self.btcd.daemon],
                )

    def reset_mission_control(self) -> None:
        """The payer forgets which routes have failed, which otherwise it avoids for a while."""
        self.payer.lncli("resetmc")

    def wait_until_payable(self) -> None:
        """Until the payer can pay the payee: all channels are active, and one sat arrives."""
        for node in self.nodes:
            node.wait_for_channels()
        wait_for("the payer can pay one sat to the payee", self._pay_one_sat, watched=self._daemons())

    def mend(self) -> bool:
        """Thaws what is frozen and starts what is down, so that the next test finds a whole world. True if there was any."""
        frozen = [daemon for daemon in self._daemons() if daemon.frozen]
        for daemon in frozen:
            daemon.thaw()
        down = [node for node in self.nodes if not node.daemon.running]
        for node in down:
            node.start(wait_for_channels=False)
        # aperture ends by itself when it loses the payee.
        aperture_down = not self.aperture.daemon.running
        if aperture_down:
            self.aperture.start()
        if frozen or down:
            self.reset_mission_control()
            self.wait_until_payable()
        return bool(frozen or down or aperture_down)

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(daemon.tail() for daemon in self._daemons())

    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to pay from the payer."""
        return {
            "POLAR_LND_HOST": self.payer.grpc_address,
            "POLAR_LND_TLS_CERT": str(self.payer.tls_cert_path),
            "POLAR_LND_MACAROON": str(self.payer.admin_macaroon_path),
        }

    def start(self) -> None:
        """Brings everything up, from nothing to a 402 that the payer can pay. Some 10 seconds. Raises WorldError."""
        started = time.monotonic()

        def report(what: str) -> None:
            self._report(f"regtest world, {time.monotonic() - started:4.1f} s: {what}")

        miners = (self.payer, self.router)
        for node in miners:
            node.open_offline()
        self.btcd = Btcd(self._programs, self._keeper, [node.first_address() for node in miners])
        report("the payer and the router have wallets")
        self.btcd.start()
        self.btcd.generate(FIRST_BLOCKS)
        report(f"btcd has mined {FIRST_BLOCKS} blocks to them")
        for node in self.nodes:
            node.open(self.btcd.chain)
        for node in self.nodes:
            node.wait_until_ready()
        report("three lnds are up")
        self.aperture = Aperture(self._programs, self._keeper, self.payee, self.backend)
        self.aperture.start()
        self._open_channels()
        report("the channels are open")
        self.wait_until_payable()
        self.reset_mission_control()
        report(f"ready, {self.aperture_url}")

    def stop(self) -> None:
        """Ends everything and removes its folder. Killed, not asked: nobody will look at what they would save."""
        for daemon in self._daemons():
            daemon.kill()
        self.backend.close()
        self._keeper.close()

    def _open_channels(self) -> None:
        for opener, peer in ((self.payer, self.router), (self.router, self.payee)):
            wait_for(
                f"{opener.name} has coins",
                lambda opener=opener: int(opener.lncli("walletbalance")["confirmed_balance"]) > CHANNEL_SAT,  # type: ignore[misc]
                watched=self._daemons(),
            )
            opener.lncli("connect", peer.peer_address)
            # Pushed, so that both ends can pay and fees of the way back are real too.
            opener.lncli("openchannel", "--local_amt", CHANNEL_SAT, "--push_amt", PUSHED_SAT, "--node_key", peer.pubkey)
            opener.channels += 1
            peer.channels += 1
        wait_for(
            "btcd knows both funding transactions",
            lambda: len(json.loads(self.btcd.btcctl("getrawmempool"))) == 2,
            watched=self._daemons(),
        )
        self.mine(ANNOUNCED_BLOCKS)
        for node in self.nodes:
            node.wait_for_channels()
        wait_for("the payer knows the way to the payee", self._route_known, watched=self._daemons())

    def _route_known(self) -> bool:
        edges = self.payer.lncli("describegraph")["edges"]
        return len(edges) == 2 and all(edge["node1_policy"] and edge["node2_policy"] for edge in edges)

    def _pay_one_sat(self) -> bool:
        invoice = self.payee.add_invoice(1_000, memo="warm-up")
        if self.payer.pay(invoice.payment_request)["status"] == "SUCCEEDED":
            return True
        self.reset_mission_control()
        time.sleep(PAYABLE_PAUSE_S)
        return False

    def _daemons(self) -> list[Daemon]:
        parts = (getattr(self, name, None) for name in ("btcd", "payer", "router", "payee", "aperture"))
        return [*(part.daemon for part in (*parts, *self._more) if part is not None), *self._beside]


def start_world(programs: Binaries, *, report: Report = print) -> World:
    """A world that is up; made anew, with other ports, where somebody took one in between. Raises WorldError, with nothing left."""
    for left in reversed(range(START_ATTEMPTS)):
        world = World(programs, report=report)
        try:
            world.start()
        except BaseException as error:
            world.stop()
            if not isinstance(error, PortTakenError) or not left:
                raise
            report(f"starting anew: {str(error).splitlines()[0]}")
        else:
            return world
    raise AssertionError("unreachable")


def main() -> None:
    with start_world(binaries()) as world:
        print("\n".join(f"export {name}={value}" for name, value in world.environment().items()))
        for service in SERVICES:
            lives = f"{service.timeout_s} s" if service.timeout_s else "for ever"
            print(f"# {world.url(service.name, 'one')}  {service.price_sat} sat, auth {service.auth}, a token lives {lives}")
        print("Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    main()
