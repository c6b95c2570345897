"""``routeweiler-sync budget audit``: read the accounts of ledger, trace and node, and show what `routeweiler_sync.audit` finds.

How accounts are compared is left to `routeweiler_sync.audit`.

Money: none can move here.
"""

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
from .ledgers import archive_option, opened_archives
from .outcome import Exit, exit_for, printable, text_of

if TYPE_CHECKING:
    from rich.console import Console

    from ..audit import Difference, NodeAccount, Open, Report
    from ..ledger.ledger import Ledger
    from ..trace.reader import TraceAccount

#: Seconds between the two audits that must both find a difference. Longer than it takes to book a payment once lnd has paid it.
RECHECK_AFTER_S = 1.0
#: How many unfinished payments, and how many differences, the tables for people show. The JSON has all of them.
SHOWN_MAX = 200


@dataclass(kw_only=True)
class Accounts:
    """The accounts to compare.

    ``traces`` are paths, ``client`` is a wallet client, None if the wallet isn't compared. ``node_pubkey`` is set once the wallet
    has been read. ``unread`` says why an account that should be compared can't be read; its keys are ``trace`` and ``node``.
    """

    ledger: Ledger
    traces: Sequence[str]
    client: Any
    archives: Sequence[Ledger] = ()
    node_pubkey: str | None = None
    unread: dict[str, str] = field(default_factory=dict)

    def audit(self) -> Report:
        """Read the accounts and compare them. If the trace or the node can't be read, ``unread`` says why.

        The order matters: node, ledger, trace. A row is written before its order is sent, so whatever the node has paid by then is
        in the ledger that is read next.

        Raises: LedgerError if the ledger can't be read.
        """
        from ..audit import compare
        from ..payments.report_claims import is_dead

        node = self._node()
        snapshot = self.ledger.snapshot(self.archives)
        return compare(snapshot, trace=self._trace(), node=node, now_s=time.time(), is_dead=is_dead)

    def _node(self) -> NodeAccount | None:
        from ..audit import NodeAccount

        if self.client is None:
            return None
        listed = getattr(self.client, "list_payments", None)
        if not callable(listed):
            kind = type(self.client).__name__
            self.unread["node"] = f"{kind} has no list of its payments. Without it, use --no-node."
            return None
        try:
            account = NodeAccount.of(self.client.get_info().identity_pubkey.lower(), listed())
        except FundingError as error:
            self.unread["node"] = text_of(error)
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
@click.option("--ledger", metavar="URL", help="Path or URL of the ledger. Default: ROUTEWEILER_LEDGER, else the user's own ledger.")
@click.option(
    "--trace", "traces", metavar="PATH", multiple=True, help="A trace file; repeat for rotated files. Default: ROUTEWEILER_TRACE."
)
@archive_option
@click.option("--no-node", is_flag=True, help="Don't compare with the wallet's list of payments.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def audit(
    context: click.Context, *, ledger: str | None, traces: Sequence[str], archives: Sequence[str], no_node: bool, as_json: bool
) -> None:
    """Compare the ledger with itself, the trace and the wallet's own list of payments.

    Pays and changes nothing. The environment names the wallet, whose own list of payments is compared. Rows are compared with the
    list of their own wallet alone: if several wallets have paid, run the audit with each of them (ROUTEWEILER_WALLET).

    lnd's macaroon must permit GetInfo and ListPayments (uri:/lnrpc.Lightning/GetInfo uri:/lnrpc.Lightning/ListPayments), a
    connection of Nostr Wallet Connect list_transactions. Paying needs neither ListPayments nor list_transactions.

    Payments that are made while the audit runs are no difference: only what a second audit finds again is reported. Payments of the
    wallet that aren't in the ledger are counted, and are no difference either: other programs may pay from it. Neither are
    payments of calls that had no trace. Payments that were moved to an archive (payments archive) are compared if the archive is
    given; without it, only their sums are.

    \b
    Exit codes:
      0  the accounts agree
      1  they differ
      2  wrong usage, or no such ledger
      3  an account can't be read; the others agree

    \b
    Examples:
      routeweiler-sync budget audit
      routeweiler-sync budget audit --no-node --trace new.jsonl --trace old.jsonl
      routeweiler-sync budget audit --archive 2025.db
    """
    from ..audit import confirmed
    from ..ledger.ledger import Ledger

    try:
        with contextlib.closing(Ledger.open(env_settings.ledger_url() if ledger is None else ledger)) as opened:
            if not opened.exists():
                raise click.UsageError(f"there is no ledger at {printable(opened.url)}")
            accounts = Accounts(ledger=opened, traces=_trace_files(traces), client=None, archives=opened_archives(archives))
            if not no_node:
                accounts.client = _client(accounts)
            with contextlib.closing(accounts.client) if accounts.client is not None else contextlib.nullcontext():
                report = confirmed(accounts.audit, lambda: time.sleep(RECHECK_AFTER_S))
    except LedgerError as error:
        click.echo(printable(text_of(error)), err=True)
        context.exit(exit_for(error, paid=False))
    if as_json:
        click.echo(json.dumps(_as_json(accounts, report)))
    else:
        _show(accounts, report)
    context.exit(Exit.ERROR if not report.agrees else Exit.REFUSED if accounts.unread else Exit.OK)


def _trace_files(given: Sequence[str]) -> Sequence[str]:
    named = os.environ.get(env_vars.TRACE)
    return given or ([named] if named else [])


def _client(accounts: Accounts) -> Any:
    """Return a client of the environment's wallet. None if it names none, or (see ``unread``) one that can't be used."""
    from ..config import wallets

    if not wallets.names_wallet():
        return None
    try:
        return wallets.client()
    except FundingError as error:
        accounts.unread["node"] = text_of(error)
        return None


# Output


def _compared(accounts: Accounts, report: Report) -> dict[str, str]:
    """Return what was compared of each account, or why it wasn't, by the account's name."""
    from .._core.money import sats
    from ..audit.findings import counted

    compared = {
        "ledger": (
            f"{counted(report.payments, 'payment')}, {report.paid} paid, {sats(report.spent_msat)} with fees "
            f"({accounts.ledger.url})"
        )
    }
    if "trace" in accounts.unread:
        compared["trace"] = f"not compared: {accounts.unread['trace']}"
    elif accounts.traces:
        compared["trace"] = f"{counted(report.trace_compared, 'payment')} compared ({', '.join(accounts.traces)})"
    else:
        compared["trace"] = "not compared: no trace is named (--trace, ROUTEWEILER_TRACE)"
    if "node" in accounts.unread:
        compared["node"] = f"not compared: {accounts.unread['node']}"
    elif accounts.node_pubkey is None:
        compared["node"] = "not compared: the environment names no wallet, or --no-node was given"
    else:
        foreign = f"{report.foreign} more ({sats(report.foreign_msat)}) not in this ledger: other programs may have made them"
        more = f"; {foreign}" if report.foreign else ""
        compared["node"] = f"{counted(report.node_compared, 'payment')} compared{more} ({accounts.node_pubkey})"
    return compared


def _verdict(accounts: Accounts, report: Report) -> str:
    """Return the audit's result as one sentence."""
    from ..audit.findings import counted

    if report.differences:
        return f"The accounts differ in {counted(len(report.differences), 'place')}."
    if accounts.unread:
        return f"As far as could be compared, the accounts agree; not compared: {', '.join(accounts.unread)}."
    return "The accounts agree."


def _show(accounts: Accounts, report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for name, text in _compared(accounts, report).items():
        console.print(f"{name:<8}{printable(text)}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"{'note':<8}{printable(note)}", markup=False, soft_wrap=True)
    if report.open:
        _table(console, "Payments without a final outcome", [_open_lines(each) for each in report.open])
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
        for name, text in entry:
            table.add_row(name, Text(printable(text), "" if name else "bold"))
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
        "compared": {name: printable(text) for name, text in _compared(accounts, report).items()},
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
