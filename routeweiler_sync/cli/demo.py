"""``routeweiler-sync demo``: a purchase from beginning to end against a fake lnd and a paywall, on this machine alone.

Nothing that is shown is made up. The values are read from the responses, the ledger, the trace, and the records of the fake lnd and
the paywall, and every statement is checked against these. If one isn't true, the demo fails. How it is printed is left to `story`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import requests

from .._core.early_stop import EXIT_CODE
from .._version import VERSION
from .outcome import Exit, printable
from .stop_signal import StopSignal, stop_signal

if TYPE_CHECKING:
    from ..funding.replies import WalletAnswer
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow
    from ..payments.types import Payment, Quote
    from ..protocol.challenge import Challenge
    from ..testing import FakeLnd, Paywall
    from ..transport.session import Routeweiler
    from .story import Story

NETWORK = "bitcoin-regtest"
PRICE_MSAT = 10_000
FEE_MSAT = 1_000
DEAR_MSAT = 500_000
LIMIT_SATS = 100
PAGE = b"Berlin, 21 degrees, light rain: take an umbrella.\n"
_SHOWN_CHARS = 16
#: What the demo does first, as a program: it buys a page. It runs as it stands.
SIX_LINES = """\
from routeweiler_sync import Routeweiler
from routeweiler_sync.testing import FakeLnd, Paywall
with FakeLnd() as lnd, Paywall(lnd) as paywall:
    with Routeweiler(funding=[lnd.funding()], ledger="first.db") as session:
        response = session.get(paywall.url)
        print(response.text, response.payment)
"""
#: What to type after the demo, and what for. Each begins with a program of this installation.
NEXT = (
    ("python", "and paste the six lines: they need no node"),
    ("routeweiler-sync doctor", "is my own node ready to pay?"),
    ("routeweiler-sync get --dry-run URL", "what would a page cost?"),
    ("routeweiler-sync get --max-sats 20 URL", "buy it, for 20 sat at most"),
)


class NotAsToldError(Exception):
    """Something is missing without which the demo can't continue."""


@dataclass(kw_only=True)
class Order:
    """A payment order, observed on its way to lnd.

    ``row`` and ``lnd_payments`` are the ledger row and the number of lnd's payments just before the order was sent. ``sent_s`` and
    ``answered_s`` are times of `time.monotonic`.
    """

    sent_s: float
    row: PaymentRow | None
    lnd_payments: int
    answered_s: float = 0.0


@dataclass(kw_only=True)
class World:
    """The fake lnd, the paywall and the ledger of the demo, and what was observed while it ran.

    ``started_s`` and ``asked_s`` are times of `time.monotonic`: when the first request was made, and when the session last asked
    for confirmation. ``orders_when_asked`` is how many orders lnd had been sent at that moment.
    """

    lnd: FakeLnd
    paywall: Paywall
    folder: Path
    ledger: Ledger
    started_s: float = 0.0
    asked_s: float = 0.0
    orders_when_asked: int = -1
    orders: list[Order] = field(default_factory=list)

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def trace_path(self) -> Path:
        return self.folder / "trace.db"

    @property
    def sent(self) -> int:
        """The number of payment orders that lnd has been sent, by its own count."""
        return self.lnd.calls["SendPaymentV2"]

    def confirm(self, quote: Quote) -> bool:
        """Agree to every payment, and note when the session asked: it does so after its checks and before it pays."""
        self.asked_s, self.orders_when_asked = time.monotonic(), self.sent
        return True

    def trace(self) -> list[dict[str, Any]]:
        """Return the trace's events, oldest first."""
        with closing(sqlite3.connect(self.trace_path)) as connection:
            rows = connection.execute("SELECT payload FROM trace_events ORDER BY timestamp_start, rowid")
            return [json.loads(payload) for (payload,) in rows]


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Show a purchase from beginning to end. Needs no node and no bitcoin.

    A fake lnd and a paywall run on this machine while the demo lasts; no network is used. The exit code is 0 only if every
    statement that the demo makes was found true. Ctrl-C ends it at any time, and nothing stays behind.

    \b
    Example:
      routeweiler-sync demo
    """
    with stop_signal() as stop:
        try:
            code = _demo(stop)
            stop.check()
        except KeyboardInterrupt:
            click.echo(err=True)
            code = EXIT_CODE
    context.exit(code)


def _demo(stop: StopSignal) -> int:
    """Show the demo, and return its exit code. Raises: KeyboardInterrupt between two lines, if Ctrl-C was pressed."""
    from rich.console import Console

    from .palette import THEME
    from .story import Story

    story = Story(Console(theme=THEME, highlight=False, markup=False, emoji=False), between=stop.check)
    try:
        _play(story)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("routeweiler_sync"):
            raise
        click.echo(f'{error.name} is missing: the demo needs the extra. Run: pip install "routeweiler-sync[testing]"', err=True)
        return Exit.USAGE
    except (requests.RequestException, NotAsToldError) as error:
        story.untrue.append(printable(error))
    if story.untrue:
        story.paragraph(f"The demo didn't go as described: {'; '.join(story.untrue)}", "bold red")
        return Exit.ERROR
    story.paragraph(
        f"All {story.checked} statements marked ok were checked against what the paywall, lnd, the ledger and the trace recorded.",
        "bold green",
    )
    story.scene("The same in six lines of Python")
    story.code(SIX_LINES)
    story.scene("What to type next")
    folder = _folder_to_type(sys.argv[0])
    story.choices([(folder + command, purpose) for command, purpose in NEXT])
    return Exit.OK


def _folder_to_type(script: str) -> str:
    """Return what must stand before the name of a program beside ``script``, this command as it was typed. On the PATH: nothing."""
    name = os.path.basename(script)
    if os.path.splitext(name)[0] != "routeweiler-sync":
        return ""  # python -m routeweiler_sync, or a test
    found = shutil.which(name)
    with contextlib.suppress(OSError):
        if found is not None and os.path.samefile(found, script):
            return ""
    return script[: -len(name)]


def _play(story: Story) -> None:
    from .. import BudgetEnvelope, Ledger, LndClient, Routeweiler, TraceSink
    from ..funding import Funding
    from ..testing import FakeLnd, Paywall

    class WatchedNode(LndClient):
        """The client of the fake lnd. Notes what ledger and lnd hold at the moment when an order is sent."""

        def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
            order = Order(sent_s=time.monotonic(), row=world.ledger.payment(payment_hash.hex()), lnd_payments=len(lnd.payments))
            world.orders.append(order)
            answer = super().send(bolt11, payment_hash=payment_hash, max_fee_msat=max_fee_msat, timeout_s=timeout_s)
            order.answered_s = time.monotonic()
            return answer

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routeweiler-demo-")))
        lnd = stack.enter_context(FakeLnd())
        lnd.fee_msat = FEE_MSAT
        paywall = stack.enter_context(Paywall(lnd, service="weather", price_msat=PRICE_MSAT, content=PAGE))
        paywall.add_service("/archive", name="archive", price_msat=DEAR_MSAT)
        # Opens the ledger file a second time, apart from the session's connection: so it sees what is on disk.
        ledger = stack.enter_context(closing(Ledger.open(folder / "ledger.db")))
        world = World(lnd=lnd, paywall=paywall, folder=folder, ledger=ledger)
        node = WatchedNode(lnd.host, lnd.port, lnd.macaroon_path, tls_cert_path=lnd.tls_cert_path)

        def session(**kwargs: Any) -> Routeweiler:
            made = Routeweiler(
                budget_envelope=BudgetEnvelope("demo", per_call_minor_units=LIMIT_SATS, per_day_minor_units=10 * LIMIT_SATS),
                ledger=world.ledger_path,
                trace_sink=TraceSink.sqlite(world.trace_path),
                **kwargs,
            )
            made.trust_env = False
            return stack.enter_context(made)

        paying = session(funding=[Funding.lightning_lnd(client=node, network=NETWORK)], confirm=world.confirm)
        story.title(
            f"routeweiler-sync {VERSION} demo",
            "A fake lnd and a paywall run on this machine. Both are real servers. No network and no bitcoin is used.",
        )
        _buys(story, world, paying)
        _buys_nothing_twice(story, world, paying, session())
        _refuses(story, world, paying)
        _adds_up(story, world)


def _buys(story: Story, world: World, session: Routeweiler) -> None:
    from .. import payment_of
    from ..protocol.schemes import parse_challenge

    url = world.paywall.url_for("/weather/berlin")
    story.scene(f"A page that costs {_sats(PRICE_MSAT)}", f"GET {url}")
    world.started_s = time.monotonic()
    response = session.get(url)
    ended_s = time.monotonic() - world.started_s

    refused = response.history[0] if response.history else _missing("the server didn't ask for payment")
    challenge = parse_challenge(refused.headers["WWW-Authenticate"]) or _missing("the 402 holds no L402 challenge")
    payment = payment_of(response) or _missing("the response has no record of a payment")
    order = next(iter(world.orders), None) or _missing("no order was sent to lnd")

    _show_challenge(story, refused, challenge)
    _show_checks(story, world, challenge, order)
    _show_payment(story, world, payment, order)

    story.step(ended_s, f"{response.status_code} {response.reason}")
    story.fact("sent", f"Authorization: {challenge.scheme} <token>:<preimage>")
    story.fact("page", printable(response.text.strip()))
    statuses = [request.status for request in world.paywall.requests]
    story.check(response.content == PAGE and statuses == [402, 200], "the paywall had two requests, and answered 402, then 200")
    seen = world.paywall.requests[-1]
    story.check(seen.paid and seen.payment_hash == _hash(challenge), "the paywall accepted the token as paid for by this payment")


def _show_challenge(story: Story, refused: requests.Response, challenge: Challenge) -> None:
    from ..protocol.http_auth import schemes_offered

    invoice = challenge.invoice
    story.step(refused.elapsed.total_seconds(), f"{refused.status_code} {refused.reason}", "bold yellow")
    story.fact("challenges", f"{', '.join(schemes_offered(refused.headers['WWW-Authenticate']))}; {challenge.scheme} is answered")
    story.fact("token", f"a macaroon for {(challenge.names_scope or '').removeprefix('services=')}, not shown")
    story.fact("invoice", f"{invoice.bolt11[:_SHOWN_CHARS]}… ({printable(invoice.description)})")
    story.fact("amount", f"{_sats(invoice.amount_msat)}, as signed by the payee")
    story.fact("payment hash", f"{_hash(challenge)[:_SHOWN_CHARS]}…")
    story.fact("network", invoice.network)
    story.fact("expires", f"in {_minutes(invoice.expires_at)} min")


def _show_checks(story: Story, world: World, challenge: Challenge, order: Order) -> None:
    invoice = challenge.invoice
    story.step(world.asked_s - world.started_s, "Checked before anything is paid")
    same = challenge.names_payment_hash == invoice.payment_hash
    story.check(same, "token and invoice name the same payment hash")
    story.check(time.time() < invoice.expires_at, "the invoice hasn't expired")
    story.check(invoice.network == NETWORK, "the invoice is for the wallet's network")
    most_msat = 0 if order.row is None else order.row.amount_msat + order.row.max_fee_msat
    fits = 0 < most_msat <= LIMIT_SATS * 1000
    story.check(fits, f"price and routing: at most {_sats(most_msat)}, within {LIMIT_SATS} sat a call")
    story.check(world.orders_when_asked == 0, "no order has been sent to lnd yet")


def _show_payment(story: Story, world: World, payment: Payment, order: Order) -> None:
    story.step(order.sent_s - world.started_s, "Written to the ledger, before lnd gets the order")
    before = order.row or _missing("the ledger had no row when the order was sent")
    story.fact("ledger", _row_text(before))
    is_open = before.unfinished and before.payment_hash == payment.payment_hash
    story.check(is_open and order.lnd_payments == 0, "the row is on disk, and lnd has no payment yet")

    story.step(order.answered_s - world.started_s, "Paid")
    story.fact("lnd", f"{_sats(payment.amount_msat)}, and {_sats(payment.fee_msat)} for routing")
    after = world.ledger.payment(payment.payment_hash) or _missing("the ledger has no row for the payment")
    story.fact("ledger", _row_text(after))
    fits = after.preimage is not None and hashlib.sha256(bytes.fromhex(after.preimage)).hexdigest() == payment.payment_hash
    story.check(fits, "the preimage proves it was paid: its SHA-256 is the payment hash")
    story.check((world.sent, len(world.lnd.payments)) == (1, 1), "one order, one payment")
    story.check(payment.fee_msat <= before.max_fee_msat, f"the fee is within lnd's limit of {_sats(before.max_fee_msat)}")


def _buys_nothing_twice(story: Story, world: World, session: Routeweiler, walletless: Routeweiler) -> None:
    from .. import payment_of

    url = world.paywall.url_for("/weather/berlin")
    story.scene("The same page again", f"GET {url}")
    for name, asking_session in (("the same session", session), ("a new session on the same ledger, without a wallet", walletless)):
        before_s, before = time.monotonic(), len(world.paywall.requests)
        response = asking_session.get(url)
        payment = payment_of(response)
        story.step(time.monotonic() - before_s, f"{response.status_code} {response.reason}")
        story.fact("asked by", name)
        statuses = [request.status for request in world.paywall.requests[before:]]
        reused = payment is not None and payment.reused and response.content == PAGE and statuses == [200]
        story.check(reused, "the token was sent along, and the page came at once")
    story.check((world.sent, len(world.lnd.payments)) == (1, 1), "still one order, one payment")


def _refuses(story: Story, world: World, session: Routeweiler) -> None:
    from ..errors import BudgetExceededError

    url = world.paywall.url_for("/archive/1973")
    story.scene(f"A page for {_sats(DEAR_MSAT)}, above the limit of {LIMIT_SATS} sat a call", f"GET {url}")
    before_s = time.monotonic()
    try:
        session.get(url)
    except BudgetExceededError as error:
        story.step(time.monotonic() - before_s, type(error).__name__, "bold yellow")
        story.said(printable(error))
        status = None if error.response is None else error.response.status_code
        story.check(error.spent is False and status == 402, "error.spent is False, error.response is the 402")
    else:
        _missing("the refusal: a page above the limit was paid for")
    story.check(world.sent == 1 and len(list(world.ledger.payments())) == 1, "lnd got no order, and the ledger no new row")


def _adds_up(story: Story, world: World) -> None:
    rows = list(world.ledger.payments())
    envelope = world.ledger.envelope("demo")
    events = world.trace()
    story.scene("What the records say", "All amounts in msat.")
    story.table(
        "Ledger: one row for each payment",
        ("payment", "token for", "state", ">price", ">fee", ">booked"),
        [
            (
                row.payment_hash[:_SHOWN_CHARS] + "…",
                row.scope,
                row.state.value,
                row.amount_msat,
                row.fee_msat,
                row.settled_micro // 1000,
            )
            for row in rows
        ],
    )
    story.table(
        "Trace: one line for each call",
        ("call", "HTTP", "outcome", ">price", ">fee"),
        [_trace_row(event) for event in events],
    )
    traced = {p["paymentHash"]: p["amountMsat"] + p["feeMsat"] for e in events if (p := e["payment"]) and not p["reused"]}
    sums = {
        "ledger: all rows": sum(row.amount_msat + row.fee_msat for row in rows if row.settled_at is not None),
        "budget: amount counted": int(envelope.settled_minor_units * 1000),
        "trace: all payments": sum(traced.values()),
        "lnd: paid out of its channels": world.lnd.spent_msat,
    }
    story.table("Adding up", ("spent, routing included", ">msat"), list(sums.items()))
    story.gap()
    story.check(set(sums.values()) == {PRICE_MSAT + FEE_MSAT}, "ledger, budget, trace and node agree to the msat")
    story.check(envelope.reserved_minor_units == 0 and len(events) == 4, "nothing is reserved now; four calls, four trace lines")


def _trace_row(event: dict[str, Any]) -> tuple[object, ...]:
    payment, error = event["payment"], event["outcome"]["error"]
    outcome = error["code"] if error else "free" if payment is None else "token reused" if payment["reused"] else "paid"
    counts = payment is not None and not payment["reused"]
    return (
        f"{event['method']} {event['url'].partition('://')[2].partition('/')[2]}",
        event["outcome"]["httpStatus"] or "-",
        outcome,
        payment["amountMsat"] if counts else "-",
        payment["feeMsat"] if counts else "-",
    )


def _row_text(row: PaymentRow) -> str:
    return f"row {row.state.value}: {_sats(row.reserved_micro // 1000)} reserved, {_sats(row.settled_micro // 1000)} booked"


def _missing(what: str) -> NoReturn:
    raise NotAsToldError(what)


def _hash(challenge: Challenge) -> str:
    return challenge.payment_hash.hex()


def _minutes(unix_s: int) -> int:
    return round((unix_s - time.time()) / 60)


def _sats(amount_msat: int) -> str:
    from .._core.money import sats

    return sats(amount_msat)
