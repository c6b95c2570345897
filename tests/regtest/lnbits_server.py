"""A real LNbits on the world's payer: a process on 127.0.0.1 with SQLite, without extensions, and one wallet that has money.

Knows LNbits' settings, and how a wallet is made and filled over its API. How it is installed is told in `lnbits_builds`. Nothing
here uses the library under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import requests

from .build import Report
from .lnbits_builds import lnbits_python
from .processes import CommandError, free_port, wait_for
from .world import World

PROBE_TIMEOUT_S = 5.0
#: What the wallet is given. The payer's lnd gets as much from the payee.
FILL_SAT = 500_000
FILL_FEE_SAT = 2_000
PAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """A wallet of LNbits."""

    id: str
    admin: str = field(repr=False)
    invoice: str = field(repr=False)


class LnbitsServer:
    """LNbits as a process. Its port and its database stay, however often it is killed and started.

    ``settings`` are LNbits' own environment variables; they may be changed before a start.
    """

    def __init__(self, world: World, python: Path, name: str) -> None:
        self.world = world
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings: dict[str, object] = {
            "LNBITS_BACKEND_WALLET_CLASS": "LndRestWallet",
            "LND_REST_ENDPOINT": f"https://{world.payer.rest_address}",
            "LND_REST_CERT": world.payer.tls_cert_path,
            "LND_REST_MACAROON": world.payer.admin_macaroon_path,
            "LNBITS_ADMIN_UI": "false",
            "LNBITS_RATE_LIMIT_NO": 1_000_000,
            # Nothing is asked of other machines: no extensions, no prices.
            "LNBITS_EXTENSIONS_DEACTIVATE_ALL": "true",
            "LNBITS_EXTENSIONS_MANIFESTS": "",
            "LNBITS_WASM_EXTENSIONS_MANIFESTS": "",
            "LNBITS_EXCHANGE_RATE_PROVIDERS": "[]",
            "LNBITS_PRICE_AGGREGATOR_ENABLED": "false",
            "LNBITS_AUDIT_ENABLED": "false",
            "ENABLE_LOG_TO_FILE": "false",
        }
        self.daemon = world.daemon_beside(name)
        self._folder = world.folder / name
        self._python = python
        for part in ("data/logs", "data/images", "ext/extensions", "data/wasm_extensions"):
            (self._folder / part).mkdir(parents=True)
        # LNbits looks for its own files in the folder that it runs in.
        package = next((python.parent.parent / "lib").glob("python3.*/site-packages/lnbits"))
        (self._folder / "lnbits").symlink_to(package)
        self.keys: Keys

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = self._folder
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": folder,
            "PYTHONSAFEPATH": 1,
            "LNBITS_DATA_FOLDER": folder / "data",
            "LNBITS_EXTENSIONS_PATH": folder / "ext",
            **self.settings,
        }
        settings = [f"{name}={value}" for name, value in environment.items()]
        server = [str(self._python), "-m", "uvicorn", "lnbits.__main__:app", "--host", "127.0.0.1", "--port", str(self.port)]
        self.daemon.argv = ["env", "-i", f"--chdir={folder}", *settings, *server]
        self.daemon.start()
        wait_for("LNbits answers", self._answers, watched=[self.daemon])

    def restart(self, **settings: object) -> None:
        """Kill it and start it, with other settings."""
        self.daemon.kill()
        self.settings |= settings
        self.start()

    def new_wallet(self, *, filled: bool = False) -> Keys:
        """Make an account with a wallet; ``filled``: the payee pays into it."""
        made = self.ask("POST", "account", None, {"name": "wallet"})
        keys = Keys(id=made["id"], admin=made["adminkey"], invoice=made["inkey"])
        if filled:
            paid = self.world.payee.pay(self.new_invoice(keys, FILL_SAT)["bolt11"], fee_limit_sat=FILL_FEE_SAT)
            assert paid["status"] == "SUCCEEDED", paid
            wait_for("the wallet has the money", lambda: self.balance_msat(keys) == FILL_SAT * 1000, watched=[self.daemon])
        return keys

    def new_invoice(self, keys: Keys, amount_sat: int) -> dict[str, Any]:
        """An invoice of a wallet here."""
        made: dict[str, Any] = self.ask("POST", "payments", keys.admin, {"out": False, "amount": amount_sat})
        return made

    def balance_msat(self, keys: Keys) -> int:
        return int(self.ask("GET", "wallet", keys.invoice)["balance"])

    def payments(self, keys: Keys) -> list[dict[str, Any]]:
        """The payments that left a wallet, as LNbits lists them."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.ask("GET", f"payments/paginated?limit={PAGE}&offset={len(rows)}&sortby=time", keys.invoice)["data"]
            rows += page
            if len(page) < PAGE:
                return [row for row in rows if row["amount"] < 0]

    def ask(self, method: str, path: str, key: str | None, body: Mapping[str, object] | None = None) -> Any:
        """The JSON that LNbits answers. Raises CommandError where it answers with an error or not at all."""
        headers = {} if key is None else {"X-Api-Key": key}
        content = None if body is None else json.dumps(body)
        try:
            answer = requests.request(
                method,
                f"{self.url}/api/v1/{path}",
                data=content,
                headers=headers | {"Content-Type": "application/json"},
                timeout=60,
            )
        except requests.RequestException as error:
            raise CommandError(type(error).__name__) from error
        if answer.status_code not in (200, 201):
            raise CommandError(f"LNbits: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/api/v1/health", timeout=PROBE_TIMEOUT_S).status_code == 200
        except requests.RequestException as error:
            raise CommandError(type(error).__name__) from error


_SERVERS: WeakKeyDictionary[World, LnbitsServer] = WeakKeyDictionary()


def lnbits_of(world: World, report: Report = print) -> LnbitsServer:
    """The LNbits of a world, with a wallet that has money: started at the first call, and ended with the world.

    Raises:
        InstallError: It can't be installed here.
    """
    server = _SERVERS.get(world)
    if server is None:
        server = LnbitsServer(world, lnbits_python(report), "lnbits")
        server.start()
        server.keys = server.new_wallet(filled=True)
        _SERVERS[world] = server
    if not server.daemon.running:
        server.start()
    return server
