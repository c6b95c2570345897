"""What a session pays with, in words: for its repr, and for its table in a notebook. Nobody is asked, nothing is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.display import counted, facts_table, foreign
from .._core.money import sats
from ..errors import LedgerError

if TYPE_CHECKING:
    from .payer import Payer


def one_line(name: str, payer: Payer) -> str:
    """Return the repr of a session of the class ``name``."""
    return f"<{name}: {_wallets(payer)}; budget {_budget(payer)}; {sats(payer.tally.known_msat)} spent>"


def html(name: str, payer: Payer) -> str:
    """Return the table of a session of the class ``name``."""
    facts: list[tuple[str, object]] = [
        ("wallet", _wallets(payer)),
        ("budget", _budget(payer)),
        ("policy", "none" if payer.policy is None else counted(len(getattr(payer.policy, "rules", ())), "rule")),
        ("ledger", _place(payer)),
        ("trace", "none" if payer.trace_sink is None else type(payer.trace_sink).__name__),
    ]
    names = (("agent", payer.agent_id), ("session", payer.session_id))
    facts += [(what, foreign(text)) for what, text in names if text is not None]
    return facts_table(name, [*facts, ("spent by its calls", sats(payer.tally.known_msat))])


def _wallets(payer: Payer) -> str:
    """Return the kinds of the wallets and their networks. A wallet may be a program's own: what it says of itself isn't asked."""
    wallets: list[tuple[object, list[str]]] = []
    for each in payer.funding:
        client = getattr(each, "client", each)
        if not wallets or wallets[-1][0] is not client:
            wallets.append((client, []))
        # The environment's node is there once for each network that it may be on.
        wallets[-1][1].append("any network" if each.network is None else foreign(each.network))
    return ", ".join(f"{type(client).__name__} on {' or '.join(networks)}" for client, networks in wallets) or "no wallet"


def _budget(payer: Payer) -> str:
    if payer.envelope is None:
        return "without limit"
    return foreign(payer.envelope if isinstance(payer.envelope, str) else payer.envelope.words)


def _place(payer: Payer) -> str:
    try:
        return payer.ledger.url
    except LedgerError as error:
        return error.brief
