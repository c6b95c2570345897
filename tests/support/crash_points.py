"""Every step of a purchase, numbered, and a death at each: what `test_crash_points` enumerates.

A step is a moment at which something has just left the process for good, or is just about to: a transaction of the ledger (before
BEGIN, before COMMIT, after COMMIT), a gRPC message, an HTTP request and its answer, a line of the trace. `stepping` finds them by
wrapping what is outermost - the connection of sqlite3 or psycopg, grpc's channel, `requests`' own adapter, the trace's file - so
that no purchase can take a step that isn't counted.

Two ways to die. In this process `Died` is raised at a step, and from then on every further step raises it too: what cleans up on
the way out changes nothing in the world, as after kill -9. And truly: run as a module this is a server that forks, from a process
that has imported everything and opened nothing, a child which makes one call and ends by `os._exit` at its step.

    python -m tests.support.crash_points        (the node is the environment's; reads jobs as lines of JSON, answers each)
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import grpc
import requests

from routeweiler_sync import Funding, Ledger, LndClient, Routeweiler, RouteweilerError, TraceSink
from routeweiler_sync.funding.lnd import channel as connection
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.payments import first_use, lifecycle, report_claims as telling, single_flight as flight
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace.sink_jsonl import JsonlSink

from .accounts import Books
from .forked_jobs import serve

#: Exit code of a child that has died at its step.
DIED = 86
#: Calls that a need may take after a crash until its page is there: one that finds the payment FAILED, and some to spare.
MAX_CALLS = 4
FEE_MSAT = 1_234
#: No call waits so long unless something is broken.
PAYMENT_TIMEOUT_S = 10.0
SEND = "SendPaymentV2"


class Died(BaseException):
    """The end of a process that is only played."""


def die() -> None:
    """As by kill -9, for a life that is played in this process."""
    raise Died


def die_truly() -> None:
    """As by kill -9."""
    os._exit(DIED)


def interrupt() -> None:
    """As by Ctrl-C: the process lives on."""
    raise KeyboardInterrupt


class Steps:
    """Numbers the steps of a life, from 1, and does ``deed`` at step ``at``: a number, a name, or None for never.

    Those before the step named ``since`` aren't counted: all lives begin alike, and nothing is at stake yet. Once ``deed`` has
    raised `Died`, every further step raises it as well.
    """

    def __init__(self, at: int | str | None = None, deed: Callable[[], object] = die, since: str | None = None) -> None:
        self.at, self.deed, self._since = at, deed, since
        self.taken: list[str] = []
        self.name = "the end"
        self._dead = self._busy = False

    @property
    def reached(self) -> bool:
        """Whether the life came as far as step ``at``."""
        return self.name != "the end"

    def __call__(self, name: str) -> None:
        if self._dead:
            raise Died
        if self._busy or self._since not in (None, name):
            return
        self._since = None
        self.taken.append(name)
        if self.at in (name, len(self.taken)) and not self.reached:
            self.name = name
            self._busy = True  # what the deed itself does isn't a step of this life
            try:
                self.deed()
            except Died:
                self._dead = True
                raise
            finally:
                self._busy = False


class Air:
    """The network between a buyer and its node: the next ``storm`` orders stay in it until `deliver` is called."""

    def __init__(self, lnd: FakeLnd) -> None:
        self.storm = 0
        self._lnd = lnd
        self._client = lnd.client()
        self._client.get_info()
        self._orders: list[Any] = []

    def take(self, order: Any) -> None:
        """Swallow an order."""
        self.storm -= 1
        self._orders.append(order)

    def deliver(self) -> None:
        """Let all that is in the air arrive, whose senders are long gone."""
        while self._orders:
            order, before = self._orders.pop(), len(self._lnd.orders)
            self._client.send(order.payment_request, payment_hash=b"", max_fee_msat=order.fee_limit_msat, timeout_s=10)
            assert len(self._lnd.orders) > before, "a late order didn't arrive"

    def close(self) -> None:
        """Let go of the node."""
        self._client.close()


class LostError(grpc.RpcError):
    """What gRPC says when the connection breaks."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"


grpc.Call.register(LostError)  # type: ignore[attr-defined]


# -- where the steps are ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stepping(
    steps: Steps, *, air: Air | None = None, sent: Callable[[], None] | None = None, lost_commits: frozenset[str] = frozenset()
) -> Iterator[None]:
    """Every step of what is opened and done in the block is told to ``steps``.

    ``sent`` is called between the leaving of an order and the step that tells of it. The commits of the ledger's methods
    ``lost_commits`` aren't made, though they seem to be.
    """

    class SteppedConnection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "BEGIN":
                steps(f"ledger {_deed()}: before reading")
            elif sql.startswith("BEGIN"):
                steps(f"ledger {_deed()}: before BEGIN")
            if sql != "COMMIT" or not self.writing:
                self.writing = sql == "BEGIN IMMEDIATE" or (self.writing and self.in_transaction)
                return super().execute(sql, *parameters)
            deed, self.writing = _deed(), False
            steps(f"ledger {deed}: before COMMIT")
            done = super().execute("ROLLBACK" if deed in lost_commits else sql)
            steps(f"ledger {deed}: after COMMIT")
            return done

        writing = False

    http_send, trace_write, open_channel = requests.adapters.HTTPAdapter.send, JsonlSink._write, connection.LndChannel._open

    @functools.wraps(http_send)
    def send(self: Any, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        bears = "with a token" if "Authorization" in request.headers else "bare"
        steps(f"HTTP {bears}: before it is sent")
        response = http_send(self, request, **kwargs)
        steps(f"HTTP {bears}: answered {response.status_code}")
        return response

    def write(self: JsonlSink, *event: Any) -> None:
        steps("trace: before the line")
        trace_write(self, *event)
        steps("trace: after the line")

    def opened(self: connection.LndChannel, deadline: float) -> Any:
        link = open_channel(self, deadline)
        link.channel = _Channel(link.channel, steps, air, sent)  # type: ignore[assignment]
        return link

    with (
        patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=SteppedConnection)),
        patch.object(requests.adapters.HTTPAdapter, "send", send),
        patch.object(JsonlSink, "_write", write),
        patch.object(connection.LndChannel, "_open", opened),
        _stepping_in_postgres(steps, lost_commits),
    ):
        yield


@contextlib.contextmanager
def _stepping_in_postgres(steps: Steps, lost_commits: frozenset[str]) -> Iterator[None]:
    """The same steps of a ledger that is in PostgreSQL, where its driver is installed."""
    try:
        from psycopg import Connection
    except ImportError:
        yield
        return
    original = Connection.execute
    writing: set[int] = set()

    @functools.wraps(original)
    def execute(self: Any, query: Any, *parameters: Any, **kwargs: Any) -> Any:
        sql = query.decode() if isinstance(query, bytes) else query
        if sql.startswith("BEGIN"):
            reads = "READ ONLY" in sql
            steps(f"ledger {_deed()}: before {'reading' if reads else 'BEGIN'}")
            (writing.discard if reads else writing.add)(id(self))
        elif id(self) not in writing and sql.startswith("SELECT"):
            steps(f"ledger {_deed()}: before reading")  # a statement alone is its own transaction
        if not sql.endswith("COMMIT") or id(self) not in writing:  # deferred statements are in the same message
            return original(self, query, *parameters, **kwargs)
        deed = _deed()
        writing.discard(id(self))
        steps(f"ledger {deed}: before COMMIT")
        if deed in lost_commits:
            original(self, "ROLLBACK")
            original(self, "BEGIN")
            sql = "COMMIT"
        done = original(self, sql)
        steps(f"ledger {deed}: after COMMIT")
        return done

    with patch.object(Connection, "execute", execute):
        yield


def _deed() -> str:
    """The method of the ledger that runs the transaction."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in ("_migrate", "_make_tables") or isinstance(frame.f_locals.get("self"), Ledger):
            return frame.f_code.co_name
        frame = frame.f_back
    return "?"


class _Channel:
    """A channel of grpc's whose calls take steps."""

    def __init__(self, channel: grpc.Channel, steps: Steps, air: Air | None, sent: Callable[[], None] | None) -> None:
        self._channel, self._steps, self._air, self._sent = channel, steps, air, sent

    def close(self) -> None:
        self._channel.close()

    def unary_unary(self, path: str, **kwargs: Any) -> Callable[..., Any]:
        call, name = self._channel.unary_unary(path, **kwargs), path.rpartition("/")[2]

        def ask(request: Any, **kwargs: Any) -> Any:
            self._steps(f"lnd {name}: before it is sent")
            reply = call(request, **kwargs)
            self._steps(f"lnd {name}: answered")
            return reply

        return ask

    def unary_stream(self, path: str, **kwargs: Any) -> Callable[..., Any]:
        call, name = self._channel.unary_stream(path, **kwargs), path.rpartition("/")[2]

        def begin(request: Any, **kwargs: Any) -> Any:
            self._steps(f"lnd {name}: before it is sent")
            if self._air is not None and name == SEND and self._air.storm:
                self._air.take(request)
                stream: Any = _Lost()
            else:
                stream = call(request, **kwargs)
                if self._sent is not None and name == SEND:
                    self._sent()
            self._steps(f"lnd {name}: sent")
            return _Stream(stream, name, self._steps)

        return begin


class _Lost:
    def __iter__(self) -> Iterator[Any]:
        raise LostError

    def cancel(self) -> None:
        """There is nothing to cancel."""


class _Stream:
    def __init__(self, stream: Any, name: str, steps: Steps) -> None:
        self._stream, self._name, self._steps = stream, name, steps

    def __iter__(self) -> Iterator[Any]:
        try:
            for message in self._stream:
                self._steps(f"lnd {self._name}: {pb.Payment.PaymentStatus.Name(message.status)}")
                yield message
        except grpc.RpcError as error:
            self._steps(f"lnd {self._name}: {error.code().name}")
            raise

    def cancel(self) -> None:
        self._stream.cancel()


# -- lives --------------------------------------------------------------------------------------------------------------------


class _Since:
    """A node's record of what came after this was made."""

    def __init__(self, lnd: FakeLnd) -> None:
        self._lnd, self._before, self._spent_before_msat = lnd, len(lnd.payments), lnd.spent_msat

    @property
    def payments(self) -> list[Any]:
        return self._lnd.payments[self._before :]

    @property
    def spent_msat(self) -> int:
        return self._lnd.spent_msat - self._spent_before_msat


class World:
    """One need, its page, and the accounts of all who take part: a ledger and a trace of its own in ``folder``."""

    def __init__(self, folder: Path, lnd: FakeLnd, paywall: Paywall, air: Air | None = None) -> None:
        folder.mkdir()
        lnd.clear_faults()
        if air is not None:
            air.storm = 0
        self.lnd, self.paywall, self.air = lnd, paywall, air
        #: Orders that a living process waits for aren't held any longer.
        self.delivers_at_once = False
        self.record = _Since(lnd)
        self.books = Books(folder, self.record)  # type: ignore[arg-type]

    def session(self, client: LndClient) -> Routeweiler:
        return Routeweiler(
            funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")],
            ledger=self.books.ledger_path,
            trace_sink=TraceSink.jsonl(self.books.trace_path),
            payment_timeout=PAYMENT_TIMEOUT_S,
        )

    def life(self, does: Callable[[Routeweiler], Any], steps: Steps | None = None, **faults: Any) -> Any:
        """A process from its birth to its end: what ``does`` returns, None if it died."""
        client, seen = self.lnd.client(), len(self.lnd.orders) + self.lnd.held_orders

        def arrived() -> None:
            self.lnd.wait_for(lambda node: len(node.orders) + node.held_orders > seen)
            if self.delivers_at_once:
                self.deliver_held()

        with stepping(steps or Steps(), air=self.air, sent=arrived, **faults):
            session = self.session(client)
            try:
                return does(session)
            except Died:
                return None
            finally:
                session.close()
                client.close()
                telling._start_over_after_fork()  # the next process has a memory of its own
                flight._start_over_after_fork()
                first_use._start_over_after_fork()
                self.settle_down()

    def deliver_held(self) -> None:
        """Let lnd read the orders that it has held, and carry them out."""
        expected = len(self.lnd.orders) + self.lnd.held_orders
        self.lnd.deliver_orders()
        self.lnd.wait_for(lambda node: len(node.orders) >= expected)
        self.settle_down()

    def settle_down(self) -> None:
        """Let the node end what it has begun: the steps of the next life are then the same each time."""
        self.lnd.wait_for(lambda node: all(payment.status != "IN_FLIGHT" for payment in node.payments))

    def call(self, session: Routeweiler) -> requests.Response | RouteweilerError:
        """The call. An error of ours is an end like any other."""
        try:
            return session.get(self.paywall.url, timeout=30)
        except RouteweilerError as error:
            return error

    def calls(self, session: Routeweiler) -> list[Any]:
        """The call, by one process, until the page is there, whatever fails or interrupts it; all answers."""
        answers: list[Any] = []
        for _ in range(MAX_CALLS):
            try:
                answers.append(self.call(session))
            except KeyboardInterrupt as interrupted:
                answers.append(interrupted)
            if isinstance(answers[-1], requests.Response):
                break
        return answers

    def check(self, *, payments: int = 1, **faults: Any) -> None:
        """Whatever has happened: the page arrives, for ``payments`` payments in all, and all accounts agree."""
        answers = [self.life(self.call, **faults)]
        while len(answers) < MAX_CALLS and not isinstance(answers[-1], requests.Response):
            answers.append(self.life(self.call, **faults))
        self.agree(answers, payments=payments)

    def agree(self, answers: list[Any], *, payments: int = 1) -> None:
        """The last of ``answers`` is the page, and all accounts agree on what it cost."""
        response = answers[-1]
        assert isinstance(response, requests.Response), f"the page never came: {answers!r}"
        assert (response.status_code, response.content) == (200, self.paywall.content)
        if self.air is not None:
            self.air.deliver()  # at the very latest; it must do no harm
            self.settle_down()
        paid = [payment for payment in self.record.payments if payment.status == "SUCCEEDED"]
        assert len(paid) == payments, f"{len(paid)} payments for what costs {payments}: {self.record.payments}"
        token = response.payment.payment_hash  # type: ignore[attr-defined]
        asked = self.paywall.requests[-1]
        assert (asked.paid, asked.payment_hash) == (True, token), "the page was had without the token"
        row = self.books.ledger.payment(token)
        assert row is not None
        assert row.state.value == "settled"
        assert row.preimage is not None
        assert row.accepted
        assert self.books.ledger.unreported() == []
        self.books.check()
        (envelope,) = self.books.ledger.envelopes()
        assert envelope.reserved_minor_units == 0
        assert envelope.settled_minor_units * 1000 == self.record.spent_msat
        told = {p["paymentHash"]: p["amountMsat"] + p["feeMsat"] for line in self.books.lines if (p := line["payment"])}
        assert sum(told.values()) == self.record.spent_msat, "the trace doesn't add up"


def hurry() -> Iterator[None]:
    """The library without its pauses; no wait of its own decides anything here."""
    with (
        patch.object(lifecycle, "LEAVE_ALONE_S", 0.0),
        patch.object(negotiation, "MIN_PAUSE_S", 0.001),
    ):
        yield


# -- children that truly die --------------------------------------------------------------------------------------------------


class Nursery:
    """The server below: forks a child for each job, and tells how it ended."""

    def __init__(self, lnd: FakeLnd) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_points"],
            env={**os.environ, **lnd.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def dies(self, world: World, at: int, since: str) -> bool:
        """Whether a child that makes the call of ``world`` came as far as step ``at``, and died there."""
        ledger, trace = str(world.books.ledger_path), str(world.books.trace_path)
        job = {"url": world.paywall.url, "ledger": ledger, "trace": trace, "at": at, "since": since}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        ended = int(self._server.stdout.readline())
        assert ended in (0, DIED), f"the child ended with {ended}"
        world.settle_down()
        return ended == DIED

    def close(self) -> None:
        self._server.communicate(timeout=30)
        assert self._server.returncode == 0


def child(url: str, ledger: str, trace: str, at: int, since: str) -> None:
    """One call, and the end at step ``at``, counted from ``since``."""
    funding = Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")
    with (
        stepping(Steps(at, die_truly, since)),
        Routeweiler(funding=[funding], ledger=ledger, trace_sink=TraceSink.jsonl(trace)) as session,
        contextlib.suppress(RouteweilerError),
    ):
        session.get(url, timeout=30)


if __name__ == "__main__":
    serve(child)
