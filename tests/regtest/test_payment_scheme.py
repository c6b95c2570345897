"""Buying from real servers of the scheme ``Payment``: one payment a request, and no paid one is lost that the server still takes.

lnd's own list says what was paid, a relay in front of the server what was sent. What came out is also the table of
`docs/how-to/servers.md`; see `servers_page`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    Funding,
    Ledger,
    LndClient,
    PaymentRow,
    Policy,
    Routeweiler,
    RouteweilerError,
    TokenRefusedError,
)

from .payment_servers import (
    BOTH,
    L402_ALONE,
    MPP_ALONE,
    MPPX,
    MPPX_011,
    PAYMENT_SERVERS,
    PRICE_SAT,
    PYMPP,
    PYMPP_OTHER_HEADER,
    SERVICE,
    PaymentServer,
    Running,
    running,
)
from .server_builds import Runtimes
from .servers_page import check_section, table
from .wire import Exchange, Wire
from .world import World

NETWORK = "bitcoin-regtest"
RAIL = "mpp-lightning"
HTTP_TIMEOUT_S = 30
#: Longer than any challenge lives.
LATER_S = 2 * 3600
#: A call after a lost answer, one after a refusal, and one more.
CALLS_MOST = 4
REQUESTS_MOST = 8
BODY = {"question": "what is for sale?", "pages": [1, 2]}
ENVELOPE = BudgetEnvelope("payments", per_call_minor_units=100, cap_minor_units=10_000)

#: What is done at each server, in this order. "lost": the connection is cut before the credential reaches the server, or after it
#: has answered; the call is then repeated until the page comes.
STEPS = (
    "GET",
    "again",
    "another path",
    "POST",
    "request lost",
    "answer lost",
    "lost, restarted",
    "lost, expired",
    "lost, new session",
    "lost, new key",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What came of a call: what lnd paid for it, the status or the error, and what went over the wire.

    ``refused`` is the payment that the user was told is refused.
    """

    payments: int
    outcome: str
    refused: str | None
    exchanges: Sequence[Exchange]

    def __str__(self) -> str:
        return str(self.payments) if self.outcome == "200" else f"{self.payments} {self.outcome}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """What came of all steps at one server."""

    server: PaymentServer
    steps: Mapping[str, Sequence[Call]]
    paid_msat: Mapping[str, int]  #: by payment hash, with fees, by lnd's list
    rows: Sequence[PaymentRow]
    spent_msat: int  #: by the envelope's account
    outside: Sequence[str]
    elsewhere: int  #: credentials that another origin got
    log: str

    def cell(self, step: str) -> str:
        return ", ".join(map(str, self.steps.get(step, ())))


class Walker:
    """One buyer at one server."""

    def __init__(self, server: PaymentServer, real: Running, world: World, folder: Path, wire: Wire) -> None:
        self.server, self.real, self.world, self.folder, self.wire = server, real, world, folder, wire
        self._known = self.paid().keys()
        self._pages = 0

    def steps(self, session: Routeweiler) -> Iterator[tuple[str, list[Call]]]:
        yield "GET", [self.call(session)]
        yield "again", [self.call(session)]
        if self.server is L402_ALONE:
            return
        yield "another path", [self.call(session, path="/b")]
        yield "POST", [self.call(session, method="POST")]
        yield "request lost", self.lost(session, "before")
        yield "answer lost", self.lost(session, "after")
        yield "lost, restarted", self.lost(session, "before", lambda: self.real.restart())
        if self.server.script is not None:
            yield "lost, expired", self.lost(session, "before", lambda: self.real.restart(later_s=LATER_S))

    def last_steps(self, session: Routeweiler, fresh: Routeweiler) -> Iterator[tuple[str, list[Call]]]:
        if self.server is L402_ALONE:
            return
        yield "lost, new session", self.lost(session, "before", then=fresh)
        yield "lost, new key", self.lost(fresh, "before", lambda: self.real.restart(new_key=True))

    def lost(
        self, session: Routeweiler, when: Any, act: Callable[[], None] = lambda: None, then: Routeweiler | None = None
    ) -> list[Call]:
        """Ask for a page of its own, with its answer lost, and again until it comes. A payment that is refused is forgotten."""
        self._pages += 1
        path = f"/lost/{self._pages}"
        self.wire.cut_next(when)
        calls = [self.call(session, path=path)]
        act()
        while calls[-1].outcome != "200" and len(calls) < CALLS_MOST:
            refused = calls[-1].refused
            if refused is not None:
                session.ledger.forget(refused)
            calls.append(self.call(then or session, path=path))
        return calls

    def call(self, session: Routeweiler, method: str = "GET", path: str = "/a") -> Call:
        mark, before = len(self.wire.exchanges), self.paid().keys()
        path = f"/{SERVICE}{path}"
        body, refused = BODY if method == "POST" else None, None
        try:
            answer = session.request(method, self.wire.url + path, json=body, timeout=HTTP_TIMEOUT_S)
        except Exception as error:  # whatever the session says is what came of the call
            outcome = f"`{type(error).__name__}`"
            if isinstance(error, RouteweilerError):
                outcome += "" if error.spent and error.payment_hash in self.paid() else f", spent={error.spent}"
            if isinstance(error, TokenRefusedError):
                refused = error.payment_hash
        else:
            outcome = str(answer.status_code)
            if answer.status_code == 200:
                outcome += wrong_with(answer.json(), method, path)
        return Call(
            payments=len(self.paid().keys() - before), outcome=outcome, refused=refused, exchanges=tuple(self.wire.exchanges[mark:])
        )

    def paid(self) -> dict[str, int]:
        """What lnd has paid in this walk, in msat with fees, by payment hash."""
        listed = [payment for payment in self.world.payer.list_payments() if payment["status"] == "SUCCEEDED"]
        paid = {payment["payment_hash"]: int(payment["value_msat"]) + int(payment["fee_msat"]) for payment in listed}
        return {payment_hash: msat for payment_hash, msat in paid.items() if payment_hash not in getattr(self, "_known", ())}


def wrong_with(page: dict[str, Any], method: str, path: str) -> str:
    """Return what is wrong with a page that was bought, nothing where it is the right one."""
    body = json.loads(page["body"]) if page["body"] else None
    right = (page["method"], page["path"], body) == (method, path, BODY if method == "POST" else None)
    return "" if right else f", but the page is of {page}"


@contextmanager
def buyer(world: World, folder: Path) -> Iterator[Routeweiler]:
    payer = world.payer
    client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(), tls_cert_path=payer.tls_cert_path)
    with (
        closing(client),
        Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network=NETWORK)],
            ledger=folder / "ledger.db",
            budget_envelope=ENVELOPE,
            policy=Policy(default_rail=RAIL),
        ) as session,
    ):
        yield session


def walk(server: PaymentServer, world: World, runtimes: Runtimes, folder: Path) -> Walk:
    with running(server, world, runtimes) as real, Wire(real.port) as wire, Wire(None) as elsewhere:
        walker = Walker(server, real, world, folder, wire)
        with buyer(world, folder) as session:
            steps = dict(walker.steps(session))
            session.get(f"{elsewhere.url}/{SERVICE}/a")
            with buyer(world, folder) as fresh:
                steps |= dict(walker.last_steps(session, fresh))
        ledger = Ledger.open(folder / "ledger.db")
        rows, envelope = list(ledger.payments()), ledger.envelope(ENVELOPE.id)
        ledger.close()
        return Walk(
            server=server,
            steps=steps,
            paid_msat=walker.paid(),
            rows=rows,
            spent_msat=round(envelope.settled_minor_units * 1_000),
            outside=real.outside,
            elsewhere=sum(exchange.token is not None for exchange in elsewhere.exchanges),
            log=real.log,
        )


Walked = Callable[[PaymentServer], Walk]


@pytest.fixture(scope="module")
def walked(world: World, runtimes: Runtimes, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """The walk at a server, made once for all tests of this module."""
    walks: dict[str, Walk] = {}

    def get(server: PaymentServer) -> Walk:
        if server.name not in walks:
            walks[server.name] = walk(server, world, runtimes, tmp_path_factory.mktemp("walk"))
        return walks[server.name]

    return get


LOST = "1 `ConnectionError`"
REFUSED = "0 `TokenRefusedError`"
DELIVERED = f"{LOST}, 0"
ALIKE = {"GET": "1", "again": "1", "another path": "1", "POST": "1", "request lost": DELIVERED}
REOFFERED = dict.fromkeys(("lost, restarted", "lost, expired", "lost, new session", "lost, new key"), DELIVERED)
USED_UP = {"answer lost": f"{LOST}, {REFUSED}, 1"}
APERTURE = {
    **ALIKE,
    **dict.fromkeys(("answer lost", "lost, restarted", "lost, new session"), DELIVERED),
    "lost, new key": f"{LOST}, {REFUSED}, 1",
}
#: What each step is to come to.
WANTED = {
    BOTH.name: APERTURE,
    MPP_ALONE.name: APERTURE,
    L402_ALONE.name: {"GET": "1 `TokenRefusedError`", "again": REFUSED},
    **{server.name: ALIKE | USED_UP | REOFFERED for server in (MPPX, MPPX_011, PYMPP, PYMPP_OTHER_HEADER)},
}
each_server = pytest.mark.parametrize("server", PAYMENT_SERVERS, ids=lambda server: server.name.replace("`", ""))


@each_server
def test_each_request_costs_one_payment_and_a_paid_one_is_delivered_or_told_as_refused(
    server: PaymentServer, walked: Walked
) -> None:
    """A client that takes a repeated invoice for a new bill, or forgets a payment over a lost answer, pays again."""
    done = walked(server)
    wire = "\n".join(
        f"{step}: {' | '.join(' '.join(map(str, call.exchanges)) for call in calls)}" for step, calls in done.steps.items()
    )
    assert {step: done.cell(step) for step in done.steps} == WANTED[server.name], f"{wire}\n{done.log}"


@each_server
def test_no_call_pays_twice_or_asks_too_often(server: PaymentServer, walked: Walked) -> None:
    """Each 402 of aperture makes three invoices."""
    for step, calls in walked(server).steps.items():
        assert all(call.payments <= 1 and len(call.exchanges) <= REQUESTS_MOST for call in calls), step


@each_server
def test_the_books_are_lnds_to_the_msat(server: PaymentServer, walked: Walked) -> None:
    """Else money was spent that no limit and no report counts."""
    done = walked(server)
    assert not [row for row in done.rows if row.unfinished]
    assert {row.payment_hash: row.amount_msat + row.fee_msat for row in done.rows} == done.paid_msat
    assert done.spent_msat == sum(done.paid_msat.values())
    assert all(row.amount_msat == PRICE_SAT * 1_000 for row in done.rows)


@each_server
def test_no_credential_goes_elsewhere_and_no_server_calls_out(server: PaymentServer, walked: Walked) -> None:
    """Another origin would use the payment. A server that reaches another machine isn't the one whose code is tested here."""
    done = walked(server)
    assert (done.elsewhere, list(done.outside)) == (0, [])


def test_the_page_of_servers_tells_what_came_out(walked: Walked) -> None:
    """A reader relies on figures that were seen."""
    walks = [walked(server) for server in PAYMENT_SERVERS]
    rows = [[done.server.package, done.server.opens, done.server.refuses, *(done.cell(step) for step in STEPS)] for done in walks]
    check_section("payment", table(["server", "a payment opens", "a refusal has", *STEPS], rows))
