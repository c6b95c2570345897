"""Servers of the scheme ``Payment`` (MPP), run on 127.0.0.1 with invoices of a real lnd: aperture, mppx and pympp.

Knows which there are, how each is started, and what the testing kit's paywall for each is. What a session pays there is in
`test_payment_scheme`. How mppx and pympp are installed is told in `server_builds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .processes import Keeper
from .real_servers import RunningServer, package_of
from .server_builds import Runtimes
from .world import Aperture, Service, World

#: Long enough for all that is done with one challenge on a slow machine.
LIFE_S = 300
PRICE_SAT = 10
ENABLE = {"authenticator": {"enablempp": True, "enablesessions": True}}
#: The service of aperture, and the first part of each path elsewhere too.
SERVICE = "weather"


@dataclass(frozen=True, kw_only=True)
class PaymentServer:
    """A server. ``kit`` are the options of a `routeweiler_sync.testing.Paywall` that behaves like it.

    ``authscheme`` is aperture's setting; it has no ``script``. ``single_use`` and ``bound`` say what a payment opens.
    """

    name: str
    kit: Mapping[str, Any]
    opens: str
    refuses: str
    script: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    authscheme: str | None = None
    single_use: bool = True
    bound: bool = False

    @property
    def package(self) -> str:
        """Its name and version, as pinned, and its setting."""
        if self.script is None:
            return self.name
        name, comma, setting = self.name.partition(",")
        return package_of(name, self.script) + comma + setting


def _aperture(authscheme: str) -> PaymentServer:
    return PaymentServer(
        name=f"aperture, `authscheme: {authscheme}`",
        kit={"scheme": ("LSAT", "L402", "Payment"), "intents": ("charge", "session"), "authscheme": authscheme},
        opens="all, 15 minutes",
        refuses="402, new invoices",
        authscheme=authscheme,
        single_use=False,
    )


BOTH, MPP_ALONE, L402_ALONE = (_aperture(scheme) for scheme in ("l402+mpp", "mpp", "l402"))
MPPX = PaymentServer(
    name="mppx",
    script="mppx_server.js",
    settings={"SERVER_PACKAGE": "mppx"},
    kit={"scheme": "Payment", "form": "mppx", "description": "Weather"},
    opens="one page, any",
    refuses="402, the same invoice",
)
MPPX_011 = PaymentServer(
    name="mppx-0.11",
    script="mppx_server.js",
    settings={"SERVER_PACKAGE": "mppx-0.11"},
    kit={"scheme": "Payment", "form": "mppx-0.11", "description": "Weather"},
    opens="one page, any",
    refuses="500, the same invoice",
)
PYMPP = PaymentServer(
    name="pympp",
    script="pympp_server.py",
    kit={"scheme": "Payment", "form": "pympp", "digest": True, "description": 'a "quoted" thing, with comma'},
    opens="one page, the one that was sold",
    refuses="402, the same invoice",
    bound=True,
)
PYMPP_OTHER_HEADER = PaymentServer(
    name="pympp, `requires_auth`",
    script="pympp_server.py",
    settings={"SERVER_REQUIRES_AUTH": "1"},
    kit={"scheme": "Payment", "form": "pympp", "digest": True, "description": "a thing", "header": "Payment-Authorization"},
    opens="one page, the one that was sold",
    refuses="402, the same invoice",
    bound=True,
)
PAYMENT_SERVERS = (BOTH, MPP_ALONE, L402_ALONE, MPPX, MPPX_011, PYMPP, PYMPP_OTHER_HEADER)


class Running:
    """A server that runs. ``port`` stays, whatever happens to it."""

    def __init__(self, server: PaymentServer, running: RunningServer | Aperture) -> None:
        self.server, self._running = server, running
        self.port = running.port if isinstance(running, RunningServer) else int(urlsplit(running.url).port or 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def restart(self, *, new_key: bool = False, later_s: int = 0) -> None:
        """End it and start it. ``new_key``: it has lost its secret. ``later_s``: its clock is that much ahead (not aperture's)."""
        if isinstance(self._running, Aperture):
            assert not later_s
            self._running.restart(forget=("aperture.db*",) if new_key else ())
        else:
            self._running.restart(new_key=new_key, later_s=later_s)

    @property
    def log(self) -> str:
        return str(self._running.daemon.tail())

    @property
    def outside(self) -> list[str]:
        """Other machines that it wanted to reach."""
        if isinstance(self._running, Aperture):
            return []
        text = self._running.daemon.log.read_text(errors="replace")
        return [line for line in text.splitlines() if line.startswith("OUTSIDE")]


@contextmanager
def running(server: PaymentServer, world: World, runtimes: Runtimes) -> Iterator[Running]:
    """Run a server for as long as the block lasts."""
    if server.script is None:
        more = {"authscheme": server.authscheme}
        with world.another_aperture((Service(name=SERVICE, price_sat=PRICE_SAT, more=more),), **ENABLE) as aperture:
            yield Running(server, aperture)
        return
    keeper = Keeper()
    name = server.name.partition(",")[0]
    settings = {"SERVER_LIFE_S": LIFE_S, **server.settings}
    process = RunningServer(name, server.script, runtimes, world, keeper, settings)
    try:
        process.start()
        yield Running(server, process)
    finally:
        process.daemon.kill()
        keeper.close()
