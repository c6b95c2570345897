"""Draw the tables and the diagram of docs/explanation/purchase.md from the tables in the code: the page says what it does.

The tables are in `routeweiler_sync.payments.wallet_rules` and `routeweiler_sync.paywall.server_rules`.

python docs/draw_purchase.py        writes them into docs/explanation/purchase.md
"""

from __future__ import annotations

import re
from pathlib import Path

from routeweiler_sync.ledger.types import PaymentState
from routeweiler_sync.payments.wallet_rules import WALLET_RULES, NextStep, WalletEvent
from routeweiler_sync.paywall.server_rules import SERVER_RULES, Rule, ServerAnswer, TokenStatus

PAGE = Path(__file__).parent / "explanation" / "purchase.md"
UNFINISHED = (PaymentState.OPEN, PaymentState.FAILED)


def diagram() -> str:
    """Return the changes of a row's state as a Mermaid state diagram. Rules that keep the state are in the table alone."""
    steps: dict[tuple[str, str], list[str]] = {}
    for (state, event), rule in WALLET_RULES.items():
        if rule.state is not state:
            steps.setdefault((state.value, rule.state.value), []).append(event.name)
    lines = ["stateDiagram-v2", "    [*] --> open: on disk, before lnd hears of it"]
    lines += [f"    {old} --> {new}: {', '.join(events)}" for (old, new), events in steps.items()]
    lines += ["    failed --> open: sent again", "    settled --> retired: refused by the server, or forgotten; a charge: spent"]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def table() -> str:
    """Return the Markdown table of wallet rules for unfinished rows."""
    lines = ["| the wallet's reply | row was | row is | next step | why |", "|---|---|---|---|---|"]
    for event in WalletEvent:
        rules = {state: WALLET_RULES.get((state, event)) for state in UNFINISHED}
        for state, rule in rules.items():
            if rule is None:
                lines.append(f"| {event.value} | {state.value} | | can't occur | a failed row has had at least two sends |")
            else:
                lines.append(f"| {event.value} | {state.value} | {rule.state.value} | {rule.next_step.value} | {rule.why} |")
    return "\n".join(lines)


def server_table() -> str:
    """Return the Markdown table of server rules. Token statuses that have the same rule share a line."""
    lines = ["| the server's answer | the token | what to do | why |", "|---|---|---|---|"]
    for answer in ServerAnswer:
        statuses: dict[Rule, list[str]] = {}
        for status in TokenStatus:
            if (status, answer) in SERVER_RULES:
                statuses.setdefault(SERVER_RULES[status, answer], []).append(status.name)
        for rule, names in statuses.items():
            lines.append(f"| {answer.value} | {', '.join(names)} | {rule.verdict.value} | {rule.why} |")
    return "\n".join(lines)


def tokens() -> str:
    """Return the Markdown list of the token statuses that the server table names."""
    return "\n".join(f"- **{status.name}**: {status.value}." for status in TokenStatus)


def page(text: str) -> str:
    """Return ``text``, the page, with its diagram, tables and list drawn anew."""
    for mark, drawn in (("diagram", diagram()), ("table", table()), ("tokens", tokens()), ("server", server_table())):
        text = re.sub(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", lambda m, new=drawn: m[1] + new + m[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    assert all(isinstance(rule.next_step, NextStep) for rule in WALLET_RULES.values())
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
