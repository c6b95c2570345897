"""``routeweiler-sync doctor``: look at everything that paying needs, and say what to do about what is wrong.

What is looked at and how is left to the folder `doctor`; this module prints it.

Money: none can move here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from .._version import VERSION
from .outcome import Exit, printable
from .tables import console, is_terminal, print_line

if TYPE_CHECKING:
    from ..doctor.findings import Finding

_VERDICT, _CHECK = 9, 13
#: On a terminal narrower than this, what was found stands below the name of the check.
_WIDE = 64
_INDENT = 2
_STYLES = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, *, as_json: bool) -> None:
    """Find out whether everything is ready to pay, and what to do if not.

    Looks at what the environment variables name: the wallet (connection, certificate, macaroon and its rights, state, channels,
    balance), the ledger and what is unfinished in it, the budget, the clock, proxies and libraries. It pays nothing and changes
    nothing.

    \b
    ok       as it should be
    warning  paying works, or can't be judged; see what it says
    wrong    nothing can be paid until this is mended

    \b
    Exit codes:
      0  nothing is wrong
      1  something is wrong
      2  wrong usage

    \b
    Examples:
      routeweiler-sync doctor
      routeweiler-sync doctor --json
    """
    from ..doctor.checkup import examine

    found = examine()
    findings = _as_json(found) if as_json else _as_text(found)
    context.exit(Exit.ERROR if any(each.verdict.value == "wrong" for each in findings) else Exit.OK)


def _as_json(found: Iterable[Finding]) -> list[Finding]:
    findings = list(found)
    checks: list[dict[str, Any]] = [
        {
            "check": each.check,
            "verdict": each.verdict.value,
            "what": printable(each.what),
            "advice": None if each.advice is None else printable(each.advice),
        }
        for each in findings
    ]
    ready = all(each.verdict.value != "wrong" for each in findings)
    click.echo(json.dumps({"version": VERSION, "ready": ready, "checks": checks}))
    return findings


def _as_text(found: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes: a node that hangs takes some seconds."""
    findings = []
    show = _shown if is_terminal() else _plain
    for each in found:
        findings.append(each)
        show(each)
    wrong = sum(each.verdict.value == "wrong" for each in findings)
    warnings = sum(each.verdict.value == "warning" for each in findings)
    if wrong:
        summary = f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong. What depends on that wasn't looked at."
    else:
        summary = "Ready to pay." + (f" {warnings} warning{'s' if warnings > 1 else ''}." if warnings else "")
    if is_terminal():
        click.echo()
    print_line(summary, "bold red" if wrong else "bold green")
    return findings


def _plain(each: Finding) -> None:
    said = " ".join([_sentence(each.what), *([each.advice] if each.advice else [])])
    click.echo(f"{each.verdict.value:<{_VERDICT}}{each.check:<{_CHECK}}{printable(said)}")


def _shown(each: Finding) -> None:
    import textwrap

    out = console()
    verdict, style = each.verdict.value, _STYLES[each.verdict.value]
    is_wide = out.width >= _WIDE
    indent = _VERDICT + _CHECK if is_wide else _INDENT
    what, advice = (
        textwrap.wrap(printable(text), max(out.width - indent, 1), break_on_hyphens=False)
        for text in (_sentence(each.what), each.advice or "")
    )
    lines = [(line, "") for line in what] + [(line, "" if verdict == "ok" else style.removeprefix("bold ")) for line in advice]
    head = ((f"{verdict:<{_VERDICT}}", style), (f"{each.check:<{_CHECK}}" if is_wide else each.check, "bold"))
    if is_wide:
        _print((*head, lines[0]), *(((" " * indent, ""), line) for line in lines[1:]))
    else:
        _print(head, *(((" " * indent, ""), line) for line in lines))


def _print(*lines: Any) -> None:
    from rich.text import Text

    out = console()
    for parts in lines:
        out.print(Text.assemble(*parts), soft_wrap=True)


def _sentence(what: str) -> str:
    """Return ``what`` with a full stop."""
    return what if what.endswith((".", "!", "?")) else f"{what}."
