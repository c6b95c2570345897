"""``routeweiler-sync budget audit``: takes the three accounts, and shows what `routeweiler_sync.audit` says of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .._core import env_vars
from ..config import env_settings
from ..errors import FundingError, LedgerError
from .outcome import Exit, exit_for, printable

if TYPE_CHECKING:
    from rich.console import Console

    from ..audit import Difference, NodeAccount, Open, Report
    from ..funding.lnd.client import LndClient
    from ..ledger.ledger import Ledger
    from ..trace.reader import TraceAccount

#: Between the two looks that a difference must be found in: longer than a payment takes to be booked once lnd has paid it.
RECHECK_AFTER_S = 1.0
#: Lines of payments that end nowhere yet, and of differences, that are shown for people. The JSON has them all.
SHOWN_MAX = 200


@dataclass(kw_only=True)
class Accounts:
    """Where the accounts are. ``unread``: why one of them, that should be compared, can't be."""

    ledger: Ledger
    traces: Sequence[str]
    client: LndClient | None
    node_pubkey: str | None = None
    unread: dict[str, str] = field(default_factory=dict)

    def audit(self) -> Report:
        """Take them, and compare. LedgerError. What else can't be read is in ``unread``."""
        from ..audit import compare

        node = self._node()
        books = self.ledger.snapshot()
        return compare(books, trace=self._trace(), node=node, now_s=time.time())

    def _node(self) -> NodeAccount | None:
        from ..audit import NodeAccount

        if self.client is None:
            return None
        try:
            account = NodeAccount.of(self.client.get_node_pubkey().lower(), self.client.list_payments())
        except FundingError as error:
            self.unread["node"] = str(error)
            return None
        self.unread.pop("node", None)
        self.node_pubkey = account.pubkey
        return account

    def _trace(self) -> TraceAccount | None:
        from ..trace.reader import TraceUnreadableError, read_traces

        if not self.traces:
            return None
        try:
            return read_traces(self.traces)
        except TraceUnreadableError as error:
            self.unread["trace"] = str(error)
            return None


@click.command()
@click.option("--ledger", metavar="URL", help="A path or URL. Default: ROUTEWEILER_LEDGER, else the user's own ledger.")
@click.option(
    "--trace", "traces", metavar="PATH", multiple=True, help="A trace file; again for rotated ones. Default: ROUTEWEILER_TRACE."
)
@click.option("--no-node", is_flag=True, help="Leave the node out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def audit(context: click.Context, *, ledger: str | None, traces: Sequence[str], no_node: bool, as_json: bool) -> None:
    """Hold the ledger against itself, against the trace, and against the node's own list of payments.

    Pays and changes nothing. The node is the one that the environment names; its macaroon must permit GetInfo and ListPayments
    (uri:/lnrpc.Lightning/GetInfo uri:/lnrpc.Lightning/ListPayments), which paying doesn't need.

    What is being paid meanwhile is no difference: it is looked at twice. Payments of the node that the ledger doesn't know
    are counted and no difference either: a node may pay for others.

    \b
    Exit codes:
      0  all accounts that there are agree
      1  they differ
      2  usage: no such ledger
      3  an account can't be read; as far as was compared, they agree
    """
    from ..audit import confirmed
    from ..ledger.ledger import Ledger

    try:
        with contextlib.closing(Ledger.open(env_settings.ledger_url() if ledger is None else ledger)) as book:
            if not book.exists():
                raise click.UsageError(f"there is no ledger at {printable(book.url)}")
            accounts = Accounts(ledger=book, traces=_trace_files(traces), client=None)
            if not no_node:
                accounts.client = _client(accounts)
            with contextlib.closing(accounts.client) if accounts.client is not None else contextlib.nullcontext():
                report = confirmed(accounts.audit, lambda: time.sleep(RECHECK_AFTER_S))
    except LedgerError as error:
        click.echo(printable(error), err=True)
        context.exit(exit_for(error, paid=False))
    if as_json:
        click.echo(json.dumps(_as_json(accounts, report)))
    else:
        _show(accounts, report)
    context.exit(Exit.ERROR if not report.agrees else Exit.REFUSED if accounts.unread else Exit.OK)


def _trace_files(given: Sequence[str]) -> Sequence[str]:
    named = os.environ.get(env_vars.TRACE)
    return given or ([named] if named else [])


def _client(accounts: Accounts) -> LndClient | None:
    """The environment's node; None where it names none."""
    from ..funding.lnd.client import LndClient
    from ..funding.lnd.lndconnect import names_node

    if not names_node(os.environ):
        return None
    try:
        return LndClient.from_env()
    except (FundingError, ValueError) as error:
        accounts.unread["node"] = str(error)
        return None


# What is said


def _compared(accounts: Accounts, report: Report) -> dict[str, str]:
    """What was taken of each account, or why it wasn't."""
    from .._core.money import sats

    said = {
        "ledger": f"{report.payments} payments, {report.paid} paid, {sats(report.spent_msat)} with fees ({accounts.ledger.url})"
    }
    if "trace" in accounts.unread:
        said["trace"] = f"not compared: {accounts.unread['trace']}"
    elif accounts.traces:
        said["trace"] = f"{report.trace_compared} payments compared ({', '.join(accounts.traces)})"
    else:
        said["trace"] = "not compared: none is named (--trace, ROUTEWEILER_TRACE)"
    if "node" in accounts.unread:
        said["node"] = f"not compared: {accounts.unread['node']}"
    elif accounts.node_pubkey is None:
        said["node"] = "not compared: the environment names none, or it was left out"
    else:
        said["node"] = (
            f"{report.node_compared} payments compared; {report.foreign} more ({sats(report.foreign_msat)}) aren't of this "
            f"ledger, or nobody knows whose they are ({accounts.node_pubkey})"
        )
    return said


def _verdict(accounts: Accounts, report: Report) -> str:
    if report.differences:
        return f"The accounts differ in {len(report.differences)} places."
    if accounts.unread:
        return f"As far as could be compared, the accounts agree; not compared: {', '.join(accounts.unread)}."
    return "The accounts agree."


def _show(accounts: Accounts, report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for name, said in _compared(accounts, report).items():
        console.print(f"{name:<8}{printable(said)}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"{'note':<8}{printable(note)}", markup=False, soft_wrap=True)
    if report.open:
        _table(console, "Not ended yet", [_open_lines(each) for each in report.open])
    if report.differences:
        _table(console, "Differences", [_difference_lines(each) for each in report.differences])
    console.print(_verdict(accounts, report), style="bold green" if report.agrees else "bold red", soft_wrap=True)


def _open_lines(each: Open) -> list[tuple[str, str]]:
    from .._core.money import sats

    lines = [("payment", each.payment_hash), ("ledger", f"{each.state.value}, {sats(each.amount_msat)}")]
    if each.node is not None:
        lines.append(("node", each.node))
    return [*lines, ("to do", each.advice)]


def _difference_lines(each: Difference) -> list[tuple[str, str]]:
    lines = [("", each.what)]
    if each.payment_hash is not None:
        lines.append(("payment", each.payment_hash))
    if each.envelope_id is not None:
        lines.append(("envelope", each.envelope_id))
    return [*lines, *each.says, ("to do", each.advice)]


def _table(console: Console, title: str, entries: Sequence[Sequence[tuple[str, str]]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for entry in entries[:SHOWN_MAX]:
        for name, said in entry:
            table.add_row(name, Text(printable(said), "" if name else "bold"))
        table.add_section()
    console.print()
    console.print(Text(title, "bold"))
    console.print(table)
    if len(entries) > SHOWN_MAX:
        console.print(f"… and {len(entries) - SHOWN_MAX} more: see --json.\n", markup=False)


def _as_json(accounts: Accounts, report: Report) -> dict[str, Any]:
    return {
        "agrees": report.agrees,
        "complete": not accounts.unread,
        "verdict": _verdict(accounts, report),
        "compared": {name: printable(said) for name, said in _compared(accounts, report).items()},
        "payments": report.payments,
        "paid": report.paid,
        "spentMsat": report.spent_msat,
        "traceCompared": report.trace_compared,
        "nodeCompared": report.node_compared,
        "nodeForeign": {"payments": report.foreign, "spentMsat": report.foreign_msat},
        "notes": list(report.notes),
        "open": [
            {
                "paymentHash": each.payment_hash,
                "state": each.state.value,
                "amountMsat": each.amount_msat,
                "maxFeeMsat": each.max_fee_msat,
                "node": each.node,
                "toDo": each.advice,
            }
            for each in report.open
        ],
        "differences": [
            {
                "kind": each.kind.value,
                "what": each.what,
                "paymentHash": each.payment_hash,
                "envelopeId": each.envelope_id,
                "says": dict(each.says),
                "toDo": each.advice,
            }
            for each in report.differences
        ],
    }
