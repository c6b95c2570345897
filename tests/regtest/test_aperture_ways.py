"""The real aperture in its settings: what each means for a buyer, step by step, on a real lnd.

A way is one aperture with some settings, and a walk: a first call, the same again, a second path, a POST, a token that is used up
or expired, an aperture that has lost its keys, a new session on the same ledger. What a call paid is read from the payer's own list
of payments, what it sent from a relay in front of aperture. The walks are also the table about aperture in
`docs/how-to/servers.md`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    ChallengeExpiredError,
    Funding,
    Ledger,
    LndClient,
    PaymentRow,
    PaymentState,
    Routeweiler,
    RouteweilerError,
    TokenRefusedError,
)

from .prices import Prices
from .processes import wait_for
from .servers_page import check_section, table
from .wire import Exchange, Wire
from .world import Aperture, Service, World

NETWORK = "bitcoin-regtest"
MAX_REQUESTS = 8
HTTP_TIMEOUT_S = 30
#: Of a service whose tokens expire: long enough for four calls on a slow machine.
LIFE_S = 8
LONG_AGO = "1682483169"
CAVEATS = ["caveats_capabilities=add,subtract", "region=eu", "tier=gold"]
KEYS = ("aperture.db*",)
CERTIFICATE = ("tls.*",)

#: The columns of the table.
Column = Literal["first", "again", "second path", "POST", "used up", "new keys", "new session"]
COLUMNS: tuple[Column, ...] = ("first", "again", "second path", "POST", "used up", "new keys", "new session")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A call and what comes of it.

    ``outcome`` is a status, or the class of the error. ``paid`` is in sat, without fees. ``wire`` is what was sent and answered, as
    `Exchange` writes it; None where more than one way is right.
    """

    method: str
    path: str
    outcome: int | type[Exception] = 200
    paid: int = 0
    wire: str | None = None
    column: Column | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Deed:
    """Something that happens between calls: a method of `Walk` and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Way:
    """Settings of one aperture, the walk, and what a buyer should mind."""

    name: str
    mind: str
    services: tuple[Service, ...]
    steps: tuple[Step | Deed, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Its row of the table: what each step paid, and what came if it wasn't the page."""
        return [self.name, *(self._cell(column) for column in COLUMNS), self.mind]

    def _cell(self, column: Column) -> str:
        steps = [step for step in self.steps if isinstance(step, Step) and step.column == column]
        if not steps:
            return ""
        (step,) = steps
        paid = f"{step.paid} sat" if step.paid else "0"
        if step.outcome == 200:
            return paid
        came = step.outcome if isinstance(step.outcome, int) else f"`{step.outcome.__name__}`"
        return f"{paid}, {came}"


def get(path: str, column: Column | None = None, outcome: int | type[Exception] = 200, **how: Any) -> Step:
    return Step(method="GET", path=path, column=column, outcome=outcome, **how)


def post(path: str, column: Column | None = None, outcome: int | type[Exception] = 200, **how: Any) -> Step:
    return Step(method="POST", path=path, column=column, outcome=outcome, **how)


NEW_KEYS = Deed("restart", {"forget": KEYS})
RESTART = Deed("restart")
NEW_SESSION = Deed("new_session")

BOUGHT = "bare:402 token:200"  # asked, paid, opened; or asked, and a token was there
OPENED = "token:200"
REPLACED = "token:402 token:200"


def walk_of_a_service(name: str, price: int = 10) -> tuple[Step | Deed, ...]:
    """What each service that sells a token by its name comes to: one payment, and one more when the keys are lost."""
    return (
        get(f"/{name}/one", "first", paid=price, wire=BOUGHT),
        get(f"/{name}/one", "again", wire=OPENED),
        get(f"/{name}/two", "second path", wire=OPENED),
        post(f"/{name}/orders", "POST", wire=BOUGHT),
        NEW_KEYS,
        get(f"/{name}/one", "new keys", paid=price, wire=REPLACED),
        NEW_SESSION,
        get(f"/{name}/one", "new session", wire=OPENED),
    )


MPP = {"authenticator": {"enablempp": True, "enablesessions": True}}
MPP_IS_ON = Deed("expect_schemes", {"schemes": ["LSAT", "L402", "Payment", "Payment"]})

WAYS = (
    Way(
        name="`auth: on`",
        mind="One token opens the whole service, whatever path and method, for ever. `strictverify: false`.",
        services=(Service(name="plain", price_sat=10),),
        settings={"strictverify": False},
        steps=walk_of_a_service("plain"),
    ),
    Way(
        name="`strictverify: true`",
        mind="The same. A token outlives a restart of aperture, which reads all invoices anew.",
        services=(Service(name="plain", price_sat=10),),
        settings={"strictverify": True},
        steps=(
            *walk_of_a_service("plain"),
            RESTART,
            get("/plain/two", wire=OPENED),
        ),
    ),
    Way(
        name="several services",
        mind="Each service has its own token and price. With two tokens at hand, a new path is asked for without one first.",
        services=(Service(name="maps", price_sat=10), Service(name="weather", price_sat=25)),
        steps=(
            get("/maps/one", "first", paid=10, wire=BOUGHT),
            get("/maps/one", "again", wire=OPENED),
            get("/weather/one", "second path", paid=25, wire=REPLACED),  # the token of maps was a guess
            get("/maps/two", wire=BOUGHT),
            get("/weather/one", wire=OPENED),
            post("/weather/orders", "POST", wire=BOUGHT),
            post("/maps/orders", wire=BOUGHT),
            NEW_KEYS,
            get("/maps/one", "new keys", paid=10, wire=REPLACED),
            get("/weather/one", paid=25, wire=REPLACED),
            Deed("new_session", {"wallet": False}),
            get("/weather/one", "new session", wire=OPENED),
            get("/maps/one", wire=OPENED),
        ),
    ),
    Way(
        name="`auth: off`, `authwhitelistpaths`",
        mind="Nothing is asked for. A rate limit counts by the caller's network (`/24`).",
        services=(
            Service(name="open", auth="off", more={"ratelimits": [{"pathregexp": "^/open/limited$", "requests": 1, "per": "1h"}]}),
            Service(name="plain", price_sat=10, more={"authwhitelistpaths": ["^/plain/free/.*$"]}),
        ),
        steps=(
            get("/open/one", "first", wire="bare:200"),
            get("/open/one", "again", wire="bare:200"),
            get("/plain/free/one", "second path", wire="bare:200"),
            post("/open/orders", "POST", wire="bare:200"),
            get("/open/limited", wire="bare:200"),
            get("/open/limited", outcome=429, wire="bare:429"),
            get("/plain/one", paid=10, wire=BOUGHT),
            get("/open/one", wire=OPENED),  # the only token of the origin goes along as a guess
            get("/open/limited", outcome=429, wire="token:429 bare:429"),
            post("/plain/free/orders", wire="bare:200"),
            NEW_KEYS,
            get("/open/limited", "new keys", wire="bare:200"),  # where a guess was withdrawn, none is made again
            NEW_SESSION,
            get("/plain/free/one", "new session"),
        ),
    ),
    Way(
        name="`auth: freebie 2`",
        mind="The first calls are free, counted by the caller's network, anew after a restart. A good token isn't counted.",
        services=(Service(name="trial", price_sat=5, auth="freebie 2"),),
        steps=(
            get("/trial/one", "first", wire="bare:200"),
            get("/trial/one", "again", wire="bare:200"),
            get("/trial/two", "second path", paid=5, wire=BOUGHT),
            post("/trial/orders", "POST", wire=BOUGHT),
            get("/trial/one", wire=OPENED),
            NEW_KEYS,
            get("/trial/one", wire=OPENED),  # its token is worth nothing any more: these two are free
            get("/trial/one", wire=OPENED),
            get("/trial/one", "new keys", paid=5),
            NEW_SESSION,
            get("/trial/two", "new session", wire=OPENED),
        ),
    ),
    Way(
        name="`ratelimits`",
        mind="429 with `Retry-After` comes back to the caller, and the token is kept. Each token is counted by itself.",
        services=(Service(name="limited", price_sat=10, more={"ratelimits": [{"requests": 2, "per": "1h"}]}),),
        steps=(
            get("/limited/one", "first", paid=10, wire=BOUGHT),
            get("/limited/one", "again", wire=OPENED),
            get("/limited/two", "second path", outcome=429, wire="token:429 bare:402 token:429"),
            post("/limited/orders", "POST", outcome=429, wire="bare:402 token:429"),
            get("/limited/one", "used up", outcome=429, wire="token:429"),
            RESTART,
            get("/limited/one", wire=OPENED),
            NEW_KEYS,
            get("/limited/one", "new keys", paid=10, wire=REPLACED),
            NEW_SESSION,
            get("/limited/one", "new session", wire=OPENED),
            get("/limited/one", outcome=429, wire="token:429"),
        ),
    ),
    Way(
        name="`timeout`",
        mind="The token says until when it is good (`…_valid_until`). After that, one new payment.",
        services=(Service(name="brief", price_sat=3, timeout_s=LIFE_S),),
        steps=(
            get("/brief/one", "first", paid=3, wire=BOUGHT),
            get("/brief/one", "again", wire=OPENED),
            get("/brief/two", "second path", wire=OPENED),
            post("/brief/orders", "POST", wire=BOUGHT),
            Deed("wait_until_expired"),
            get("/brief/one", "used up", paid=3),
            Deed("expect_retired"),
            get("/brief/two"),
            NEW_KEYS,
            get("/brief/one", "new keys", paid=3),
            NEW_SESSION,
            get("/brief/one", "new session", wire=OPENED),
        ),
    ),
    Way(
        name="`capabilities`, `constraints`",
        mind="More caveats in the token, which aperture leaves to the service. The token is sent back as it came.",
        services=(
            Service(
                name="caveats", price_sat=10, more={"capabilities": "add,subtract", "constraints": {"region": "eu", "tier": "gold"}}
            ),
        ),
        steps=(*walk_of_a_service("caveats"), Deed("expect_caveats", {"caveats": CAVEATS})),
    ),
    Way(
        name="`constraints` with a `valid_until` in the past",
        mind="Sold as expired. Aperture enforces `NAME_valid_until` and ignores `valid_until`; both are refused before paying.",
        services=(
            Service(name="lapsed", price_sat=10, more={"constraints": {"lapsed_valid_until": LONG_AGO}}),
            Service(name="sample", price_sat=10, more={"constraints": {"valid_until": LONG_AGO}}),
        ),
        steps=(
            get("/lapsed/one", "first", outcome=ChallengeExpiredError, wire="bare:402"),
            get("/lapsed/one", "again", outcome=ChallengeExpiredError, wire="bare:402"),
            get("/sample/one", "second path", outcome=ChallengeExpiredError, wire="bare:402"),
            post("/lapsed/orders", "POST", outcome=ChallengeExpiredError, wire="bare:402"),
        ),
    ),
    Way(
        name="`authskipinvoicecreationpaths`",
        mind="Such a path sells nothing: 401 until a token of its service is bought elsewhere. Each token of the origin is tried.",
        services=(
            Service(name="streams", price_sat=10, more={"authskipinvoicecreationpaths": ["^/streams/live/.*$"]}),
            Service(name="maps", price_sat=4),
        ),
        steps=(
            get("/streams/live/one", outcome=401, wire="bare:401"),
            get("/streams/one", "first", paid=10, wire=BOUGHT),
            get("/streams/one", "again", wire=OPENED),
            get("/streams/live/one", "second path", wire=OPENED),
            post("/streams/live/orders", "POST", wire="bare:401 token:200"),
            get("/maps/one", paid=4, wire=REPLACED),
            get("/streams/live/two", wire="bare:401 token:401 token:200"),
            get("/streams/live/two", wire=OPENED),
            post("/streams/live/others", wire="bare:401 token:401 token:200"),
            NEW_KEYS,
            get("/streams/live/one", "used up", outcome=401),
            get("/streams/one", "new keys", paid=10, wire=REPLACED),
            get("/streams/live/one"),
            post("/streams/live/orders"),
            NEW_SESSION,
            get("/streams/live/one", "new session"),
            get("/streams/live/three"),
        ),
    ),
    Way(
        name="`blocklist`",
        mind="403 for an address, token or not. It says nothing of the token, which is kept.",
        services=(Service(name="plain", price_sat=10),),
        steps=(
            get("/plain/one", "first", paid=10, wire=BOUGHT),
            Deed("restart", {"blocklist": ["127.0.0.1"]}),
            get("/plain/one", "again", outcome=403, wire="token:403 bare:403"),
            get("/plain/two", "second path", outcome=403, wire="token:403 bare:403"),
            post("/plain/orders", "POST", outcome=403, wire="bare:403"),
            Deed("restart", {"blocklist": []}),
            get("/plain/one", wire=OPENED),
            post("/plain/orders", wire=BOUGHT),
            NEW_SESSION,
            get("/plain/one", "new session", wire=OPENED),
        ),
    ),
    *(
        Way(
            name=f"`enablempp`, {f'`authscheme: {scheme}`' if scheme else 'no `authscheme`'}",
            mind="`Payment` challenges stand beside L402's, each with an invoice of its own. L402 is paid.",
            services=(Service(name="both", price_sat=10, more={"authscheme": scheme} if scheme else {}),),
            settings=MPP,
            steps=(MPP_IS_ON, *walk_of_a_service("both")),
        )
        for scheme in ("", "l402", "l402+mpp")
    ),
    Way(
        name="`enablempp`, `authscheme: mpp` for one of several services",
        mind="L402 is offered there and never taken: one payment is lost. The other services go on.",
        services=(
            Service(name="maps", price_sat=10, more={"authscheme": "l402"}),
            Service(name="trap", price_sat=6, more={"authscheme": "mpp"}),
            Service(name="weather", price_sat=4, more={"authscheme": "l402+mpp"}),
        ),
        settings=MPP,
        steps=(
            MPP_IS_ON,
            get("/maps/one", "first", paid=10, wire=BOUGHT),
            get("/maps/one", "again", wire=OPENED),
            Deed("expect_many_requests"),
            get("/trap/one", "second path", outcome=TokenRefusedError, paid=6),
            post("/trap/orders", "POST", outcome=TokenRefusedError),
            get("/maps/one", wire=OPENED),
            get("/weather/one", paid=4),
            NEW_SESSION,
            get("/maps/two", "new session"),
        ),
    ),
    Way(
        name="`enablempp`, `authscheme: mpp` for all services",
        mind="L402 is offered and never taken: one payment is lost. Nothing more is bought at the origin until it is forgotten.",
        services=(
            Service(name="trap", price_sat=6, more={"authscheme": "mpp"}),
            Service(name="snare", price_sat=7, more={"authscheme": "mpp"}),
        ),
        settings=MPP,
        steps=(
            MPP_IS_ON,
            Deed("expect_many_requests"),
            get("/trap/one", "first", outcome=TokenRefusedError, paid=6),
            get("/snare/one", "second path", outcome=TokenRefusedError),
            post("/snare/orders", "POST", outcome=TokenRefusedError),
            NEW_SESSION,
            get("/trap/one", "new session", outcome=TokenRefusedError),
        ),
    ),
)

DYNAMIC = Way(
    name="`dynamicprice`",
    mind="A token for each path, at the price of that moment, without `timeout` or `constraints`; a path of price 0 is free. While "
    "the price server is away, 500 comes back to the caller, and paths that were paid for open.",
    services=(Service(name="dynamic", timeout_s=1),),
    steps=(
        get("/dynamic/one", "first", paid=7, wire=BOUGHT),
        Deed("expect_no_expiry"),
        get("/dynamic/one", "again", wire=OPENED),
        get("/dynamic/two", "second path", paid=9, wire=REPLACED),  # the token of the first path was a guess
        get("/dynamic/two?page=2", wire=OPENED),
        post("/dynamic/orders", "POST", paid=11, wire=BOUGHT),
        post("/dynamic/orders", wire=OPENED),
        get("/dynamic/free", wire="bare:200"),
        Deed("prices", {"/dynamic/one": 20}),
        get("/dynamic/one", wire=OPENED),
        NEW_KEYS,
        get("/dynamic/one", "new keys", paid=20, wire=REPLACED),
        NEW_SESSION,
        get("/dynamic/one", "new session", wire=OPENED),
        Deed("close_prices"),
        get("/dynamic/three", outcome=500, wire="bare:500"),
        get("/dynamic/one", wire=OPENED),
    ),
)

COLON = Way(
    name="`dynamicprice`, a colon or comma in the path",
    mind="Aperture can't read its own token (`services=NAME/PATH:0`): one payment is lost, and no more is bought for the path.",
    services=(Service(name="dynamic"),),
    steps=(
        get("/dynamic/one", "first", paid=7, wire=BOUGHT),
        get("/dynamic/one", "again", wire=OPENED),
        Deed("expect_many_requests"),
        get("/dynamic/a:b", "second path", outcome=TokenRefusedError, paid=9),
        get("/dynamic/a,b", outcome=TokenRefusedError, paid=8),
        NEW_SESSION,
        get("/dynamic/one", "new session", wire=OPENED),
    ),
)

TLS = Way(
    name="`insecure: false`, aperture's own certificate",
    mind='`session.verify = "tls.cert"`, as with `requests`. Without it, or with a new one, `SSLError`: nothing is sent '
    "or paid. `REQUESTS_CA_BUNDLE` wins over `session.verify`.",
    services=(Service(name="plain", price_sat=10),),
    settings={"tls": True},
    steps=(
        get("/plain/one", outcome=requests.exceptions.SSLError),
        Deed("verify"),
        get("/plain/one", "first", paid=10),
        get("/plain/one", "again"),
        get("/plain/two", "second path"),
        post("/plain/orders", "POST"),
        Deed("restart", {"forget": CERTIFICATE}),
        get("/plain/one", outcome=requests.exceptions.SSLError),
        NEW_SESSION,
        Deed("verify"),
        get("/plain/one"),
        NEW_KEYS,
        get("/plain/one", "new keys", paid=10),
        NEW_SESSION,
        Deed("verify"),
        get("/plain/one", "new session"),
    ),
)


class Walk:
    """One buyer at one aperture, with a ledger of his own. Each call is held against lnd's list, the wire and the answer."""

    def __init__(
        self,
        way: Way,
        *,
        world: World,
        client: LndClient,
        aperture: Aperture,
        folder: Path,
        wire: Wire | None,
        prices: Prices | None,
    ) -> None:
        self.way, self.world, self.client, self.aperture = way, world, client, aperture
        self.folder, self.wire, self.price_server = folder, wire, prices
        self.origin = wire.url if wire else aperture.url
        self.max_requests = MAX_REQUESTS
        self.listed = {payment["payment_hash"] for payment in world.payer.list_payments()}
        self.spent_msat: dict[str, int] = {}
        self.faults: list[str] = []
        self.session = self._session()

    def _session(self, *, wallet: bool = True) -> Routeweiler:
        return Routeweiler(
            funding=[Funding.lightning_lnd(client=self.client, network=NETWORK)] if wallet else [],
            ledger=self.folder / "ledger.db",
            budget_envelope=BudgetEnvelope("ways", per_call_minor_units=1_000, cap_minor_units=10_000),
        )

    def run(self) -> None:
        """Take all steps, then tell every one that went wrong."""
        for step in self.way.steps:
            if isinstance(step, Deed):
                getattr(self, step.name)(**step.arguments)
            else:
                self.call(step)
        self.close()
        assert not self.faults, "\n".join(["", *self.faults])
        self.check_ledger()

    def call(self, step: Step) -> None:
        mark = len(self.wire.exchanges) if self.wire else 0
        response = error = None
        body = {"n": 1} if step.method == "POST" else None
        try:
            response = self.session.request(step.method, self.origin + step.path, json=body, timeout=HTTP_TIMEOUT_S)
        except OSError as caught:
            error = caught
        exchanges = self.wire.exchanges[mark:] if self.wire else []
        wire = " ".join(map(str, exchanges))
        new = self._newly_paid()
        wrong = []
        if isinstance(step.outcome, int):
            wrong += [] if response is not None and response.status_code == step.outcome else [f"expected {step.outcome}"]
        else:
            wrong += [] if isinstance(error, step.outcome) else [f"expected {step.outcome.__name__}"]
        # A token that is refused may have been paid for by an earlier call, and for another path.
        either = isinstance(error, TokenRefusedError) and not new
        if isinstance(error, RouteweilerError) and error.spent not in ((True, False) if either else (bool(new),)):
            wrong.append(f"the error says spent={error.spent}")
        if [sat for sat, _ in new.values()] != ([step.paid] if step.paid else []):
            wrong.append(f"expected {step.paid} sat")
        if step.wire is not None and wire != step.wire and self.wire:
            wrong.append(f"expected [{step.wire}]")
        if len(exchanges) > self.max_requests:
            wrong.append(f"more than {self.max_requests} requests")
        if response is not None:
            wrong += self._wrong_in_answer(step, response, exchanges, list(new))
        if wrong:
            came = repr(error) if response is None else response.status_code
            self.faults.append(f"{step}: {came}, paid {[sat for sat, _ in new.values()]} sat, wire [{wire}]: {'; '.join(wrong)}")

    def _wrong_in_answer(self, step: Step, response: requests.Response, exchanges: list[Exchange], new: list[str]) -> Iterator[str]:
        payment = response.payment  # type: ignore[attr-defined]
        told = (payment.payment_hash, payment.reused) if payment else None
        if new:
            if told != (new[0], False):
                yield f"response.payment isn't the purchase: {payment}"
        elif response.ok and exchanges and exchanges[-1].payment_hash and told != (exchanges[-1].payment_hash, True):
            yield f"response.payment isn't the token that was used: {payment}"
        if response.status_code == 429 and not int(response.headers.get("Retry-After", 0)):
            yield "no Retry-After"
        if response.ok and step.method == "POST" and response.json()["body"] != '{"n": 1}':
            yield "the body didn't arrive"

    def _newly_paid(self) -> dict[str, tuple[int, int]]:
        """Amount in sat, and all in msat, of the payments that lnd lists now and didn't before."""
        new = {}
        for payment in self.world.payer.list_payments():
            if payment["payment_hash"] not in self.listed:
                assert payment["status"] == "SUCCEEDED", payment
                value_msat, fee_msat = int(payment["value_msat"]), int(payment["fee_msat"])
                new[payment["payment_hash"]] = (value_msat // 1_000, value_msat + fee_msat)
        self.listed |= new.keys()
        self.spent_msat |= {payment_hash: msat for payment_hash, (_, msat) in new.items()}
        return new

    def rows(self) -> list[PaymentRow]:
        ledger = Ledger.open(self.folder / "ledger.db")
        try:
            return list(ledger.payments())
        finally:
            ledger.close()

    def check_ledger(self) -> None:
        """The ledger says of each payment what lnd says, and knows no other."""
        rows = self.rows()
        assert not [row for row in rows if row.unfinished]
        assert {row.payment_hash: row.amount_msat + row.fee_msat for row in rows} == self.spent_msat

    # Deeds.

    def restart(self, *, forget: tuple[str, ...] = (), **settings: object) -> None:
        self.aperture.settings |= settings
        self.aperture.restart(forget=forget)

    def new_session(self, *, wallet: bool = True) -> None:
        self.session.close()
        self.session = self._session(wallet=wallet)

    def close(self) -> None:
        self.session.close()

    def wait_until_expired(self) -> None:
        (row,) = self.rows()
        until = row.valid_until
        assert until is not None
        wait_for("the token has expired", lambda: time.time() > until + 1, watched=[self.aperture.daemon])

    def expect_no_expiry(self) -> None:
        """Aperture finds no `timeout` for a price that isn't in its settings."""
        assert [row.valid_until for row in self.rows()] == [None]

    def expect_retired(self) -> None:
        """The token that was replaced isn't kept for another time."""
        states = [row.state for row in sorted(self.rows(), key=lambda row: row.created_at)]
        assert states == [PaymentState.RETIRED, PaymentState.SETTLED]

    def expect_schemes(self, schemes: list[str]) -> None:
        """What a 402 offers, in order. Asked past the library."""
        answer = requests.get(f"{self.origin}/{self.way.services[0].name}/anything", timeout=HTTP_TIMEOUT_S)
        assert [line.split(" ")[0] for line in answer.raw.headers.getlist("WWW-Authenticate")] == schemes

    def expect_caveats(self, caveats: list[str]) -> None:
        for row in self.rows():
            assert row.token is not None
            token = base64.b64decode(row.token)
            assert all(caveat.encode() in token for caveat in caveats), token

    def expect_many_requests(self) -> None:
        """A token that was never taken is offered again for seconds."""
        self.max_requests = 100

    def prices(self, **sat: int) -> None:
        assert self.price_server is not None
        self.price_server.sat = {**PRICES_SAT, **sat}.__getitem__

    def close_prices(self) -> None:
        assert self.price_server is not None
        self.price_server.close()

    def verify(self) -> None:
        """Trust the certificate of this moment, as a copy: a new one isn't trusted because aperture wrote it to the same place."""
        content = self.aperture.tls_cert_path.read_bytes()
        trusted = self.folder / f"trusted-{hashlib.sha256(content).hexdigest()[:8]}.pem"
        trusted.write_bytes(content)
        self.session.verify = str(trusted)


PRICES_SAT = {"/dynamic/one": 7, "/dynamic/two": 9, "/dynamic/orders": 11, "/dynamic/free": 0, "/dynamic/a:b": 9, "/dynamic/a,b": 8}


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[LndClient]:
    """The payer, with no more rights than a payer needs."""
    payer = world.payer
    client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(), tls_cert_path=payer.tls_cert_path)
    yield client
    client.close()


def walk(world: World, client: LndClient, folder: Path, way: Way, prices: Prices | None = None) -> None:
    with contextlib.ExitStack() as stack:
        aperture = stack.enter_context(world.another_aperture(way.services, **way.settings))
        address = urlsplit(aperture.url)
        # Nobody can listen in on TLS: there lnd's list and the answers must do.
        wire = stack.enter_context(Wire(address.port)) if address.scheme == "http" else None
        walking = Walk(way, world=world, client=client, aperture=aperture, folder=folder, wire=wire, prices=prices)
        stack.callback(walking.close)
        walking.run()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name.replace("`", ""))
def test_a_way_costs_what_it_must_and_no_more(world: World, client: LndClient, tmp_path: Path, way: Way) -> None:
    """Otherwise a setting of the most used paywall would make its buyers pay twice, or lock them out of what they have paid for."""
    walk(world, client, tmp_path, way)


@pytest.mark.parametrize("way", [DYNAMIC, COLON], ids=lambda way: way.name.replace("`", ""))
def test_a_path_with_a_price_of_its_own_is_paid_once(world: World, client: LndClient, tmp_path: Path, way: Way) -> None:
    """Otherwise a price that changes, or a price server that is away, would cost tokens that are paid for."""
    prices = Prices(PRICES_SAT.__getitem__)
    dynamic = {"dynamicprice": {"enabled": True, "insecure": True, "grpcaddress": prices.address}}
    services = tuple(replace(service, more=dynamic) for service in way.services)
    try:
        walk(world, client, tmp_path, replace(way, services=services), prices)
    finally:
        prices.close()


def test_its_own_certificate_is_trusted_by_verify_alone(
    world: World, client: LndClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a token or a payment would go to whoever answers in aperture's place."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)  # `requests` has them win over `session.verify`
    walk(world, client, tmp_path, TLS)


def test_the_page_about_aperture_is_what_the_walks_are() -> None:
    """A reader of the page relies on figures that were seen."""
    rows = [way.cells() for way in (*WAYS, DYNAMIC, COLON, TLS)]
    check_section("aperture", table(["setting", *COLUMNS, "what to mind"], rows))
