"""Draws docs/purchase.md's tables and diagram from those in `routeweiler_sync.payments.wallet_rules`, so that they say what the
code does.

python docs/draw_purchase.py        writes them into docs/purchase.md
"""

from __future__ import annotations

import re
from pathlib import Path

from routeweiler_sync.ledger.types import PaymentState
from routeweiler_sync.payments.wallet_rules import WALLET_RULES, NextStep, WalletEvent
from routeweiler_sync.paywall.server_rules import SERVER_RULES, Rule, ServerAnswer, TokenStatus

PAGE = Path(__file__).parent / "purchase.md"
UNFINISHED = (PaymentState.OPEN, PaymentState.FAILED)


def diagram() -> str:
    """The steps from one state to another, as a Mermaid state diagram. Steps that change nothing are in the table alone."""
    steps: dict[tuple[str, str], list[str]] = {}
    for (state, event), rule in WALLET_RULES.items():
        if rule.state is not state:
            steps.setdefault((state.value, rule.state.value), []).append(event.name)
    lines = ["stateDiagram-v2", "    [*] --> open: on disk, before lnd hears of it"]
    lines += [f"    {old} --> {new}: {', '.join(events)}" for (old, new), events in steps.items()]
    lines += ["    failed --> open: sent again", "    settled --> retired: refused by the server, or forgotten"]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def table() -> str:
    """What each word of lnd leads to while a row is unfinished."""
    lines = ["| what lnd said | row was | row is | next | why |", "|---|---|---|---|---|"]
    for event in WalletEvent:
        rules = {state: WALLET_RULES.get((state, event)) for state in UNFINISHED}
        for state, rule in rules.items():
            if rule is None:
                lines.append(f"| {event.value} | {state.value} | | can't be | a failed row has seen two sends at least |")
            else:
                lines.append(f"| {event.value} | {state.value} | {rule.state.value} | {rule.next_step.value} | {rule.why} |")
    return "\n".join(lines)


def server_table() -> str:
    """What each word of the server leads to; tokens that fare alike share a line."""
    lines = ["| the server said | the token | what follows | why |", "|---|---|---|---|"]
    for said in ServerAnswer:
        alike: dict[Rule, list[str]] = {}
        for known in TokenStatus:
            if (known, said) in SERVER_RULES:
                alike.setdefault(SERVER_RULES[known, said], []).append(known.name)
        for ruling, names in alike.items():
            lines.append(f"| {said.value} | {', '.join(names)} | {ruling.verdict.value} | {ruling.why} |")
    return "\n".join(lines)


def tokens() -> str:
    """The names that the server's table gives to what is known of a token."""
    return "\n".join(f"- **{known.name}**: {known.value}." for known in TokenStatus)


def page(text: str) -> str:
    """``text`` with all of it drawn anew."""
    for mark, drawn in (("diagram", diagram()), ("table", table()), ("tokens", tokens()), ("server", server_table())):
        text = re.sub(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", lambda m, new=drawn: m[1] + new + m[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    assert all(isinstance(rule.next_step, NextStep) for rule in WALLET_RULES.values())
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
