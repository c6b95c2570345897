"""``routeweiler-sync report``: what was paid, as a table on the terminal, an HTML page, CSV or JSON.

Reading and drawing are left to `routeweiler_sync.report`.

Money: none can move here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from .._core import env_vars
from .._core.money import plain, sats
from ..config import env_settings
from ..errors import LedgerError
from .ledgers import archive_option, opened_archives
from .outcome import Exit, exit_for, printable, text_of
from .since import check_span, since_option, until_option
from .tables import FOLDED_WIDTH_MIN, Column, Styled, print_facts, print_line, print_table, time_text

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..report.figures import Envelope, Figures, Latency, Sum


@click.command()
@click.option("--html", "html_file", metavar="FILE", help="Write an HTML page: one file, with plots. Needs the extra report.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write a CSV file: one row for each payment that was made.")
@since_option
@until_option
@click.option(
    "--ledger", "ledgers", metavar="URL", multiple=True, help="Path or URL of a ledger; repeat for several. Default: see above."
)
@click.option(
    "--trace", "traces", metavar="PATH", multiple=True, help="A trace file; repeat for several or rotated ones. Default: see above."
)
@archive_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def report(
    context: click.Context,
    *,
    html_file: str | None,
    csv_file: str | None,
    since: datetime | None,
    until: datetime | None,
    ledgers: Sequence[str],
    traces: Sequence[str],
    archives: Sequence[str],
    as_json: bool,
) -> None:
    """Show what was paid, to whom, and what failed.

    \b
    Examples:
      routeweiler-sync report
      routeweiler-sync report --html report.html
      routeweiler-sync report --csv 2026.csv --since 2026-01-01
      routeweiler-sync report --since 2026-10-01 --until 2026-11-01

    Without --ledger and --trace, the ledger and the trace of the environment are read (ROUTEWEILER_LEDGER, else the user's own
    ledger; ROUTEWEILER_TRACE). A payment that several of them have counts once. Pays nothing, and changes none of them. Payments
    that were moved to an archive (payments archive) count only if it is given: --archive FILE.

    What is spent comes from ledgers and traces. Budgets and unfinished payments come from ledgers; calls, failures and latencies
    from traces.

    FILE may be - for stdout. A file that exists is replaced once the new one is complete. In the CSV, amounts are plain decimals;
    booked_amount is what the budget was charged, and btc_price the price of a bitcoin at which it was.

    \b
    Exit codes:
      0  done
      1  a file can't be written, or the extra is missing
      2  wrong usage, or no such ledger or trace
      3  a ledger or trace can't be read
    """
    from ..report import page, requirements, sheet
    from ..report.read import report_of
    from ..report.target import written

    check_span(since, until)
    files = [file for file in (html_file, csv_file) if file is not None]
    _check_files(context, files, (*ledgers, *archives), traces, as_json)
    if html_file is not None and (problem := requirements.missing()) is not None:
        print_line(f"{problem} (--csv and --json need nothing more.)", err=True)
        context.exit(Exit.ERROR)
    opened, paths = _sources(ledgers, traces)
    with _errors(context):
        added = opened_archives(archives)
        _tell_moved(opened, added)
    opened += added
    with _errors(context), report_of(opened, paths, since=since, until=until) as (account, read_figures):
        csv_alone = html_file is None and not as_json and csv_file is not None
        figures = None if csv_alone else read_figures()
        spent = None if figures is None else figures.spent
        if html_file is not None and figures is not None:
            _write_html(context, html_file, page.html(figures))
        if csv_file is not None:
            with _writing(context, csv_file), written(csv_file) as file:
                spent = sheet.write(file, account)
        if as_json and figures is not None:
            click.echo(json.dumps(_as_json(figures)))
        elif not files and figures is not None:
            _show(figures)
        elif "-" not in files and spent is not None:
            for name in files:
                print_line(f"Wrote {name}: {_counted(spent.payments, 'payment')}, {sats(spent.total_msat)} with fees.")


def _tell_moved(ledgers: Sequence[Ledger], archives: Sequence[Ledger]) -> None:
    """Say on stderr what isn't counted, since it was moved to archives other than ``archives``.

    Payments that were made. A few more may be missing than is said: a payment may be in an archive and in the ledger still.
    """
    moved, given = [each.moved() for each in ledgers], [each.spending() for each in archives]
    payments = sum(each.paid for each in moved) - sum(each.payments for each in given)
    if payments > 0:
        spent = sats(max(0, sum(each.spent_msat for each in moved) - sum(each.total_msat for each in given)))
        print_line(
            f"Not counted, unless a trace has them: {_counted(payments, 'payment')} ({spent}) that were moved to archives"
            f"{' other than those given' if archives else ''}. To count them, give all archives: --archive FILE.",
            err=True,
        )


def _check_files(
    context: click.Context, files: Sequence[str], ledgers: Sequence[str], traces: Sequence[str], as_json: bool
) -> None:
    """Find what is wrong with the files to write before anything is read.

    Raises: click.UsageError. Exits if a file can't be written.
    """
    from ..report.target import STDOUT, problem_of

    if files.count(STDOUT) + as_json > 1:
        raise click.UsageError("only one of --html -, --csv - and --json can go to stdout")
    if len(files) == 2 and STDOUT not in files and os.path.realpath(files[0]) == os.path.realpath(files[1]):
        raise click.UsageError("--html and --csv name the same file")
    trace = os.environ.get(env_vars.TRACE)
    sources = [os.path.expanduser(each.removeprefix("sqlite:///")) for each in (*ledgers, *traces, *([trace] if trace else []))]
    for name in files:
        if (problem := problem_of(name, sources)) is not None:
            print_line(f"{name} can't be written: {problem}.", err=True)
            context.exit(Exit.ERROR)


def _sources(ledgers: Sequence[str], traces: Sequence[str]) -> tuple[list[Ledger], list[str]]:
    """Return the ledgers and traces that are named, or else those of the environment, which needn't exist yet.

    Raises: click.UsageError for a ledger or trace that is named and doesn't exist. Exits for a URL that names no ledger.
    """
    from ..ledger.ledger import Ledger

    try:
        if not ledgers and not traces:
            named = os.environ.get(env_vars.TRACE)
            of_environment = [named] if named and (not os.path.exists(named) or os.path.isfile(named)) else []
            return [Ledger.open(env_settings.ledger_url())], of_environment
        opened = [Ledger.open(url) for url in ledgers]
    except LedgerError as error:
        click.echo(printable(text_of(error)), err=True)
        raise click.exceptions.Exit(exit_for(error, paid=False)) from None
    for ledger in opened:
        if not ledger.exists():
            raise click.UsageError(f"there is no ledger at {printable(ledger.url)}")
    for path in traces:
        if not os.path.exists(os.path.expanduser(path)):
            raise click.UsageError(f"there is no trace at {printable(path)}")
    return opened, list(traces)


@contextmanager
def _errors(context: click.Context) -> Iterator[None]:
    """Make errors of reading a message and an exit code."""
    import sqlite3

    from ..trace.reader import TraceUnreadableError

    try:
        yield
    except LedgerError as error:
        click.echo(printable(text_of(error)), err=True)
        context.exit(exit_for(error, paid=False))
    except TraceUnreadableError as error:
        click.echo(printable(f"{str(error)[:1].upper()}{str(error)[1:]}."), err=True)
        context.exit(Exit.REFUSED)
    except sqlite3.Error as error:
        print_line(
            f"The payments can't be sorted in a temporary file: {error}. Make room, or name a folder in SQLITE_TMPDIR.", err=True
        )
        context.exit(Exit.ERROR)


@contextmanager
def _writing(context: click.Context, name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        print_line(f"{name} can't be written: {error.strerror or error}.", err=True)
        context.exit(Exit.ERROR)


def _write_html(context: click.Context, name: str, text: str) -> None:
    from ..report.target import written

    with _writing(context, name), written(name) as file:
        file.write(text)


# Output


def _show(figures: Figures) -> None:
    from ..report.amounts import sat

    if figures.is_empty:
        print_line(f"Nothing was bought {figures.when_nothing}.")
        return
    print_facts(_facts(figures))
    shares = [
        ("origin", "not in the trace", figures.by_origin, figures.origins, figures.other_origins),
        ("agent", "none", figures.by_agent, figures.agents, figures.other_agents),
    ]
    for by, unnamed, parts, number, others in shares:
        if not parts:
            continue
        click.echo()
        rows = [(name or unnamed, part) for name, part in parts]
        if others.payments:
            rows.append((f"{number - len(parts)} more", others))
        print_table(
            [
                Column(by, folds=FOLDED_WIDTH_MIN),
                Column("payments", number=True),
                Column("fees sat", number=True),
                Column("spent sat", number=True),
            ],
            [(name, each.payments, sat(each.fee_msat), sat(each.total_msat)) for name, each in rows],
            empty="",
        )


def _facts(figures: Figures) -> Iterator[tuple[str, object]]:
    from ..report.amounts import duration, major, percent, unit

    spent, calls, counts = figures.spent, figures.calls, figures.calls.counts
    begin = figures.since or figures.first_at
    if begin is not None:
        yield "from", begin
    yield "until", figures.until or figures.made_at
    yield "spent", sats(spent.total_msat)
    fiat = [each for each in figures.booked if each.currency != "sat"]
    yield "booked as", [f"{major(each.micro, each.currency)} {unit(each.currency)}" for each in fiat]
    yield "fees", f"{sats(spent.fee_msat)}, {percent(spent.fee_percent)} of the prices" if spent.payments else None
    yield "payments", spent.payments
    if figures.unfinished.payments:
        number, most = figures.unfinished.payments, sats(figures.unfinished.total_msat)
        yield "unfinished", Styled(f"{number}, up to {most} more: routeweiler-sync payments recover", "bold yellow")
    if calls.all:
        paid, reused, failed = counts["paid"], counts["reused"], counts["failed"]
        yield "calls", f"{calls.all}, of which {paid} paid, {reused} used an earlier token, {failed} failed"
    if counts["undelivered"]:
        yield "no page", Styled(f"{counts['undelivered']} calls paid and got no page: their tokens are kept", "bold yellow")
    yield "failures", [f"{each.calls} x {each.code}" for each in figures.failures]
    yield "not paid", [f"{number} x {code or 'unknown'}" for code, number in figures.dead]
    for name, latency in (("settled in", figures.settlement), ("answered in", figures.service)):
        if latency is not None:
            yield name, f"{duration(latency.median_ms)} (median), 95 % within {duration(latency.p95_ms)}"
    yield "headroom", [_headroom(each) for each in figures.envelopes]
    if len(figures.by_network) > 1:
        yield "networks", [f"{sats(each.total_msat)} on {name or 'an unknown one'}" for name, each in figures.by_network]
    if figures.unreadable:
        yield "unreadable", f"{_counted(figures.unreadable, 'line')} of the traces"


def _headroom(envelope: Envelope) -> str:
    from ..report.amounts import major, unit

    row = envelope.row
    if row.headroom_minor_units is None:
        left = "no limit"
    else:
        micro = int(row.headroom_minor_units.scaleb(6))
        left = f"{major(micro, row.limits.cap_currency)} {unit(row.limits.cap_currency)}"
    return f"{left} in {row.id}{' (frozen)' if row.frozen else ''}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# JSON


def _as_json(figures: Figures) -> dict[str, Any]:
    from ..report.amounts import major
    from ..report.figures import moment
    from ..report.texts import clean

    return {
        "madeAt": time_text(figures.made_at),
        "since": _time(figures.since),
        "until": _time(figures.until),
        "firstAt": _time(figures.first_at),
        "lastAt": _time(figures.last_at),
        "sources": [{"kind": each.kind, "name": clean(each.name), "exists": not each.missing} for each in figures.sources],
        **_sum(figures.spent),
        "booked": [
            {"currency": clean(each.currency), "payments": each.payments, "amount": major(each.micro, each.currency)}
            for each in figures.booked
        ],
        "unfinished": {"payments": figures.unfinished.payments, "mostMsat": figures.unfinished.total_msat},
        "notPaid": [{"code": None if code is None else clean(code), "payments": number} for code, number in figures.dead],
        "calls": {"all": figures.calls.all, **figures.calls.counts},
        "failures": [
            {
                "code": each.code,
                "calls": each.calls,
                "lastAt": time_text(moment(each.last_ms)),
                "message": each.message,
            }
            for each in figures.failures
        ],
        "settlement": _latency(figures.settlement),
        "service": _latency(figures.service),
        "origins": figures.origins,
        "byOrigin": [{"origin": None if name is None else clean(name), **_sum(each)} for name, each in figures.by_origin],
        "agents": figures.agents,
        "byAgent": [{"agentId": None if name is None else clean(name), **_sum(each)} for name, each in figures.by_agent],
        "byNetwork": [{"network": None if name is None else clean(name), **_sum(each)} for name, each in figures.by_network],
        "period": figures.period,
        "byPeriod": [{"from": time_text(begin), **_sum(each)} for begin, each in figures.by_period],
        "envelopes": [
            {
                "id": clean(each.row.id),
                "ledger": clean(each.ledger),
                "currency": each.row.limits.cap_currency,
                "frozen": each.row.frozen,
                "settledMinorUnits": plain(each.row.settled_minor_units),
                "reservedMinorUnits": plain(each.row.reserved_minor_units),
                "headroomMinorUnits": None if each.row.headroom_minor_units is None else plain(each.row.headroom_minor_units),
            }
            for each in figures.envelopes
        ],
        "unreadable": figures.unreadable,
    }


def _sum(of: Sum) -> dict[str, int]:
    return {"payments": of.payments, "spentMsat": of.total_msat, "amountMsat": of.amount_msat, "feesMsat": of.fee_msat}


def _latency(of: Latency | None) -> dict[str, int] | None:
    if of is None:
        return None
    return {"count": of.count, "medianMs": of.median_ms, "p95Ms": of.p95_ms, "longestMs": of.longest_ms}


def _time(time: datetime | None) -> str | None:
    return None if time is None else time_text(time)
