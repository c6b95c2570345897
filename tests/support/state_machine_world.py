"""The world that `test_state_machine` walks through: one node, two paywalls, sessions on one ledger, and what must be true of them.

What the node, the walls and the errors said is remembered beside the library, and `StateWorld.agree` holds the ledger and the trace
against it. Which deed comes next is the machine's; nothing is drawn here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    EnvelopeFrozenError,
    Ledger,
    PaymentRow,
    PaymentState,
    PreimageMismatchError,
    Routeweiler,
    RouteweilerError,
    TokenRefusedError,
    TraceSink,
)
from routeweiler_sync._core.preload import prepare_to_pay
from routeweiler_sync.ledger.lookups import MAX_UNDELIVERED
from routeweiler_sync.ledger.server_facts import UNDELIVERED
from routeweiler_sync.payments import checks, first_use, report_claims as telling, single_flight as flight
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd, Paywall, PaywallRequest
from routeweiler_sync.testing.paywall import Faults, Page

from .accounts import Books
from .crash_points import Air, Died, Steps, hurry, stepping

ENVELOPE = "tight"
#: How long a calm call may wait; it takes milliseconds.
PATIENCE_S = 20.0
#: What a call may be refused in a calm world, and what is refused then: what the user forgets is bought anew.
MAX_CALM_CALLS = 4
SLOW_S = 0.3
MICRO_PER_MSAT = 1_000
MICRO_PER_SAT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A token that came to a paywall, and what was said. ``refused``: with words that are about tokens."""

    payment_hash: str
    path: str
    taken: bool
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What an error told its caller of the money. ``hops``: the call may have paid for another page before."""

    payment_hash: str | None
    spent: bool | None
    hops: bool
    text: str


class PriceCap:
    """A node's invoices, noted for the paywall that had them made."""

    def __init__(self, lnd: FakeLnd, wall: Wall) -> None:
        self._lnd, self._wall = lnd, wall

    def invoice(self, amount_msat: int, **options: Any) -> Any:
        made = self._lnd.invoice(amount_msat, **options)
        self._wall.minted.add(made.payment_hash.hex())
        if self._wall.faults.mismatch:  # an opaque token doesn't show it; it is of no use from the beginning
            self._wall.revoked.add(made.payment_hash.hex())
        return made

    def settled(self, payment_hash: bytes) -> bool:
        return self._lnd.settled(payment_hash)


class Wall(Paywall):
    """A paywall that remembers every token that it was offered, wherever that was bought. ``/hop``, once paid, leads to ``hop``."""

    def __init__(self, lnd: FakeLnd, **options: Any) -> None:
        self.minted: set[str] = set()
        self.revoked: set[str] = set()
        self.offers: list[Offer] = []
        self.hop = ""
        self.slow = 0
        super().__init__(PriceCap(lnd, self), respond=self._page, **options)
        self.opaque = self.faults.opaque_tokens

    def answer(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Any:
        lines = list(headers)
        reply = super().answer(method, target, lines, body)
        is_about_tokens = reply.status == 401 or any("L402" in value for _, value in reply.headers)
        for name, value in lines:
            if name.lower() == "authorization" and value.startswith(("L402 ", "LSAT ")):
                self.offers.append(
                    Offer(
                        payment_hash=hashlib.sha256(bytes.fromhex(value.rpartition(":")[2])).hexdigest(),
                        path=target.partition("?")[0],
                        taken=200 <= reply.status < 400 and not target.startswith("/free"),
                        refused=reply.status in (401, 402) and is_about_tokens,
                    )
                )
        return reply

    def revoke_tokens(self) -> None:
        self.revoked |= self.minted
        super().revoke_tokens()

    def sold_at(self, path: str) -> tuple[str, int]:
        """Scope and price (msat) of a page."""
        service = next(each for each in self._services if each.sells(path))
        return (path if self.opaque else f"services={service.name_for(path)}:0"), service.price_msat

    def calm_down(self) -> None:
        """Let nothing go wrong any more; but settlements still lag."""
        with self._changed:
            self._cuts.clear()
            self._planned.clear()
        self.faults.refuse_tokens, self.slow = 0, 0
        lag = min(self.faults.settle_lag, 2)
        self.faults.__init__(opaque_tokens=self.opaque, settle_lag=lag)  # type: ignore[misc]
        self.start()

    def _page(self, request: PaywallRequest) -> Page:
        if self.slow:
            self.slow -= 1
            time.sleep(SLOW_S)
        if request.path == "/hop":
            return 302, {"Location": self.hop}, b""
        return 200, {}, self.content


class OpenBooks(Books):
    """Books over a ledger that stays open: they are read after every step."""

    def __init__(self, folder: Path, lnd: FakeLnd) -> None:
        super().__init__(folder, lnd)
        self._open = Ledger.open(self.ledger_path)

    @property
    def ledger(self) -> Ledger:
        return self._open


class StateWorld:
    """Everybody who takes part, and the model: what was forgotten, abandoned, said."""

    def __init__(self, folder: Path, *, cap_sats: int = 60) -> None:
        prepare_to_pay()
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(contextlib.contextmanager(hurry)())
        self._exit.enter_context(patch.object(negotiation, "OFFER_AGAIN_S", 0.2))
        self._exit.enter_context(patch.object(checks, "MIN_TOKEN_LIFE_S", 0))
        self.lnd = self._exit.enter_context(FakeLnd())
        self.log = self._exit.enter_context(_listening())
        self.pool = self._exit.enter_context(ThreadPoolExecutor(8))
        self.air = Air(self.lnd)
        self.walls = self.open_walls()
        self.books = OpenBooks(folder, self.lnd)
        self.cap_sats = cap_sats
        self.sessions: list[Routeweiler] = []
        self.frozen = self.down = False
        self.forgotten: set[str] = set()
        self.abandoned: set[str] = set()
        self.said: list[Said] = []
        self.calls = self.lost_lines = 0
        self.new_session(0.5)

    def open_walls(self) -> Sequence[Wall]:
        """Start the servers, and list their pages in ``pages``."""
        first = Wall(self.lnd, price_msat=10_000, service="a")
        first.add_service("/two", name="two", price_msat=7_001)
        first.add_service("/dyn", name="dyn", price_msat=3_000, dynamic=True)
        first.add_service("/brief", name="brief", price_msat=5_000, valid_for_s=2)
        second = Wall(self.lnd, price_msat=4_000, faults=Faults(opaque_tokens=True))
        walls = [self._exit.enter_context(wall) for wall in (first, second)]
        second.hop = first.url_for("/one")
        paths = ("/one", "/also-one", "/two", "/dyn/1", "/dyn/2", "/brief")
        self.pages = [(first, path) for path in paths] + [(second, path) for path in ("/x", "/y", "/hop")]
        return walls

    def close(self) -> None:
        for session in self.sessions:
            _close(session)
        self.air.close()
        self.books.ledger.close()
        self._exit.close()

    # -- who buys ---------------------------------------------------------------------------------------------------------

    def new_session(self, payment_timeout_s: float, *, by_id: bool = False) -> Routeweiler:
        envelope = ENVELOPE if by_id else BudgetEnvelope(ENVELOPE, cap_minor_units=self.cap_sats)
        session = Routeweiler(
            funding=[self.lnd.funding()],
            ledger=self.books.ledger_path,
            trace_sink=TraceSink.jsonl(self.books.trace_path),
            budget_envelope=envelope,
            payment_timeout=payment_timeout_s,
        )
        self.sessions.append(session)
        return session

    def close_session(self, number: int) -> None:
        _close(self.sessions.pop(number % len(self.sessions)))
        if not self.sessions:
            self.new_session(0.5)

    def raise_cap(self, by_sats: int) -> None:
        """A new deployment: an old session would bring its old limit along."""
        while len(self.sessions) > 1:
            self.close_session(0)
        self.cap_sats += by_sats
        self.close_session(0)

    def call(self, session: Routeweiler, page: int, *, timeout_s: float = 5.0) -> requests.Response | requests.RequestException:
        """One call; what it raises, if `requests` or we may raise that, is an answer."""
        wall, path = self.pages[page % len(self.pages)]
        try:
            answer: Any = session.get(wall.url_for(path), timeout=timeout_s)
        except requests.RequestException as error:
            answer = error
            if isinstance(error, RouteweilerError):
                self._hear(error, hops=path == "/hop")
        self.calls += 1
        return answer  # type: ignore[no-any-return]

    def call_alone(self, session: Routeweiler, page: int, **options: Any) -> requests.Response | requests.RequestException:
        """As `call`, while nobody else does anything: then what its error says can be held against what has happened."""
        orders = self._orders()
        answer = self.call(session, page, **options)
        wall, path = self.pages[page % len(self.pages)]
        if isinstance(answer, RouteweilerError) and path != "/hop":
            row = self.books.ledger.payment(answer.payment_hash or "")
            if answer.spent is False and answer.payment_hash is None:
                assert self._orders() == orders, f"an order was sent, and the caller is told of none: {answer!r}"
            if answer.spent is None and answer.payment_hash not in self.abandoned:
                assert row is not None, f"doubt about nothing: {answer!r}"
                assert row.unfinished, f"doubt about what is known: {answer!r}"
            if isinstance(answer, BudgetExceededError):
                price_msat = wall.sold_at(path)[1]
                free_micro = self.cap_sats * MICRO_PER_SAT - self._used_micro()
                assert price_msat * MICRO_PER_MSAT > free_micro, f"refused though it fits: {answer!r}"
            assert self.frozen or not isinstance(answer, EnvelopeFrozenError)
        return answer

    def crowd(self, callers: Sequence[tuple[int, int]], meanwhile: Callable[[], object]) -> list[Any]:
        """Calls (session, page) at once, and a deed as soon as an order has left, or as it is plain that none will soon."""
        barrier, orders = threading.Barrier(len(callers) + 1), self._orders()

        def one(session: int, page: int) -> Any:
            barrier.wait(30)
            return self.call(self.sessions[session % len(self.sessions)], page)

        calls = [self.pool.submit(one, *caller) for caller in callers]
        barrier.wait(30)
        with contextlib.suppress(TimeoutError):
            self.lnd.wait_for(lambda _: self._orders() > orders, 0.1)
        meanwhile()
        return [call.result(60) for call in calls]

    def dies(self, page: int, at: int, *, storm: bool, since: str | None) -> bool:
        """A process that makes one call and dies at step ``at`` of it. With ``storm`` its first order stays in the air."""
        self.air.storm = int(storm)
        steps = Steps(at, since=since)
        client = self.lnd.client()
        with stepping(steps, air=self.air):
            session = self._odd_session(client)
            try:
                self.call(session, page)
            except Died:
                self.lost_lines += 1
            finally:
                self.air.storm = 0
                session.close()
                client.close()
                telling._start_over_after_fork()
                flight._start_over_after_fork()
                first_use._start_over_after_fork()
        return steps.reached

    def interrupted(self, page: int, at: int, *, storm: bool, since: str | None) -> bool:
        """Ctrl-C at step ``at`` of a call, in a session that lives on."""
        self.air.storm = int(storm)
        steps = Steps(at, _ctrl_c, since)
        with stepping(steps, air=self.air):
            session = self._odd_session(self.lnd.client())
            self.sessions.append(session)
            try:
                self.call(session, page)
            except KeyboardInterrupt:
                self.lost_lines += 1
            finally:
                self.air.storm, steps.at = 0, None
        return steps.reached

    def _odd_session(self, client: Any) -> Routeweiler:
        return Routeweiler(
            funding=[self.lnd.funding(client=client)],
            ledger=self.books.ledger_path,
            trace_sink=TraceSink.jsonl(self.books.trace_path),
            budget_envelope=BudgetEnvelope(ENVELOPE, cap_minor_units=self.cap_sats),
            payment_timeout=0.5,
        )

    def _hear(self, error: RouteweilerError, *, hops: bool) -> None:
        text = f"{error} {error!r} {error.args!r}"
        self.said.append(Said(payment_hash=error.payment_hash, spent=error.spent, hops=hops, text=text))

    def _orders(self) -> int:
        return len(self.lnd.orders) + self.lnd.held_orders + len(self.air._orders)

    def _used_micro(self) -> int:
        return sum(int((e.reserved_minor_units + e.settled_minor_units) * MICRO_PER_SAT) for e in self.books.ledger.envelopes())

    # -- what happens to the node and the walls ---------------------------------------------------------------------------

    def set_down(self, down: bool) -> None:
        self.down = down
        if down:
            self.lnd.stop()
        else:
            self.lnd.start()

    def deliver(self) -> None:
        """Let every order arrive that is held or in the air."""
        if self.down:
            return
        self.lnd.unlock()
        expected = len(self.lnd.orders) + self.lnd.held_orders
        self.lnd.deliver_orders()
        self.lnd.wait_for(lambda node: len(node.orders) >= expected)
        self.air.deliver()

    def settle_down(self) -> None:
        """Wait until the node has ended what doesn't hang."""
        self.lnd.wait_for(lambda _: not [e for e in self._in_flight() if not (e.attempt.hang or e.attempt.orphan)])

    def _in_flight(self) -> list[Any]:
        return [entry for entry in self.lnd._book.entries.values() if entry.payment.status == "IN_FLIGHT"]

    def set_frozen(self, frozen: bool) -> None:
        if [each for each in self.books.ledger.envelopes() if each.id == ENVELOPE]:
            (self.books.ledger.freeze if frozen else self.books.ledger.thaw)(ENVELOPE)
            self.frozen = frozen

    def forget(self, payment_hash: str) -> None:
        self.books.ledger.forget(payment_hash)
        self.forgotten.add(payment_hash)

    def forget_any(self, number: int) -> None:
        live = [row for row in self.books.rows if row.state is PaymentState.SETTLED]
        if live:
            self.forget(live[number % len(live)].payment_hash)

    def abandon_orphans(self) -> None:
        """The user's word on payments that the node will have in flight for ever."""
        orphans = {entry.payment.payment_hash for entry in self._in_flight() if entry.attempt.orphan}
        for row in self.books.ledger.unfinished():
            if row.payment_hash in orphans:
                self.books.ledger.forget(row.payment_hash, abandon=True)
                self.abandoned.add(row.payment_hash)

    def wait_out(self) -> None:
        """Let the short-lived tokens expire."""
        until = [row.valid_until for row in self.books.rows if row.valid_until is not None]
        self.walls[0].wait_for(lambda: not until or time.time() > max(until))

    def recover(self, session: Routeweiler) -> None:
        sends = self.lnd.calls["SendPaymentV2"]
        rows = session.recover()
        assert self.lnd.calls["SendPaymentV2"] == sends, "a recovery sent an order"
        if self.down or self.lnd._service.state != "SERVER_ACTIVE":
            return
        statuses = {payment.payment_hash: payment.status for payment in self.lnd.payments}
        for row in rows:
            status = statuses.get(row.payment_hash)
            if row.unfinished:
                assert status != "SUCCEEDED", "paid, says the node, and the recovery didn't book it"
                assert status != "FAILED" or row.sends_ever > 1, "failed for good, and the recovery left it open"

    # -- what must be true ------------------------------------------------------------------------------------------------

    def calm(self, pages: Iterable[int], *, release_fails: bool) -> None:
        """Everything works again: then each page comes, but for tokens that are lost by no fault of ours, and all is told."""
        self.set_down(False)
        self.lnd.clear_faults()
        self.lnd.fee_msat, self.lnd.clock_offset_s = 0, 0
        self.deliver()
        self.settle_down()
        self.lnd.release(fail="NO_ROUTE" if release_fails else None)
        self.abandon_orphans()
        self.set_frozen(False)
        for wall in self.walls:
            wall.calm_down()
        wanted = list(pages)
        self.raise_cap(40 * (len(wanted) + 1))
        session = self.new_session(PATIENCE_S)
        self.recover(session)
        for page in wanted:
            self._must_come(session, page)
        self.recover(session)

    def _must_come(self, session: Routeweiler, page: int) -> None:
        path = self.pages[page][1]
        for _ in range(MAX_CALM_CALLS):
            answer = self.call_alone(session, page)
            if isinstance(answer, requests.Response):
                assert (answer.status_code, answer.content) == (200, self.walls[0].content)
                assert any(wall.requests and wall.requests[-1].paid for wall in self.walls), "the page was had for nothing"
                return
            if isinstance(answer, ChallengeExpiredError) and path == "/brief":
                continue  # on a busy machine its token ends before it can be bought
            row = self.books.ledger.payment(getattr(answer, "payment_hash", None) or "")
            assert isinstance(answer, (TokenRefusedError, PreimageMismatchError)), f"in a calm world: {answer!r}"
            assert row is not None
            if isinstance(answer, PreimageMismatchError):
                assert row.preimage is None
            else:
                revoked = any(row.payment_hash in wall.revoked for wall in self.walls)
                assert revoked or _is_over(row) or self._brought_nothing(row), f"refused, and the wall never said so: {answer!r}"
            if row.state is PaymentState.SETTLED:
                self.forget(row.payment_hash)
        raise AssertionError(f"the page never came: {answer!r}")

    def _brought_nothing(self, row: PaymentRow) -> bool:
        """Return whether the origin of ``row`` has left `MAX_UNDELIVERED` payments without a page, as far as callers could see."""
        rows = [other for other in self.books.ledger.payments() if other.origin == row.origin]
        undelivered = [other for other in rows if other.state is PaymentState.SETTLED and other.failure_code == UNDELIVERED]
        return row in undelivered and len(undelivered) >= MAX_UNDELIVERED and not any(other.accepted for other in rows)

    def agree(self) -> None:
        """Every account agrees with every other, as far as can be known at this moment."""
        self.settle_down()
        self.books.check(finished=False)
        rows = {row.payment_hash: row for row in self.books.rows}
        payments = {payment.payment_hash: payment for payment in self.lnd.payments}
        for payment_hash, payment in payments.items():
            self._covered(rows.get(payment_hash), payment)
        for row in rows.values():
            self._sound(row, payments.get(row.payment_hash))
        self._needs_cost_once(list(rows.values()), payments)
        self._words_were_true(rows, payments)
        assert self._used_micro() <= self.cap_sats * MICRO_PER_SAT, "more is reserved and spent than the cap allows"
        if not any(row.unfinished for row in rows.values()):
            settled_msat = sum(row.amount_msat + row.fee_msat for row in rows.values() if row.settled_at is not None)
            assert settled_msat == self.lnd.spent_msat, "ledger and node differ on what was spent"
        for wall in self.walls:
            foreign = [offer for offer in wall.offers if rows[offer.payment_hash].origin != wall.base_url]
            assert not foreign, "a token went to another origin"
        own = [line for line in self.books.lines if line["method"] != "RECOVER" and line.get("parentRequestId") is None]
        assert self.calls <= len(own) <= self.calls + self.lost_lines, f"{len(own)} trace lines for {self.calls} calls"

    def end(self) -> None:
        """At the very end: all is calm, every page comes, and not a row or a line is missing."""
        self.calm(range(len(self.pages)), release_fails=False)
        self.agree()
        self.books.check()
        secrets = self._secrets(self.books.rows)
        assert not [line for line in self.log for secret in secrets if secret in line], "a secret is in the log"

    def _secrets(self, rows: Iterable[PaymentRow]) -> list[str]:
        macaroon = Path(self.lnd.macaroon_path).read_bytes().hex()
        return [macaroon, *(row.token for row in rows), *(row.preimage for row in rows if row.preimage is not None)]

    def _covered(self, row: PaymentRow | None, payment: Any) -> None:
        """What the node has paid or may still pay was written down before, and is booked or reserved."""
        assert row is not None, "lnd has heard of an invoice that the ledger doesn't hold"
        if payment.status == "FAILED" or row.payment_hash in self.abandoned:
            return
        assert row.unfinished or row.settled_at is not None, f"{row.state.value}, but {payment.status} at the node"
        if row.unfinished:
            assert row.reserved_micro >= (payment.amount_msat + payment.fee_msat) * MICRO_PER_MSAT
        else:
            assert payment.status == "SUCCEEDED"

    def _sound(self, row: PaymentRow, payment: Any) -> None:
        if row.settled_at is not None:
            assert payment is not None
            assert payment.status == "SUCCEEDED", "booked, and never paid"
            assert row.fee_msat <= row.max_fee_msat
            assert row.preimage is None or hashlib.sha256(bytes.fromhex(row.preimage)).hexdigest() == row.payment_hash
        assert row.unfinished or row.reserved_micro == 0, "an ended row keeps its reservation"
        orders = sum(order.bolt11 == row.bolt11 for order in self.lnd.orders)
        assert row.sends_ever >= orders, "an order left uncounted"

    def _needs_cost_once(self, rows: list[PaymentRow], payments: dict[str, Any]) -> None:
        """Whatever was bought after a paid token needs a reason why that was of no use any more."""
        for paid in rows:
            payment = payments.get(paid.payment_hash)
            if payment is None or payment.status != "SUCCEEDED" or self._is_useless(paid):
                continue
            later = [r for r in rows if (r.origin, r.scope) == (paid.origin, paid.scope) and r.created_at > paid.created_at]
            assert not later, f"{paid.origin} {paid.scope} was bought again, though the token of {paid.payment_hash} is good"

    def _is_useless(self, row: PaymentRow) -> bool:
        if row.payment_hash in self.forgotten | self.abandoned or _is_over(row):
            return True
        wall = next(wall for wall in self.walls if wall.base_url == row.origin)
        offers = [o for o in wall.offers if o.payment_hash == row.payment_hash and wall.sold_at(o.path)[0] == row.scope]
        taken = [number for number, offer in enumerate(offers) if offer.taken]
        return bool(taken) and any(offer.refused for offer in offers[taken[0] :])

    def _words_were_true(self, rows: dict[str, PaymentRow], payments: dict[str, Any]) -> None:
        secrets = self._secrets(rows.values())
        for said in self.said:
            assert not [secret for secret in secrets if secret in said.text], "a secret is in an error"
            payment = payments.get(said.payment_hash or "")
            status = None if payment is None else payment.status
            if said.spent is True and not said.hops:
                assert status == "SUCCEEDED", f"told as spent, but {status}: {said.text}"
            if said.spent is False:
                assert status in (None, "FAILED"), f"told as not spent, but {status}: {said.text}"


def _is_over(row: PaymentRow) -> bool:
    return row.valid_until is not None and time.time() >= row.valid_until


def _ctrl_c() -> None:
    raise KeyboardInterrupt


def _close(session: Routeweiler) -> None:
    session.close()
    for source in session._payer.funding:
        source.client.close()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """All that the library logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("routeweiler_sync")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
