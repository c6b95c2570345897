"""A real NWC wallet on the world's payer: Alby's service SDK as a process, and the testing kit's relay between it and the clients.

Knows the service's settings, and how events are lost on their way. How the SDK is installed is told in `nwc_builds`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakKeyDictionary

from routeweiler_sync.testing._nostr_relay import SWALLOW, Relay

from .build import Report
from .nwc_builds import FILES, NwcRuntime, nwc_runtime
from .processes import wait_for
from .world import World

METHODS = "pay_invoice lookup_invoice get_info get_balance list_transactions"
_REQUEST, _RESPONSE = 23194, 23195


class NwcServer:
    """The service as a process, and its relay in this one. Ports and keys stay, however often it is killed and started.

    ``settings`` are the service's environment variables; they may be changed before a start.
    """

    def __init__(self, world: World, runtime: NwcRuntime, name: str) -> None:
        import nostr_sdk

        self._sdk: Any = nostr_sdk
        self.world, self._runtime = world, runtime
        self.relay = Relay()
        self.relay.start()
        self.relay.gate = self._gate
        self._wallet, self._client = nostr_sdk.Keys.generate(), nostr_sdk.Keys.generate()
        self.wallet_key: str = self._wallet.public_key().to_hex()
        self.secret: str = self._client.secret_key().to_hex()
        self.settings: dict[str, object] = {
            "RELAY_URL": self.relay.url,
            "WALLET_SECRET": self._wallet.secret_key().to_hex(),
            "CLIENT_KEY": self._client.public_key().to_hex(),
            "LND_REST": f"https://{world.payer.rest_address}",
            "LND_MACAROON": world.payer.admin_macaroon_path,
            "NODE_EXTRA_CA_CERTS": world.payer.tls_cert_path,
            "NODE_PATH": runtime.node_modules,
            "BUDGET_MSAT": "",
            "METHODS": METHODS,
        }
        #: How many more orders or answers are lost; None: all. Nothing is lost without an entry.
        self._losing: dict[str, int | None] = {}
        self.daemon = world.daemon_beside(name)

    @property
    def uri(self) -> str:
        """The connection's URI."""
        return self.uri_over(self.relay.port)

    def uri_over(self, port: int) -> str:
        """The connection's URI, with another port of 127.0.0.1 for the relay's."""
        return f"nostr+walletconnect://{self.wallet_key}?relay={quote(f'ws://127.0.0.1:{port}', safe='')}&secret={self.secret}"

    def start(self) -> None:
        """Start the service, and wait until it listens."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        self.relay.forget()  # the info event is the last thing that a start does
        self.daemon.argv = ["env", "-i", *settings, str(self._runtime.node), str(FILES / "service.js")]
        self.daemon.start()
        wait_for("the NWC service listens", lambda: bool(self.relay.kept()), watched=[self.daemon])

    def restart(self, **settings: object) -> None:
        """Kill it and start it, with other settings."""
        self.daemon.kill()
        self.settings |= settings
        self.start()

    @contextmanager
    def losing(self, what: Literal["order", "answer"], times: int | None = None) -> Iterator[None]:
        """Inside, the relay accepts orders, or the answers to them, and delivers them to nobody."""
        self._losing[what] = times
        try:
            yield
        finally:
            self._losing.pop(what, None)

    def orders(self) -> list[dict[str, Any]]:
        """The events of all orders that were published, lost ones too."""
        return [event for event in list(self.relay.events) if self._is(event) == "order"]

    def publish_again(self, event: dict[str, Any]) -> None:
        """Deliver an event once more, as a relay may."""
        self.relay.publish(event)

    def _gate(self, event: dict[str, Any]) -> str | None:
        what = self._is(event)
        if what not in self._losing:
            return None
        left = self._losing[what]
        if left == 0:
            return None
        self._losing[what] = None if left is None else left - 1
        return SWALLOW

    def _is(self, event: dict[str, Any]) -> str:
        """Return ``order`` for an order, ``answer`` for the answer to one, and "" for anything else."""
        if event["kind"] not in (_REQUEST, _RESPONSE):
            return ""
        keys, other = (self._wallet, self._client) if event["kind"] == _REQUEST else (self._client, self._wallet)
        if event["pubkey"] != other.public_key().to_hex():
            return ""
        open_ = self._sdk.nip04_decrypt if "?iv=" in event["content"] else self._sdk.nip44_decrypt
        said = json.loads(open_(keys.secret_key(), other.public_key(), event["content"]))
        if said.get("method") == "pay_invoice":
            return "order"
        return "answer" if said.get("result_type") == "pay_invoice" else ""


_SERVERS: WeakKeyDictionary[World, NwcServer] = WeakKeyDictionary()


def nwc_of(world: World, report: Report = print) -> NwcServer:
    """The NWC wallet of a world: started at the first call, and ended with the world.

    Raises:
        InstallError: It can't be installed here.
    """
    server = _SERVERS.get(world)
    if server is None:
        server = _SERVERS[world] = NwcServer(world, nwc_runtime(report), "nwc")
    server.relay.start()
    if not server.daemon.running:
        server.start()
    return server
