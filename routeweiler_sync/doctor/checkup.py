"""The examination as a whole: what is looked at, in which order, and what depends on what.

What is wrong with each part is left to the other modules of this folder. Nothing is changed anywhere, and no payment is made: a
ledger that doesn't exist isn't created, and one of an older schema isn't migrated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from .._core import env_vars
from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from ..config import env_settings, environment, wallets as named_wallets
from ..errors import FundingError, LedgerError
from ..settings import Default
from . import ledger_file, limits, software, surroundings, wallets
from .findings import Finding, TooSlowError, ok, warning, within, wrong, wrong_by

if TYPE_CHECKING:
    from ..funding.lightning import LightningFundingSource
    from ..ledger.ledger import Ledger

#: How long one look may take: a node, a disk or a name server that hangs is reported after this time.
LOOK_S = 5.0


def examine(
    *,
    funding: Sequence[LightningFundingSource] | None = None,
    ledger: Ledger | str | os.PathLike[str] | None = None,
    budget_envelope: BudgetEnvelope | str | Default | None = Default.ENVELOPE,
    look_s: float = LOOK_S,
    now: Callable[[], float] = time.time,
) -> Iterator[Finding]:
    """Look at everything that paying needs, and yield what is found, as it is found.

    ``funding``, ``ledger`` and ``budget_envelope`` are arguments of a session; what isn't given is taken from the environment, as
    `routeweiler_sync.Session` does. ``look_s`` bounds each single look, in seconds. ``now`` is this machine's clock, in unix
    seconds.

    Money: none moves. Where a wallet is asked whether it may pay, it gets an order that no wallet can carry out.
    """
    yield from software.findings()
    given = funding is not None
    sources: Sequence[LightningFundingSource] = funding or ()
    if funding is None:
        sources, findings = _environment_wallet()
        yield from findings
    elif not sources:
        yield wrong("wallet", "this session has no wallet", "Give it funding=[…].")
    yield from surroundings.proxies(sources)
    paying = None
    if sources:
        paying = wallets.Examination(sources, from_environment=not given, look_s=look_s, now=now)
        yield from paying.findings()
    if not given:
        yield from surroundings.trace()
        yield from surroundings.agent()
    opened: Ledger | None = None
    try:
        from ..ledger.ledger import Ledger

        opened = Ledger.open(env_settings.ledger_url() if ledger is None else ledger)
    except LedgerError as error:
        yield wrong_by("ledger", error)
    envelope: BudgetEnvelope | str | None = None
    is_known = True
    if isinstance(budget_envelope, Default):
        try:
            envelope = SAFE_DEFAULT if given else env_settings.budget()
        except env_settings.VariableError as error:
            is_known = False
            yield wrong("budget", str(error).rstrip("."), f"Correct {error.name}.")
    else:
        envelope = budget_envelope
    if opened is None:
        return
    try:
        looked = ledger_file.Look(opened, look_s=look_s, now=now)
        yield from looked.findings()
        if looked.is_readable:
            yield from ledger_file.unfinished(opened, paying, look_s=look_s, now=now)
        if is_known:
            yield from limits.findings(looked, envelope, from_environment=not given, look_s=look_s, paying=paying)
    finally:
        if opened is not ledger:
            with suppress(TooSlowError, LedgerError):
                within(look_s, opened.close)


def _environment_wallet() -> tuple[Sequence[LightningFundingSource], list[Finding]]:
    """Return the funding sources that the environment names, and what there is to say about how it names them."""
    from ..funding.wallet import NETWORKS

    environ, network = os.environ, os.environ.get(env_vars.NETWORK)
    findings = []
    if not named_wallets.names_wallet(environ):
        lone = named_wallets.lone_variables(environ)
        said = f" ({', '.join(lone)} alone name none)" if lone else ""
        return (), [wrong("wallet", f"the environment names no wallet{said}", named_wallets.HOW_TO_NAME)]
    if network and network not in NETWORKS:
        what = f"{env_vars.NETWORK} is {named_wallets.shown_name(network)}, which isn't a network"
        findings.append(wrong("network", what, f"Set it to one of {', '.join(NETWORKS)}, or not at all."))
    try:
        named = named_wallets.named(environ)
        client = named_wallets.client(environ)
    except FundingError as error:
        return (), [wrong_by("wallet", error), *findings]
    networks = NETWORKS if findings else environment.networks()
    assert named is not None
    findings.insert(0, _named_finding(named, client))
    from ..funding.source import LightningFundingSource

    return [LightningFundingSource(client=client, network=each) for each in networks], findings


def _named_finding(named: named_wallets.Named, client: object) -> Finding:
    """Return the finding about the variables that name the wallet, and those that aren't used."""
    chooser = f", chosen by {env_vars.WALLET}" if named.chosen else ""
    what = f"{named.wallet.title} {wallets.address_of(client)}, named by {', '.join(named.used)}{chooser}"
    if not named.ignored:
        return ok("wallet", what)
    others = [
        each.name
        for each in named_wallets.WALLETS
        if each is not named.wallet and any(way[0] in named.ignored for way in each.ways)
    ]
    choose = f", or set {env_vars.WALLET} to {' or '.join([named.wallet.name, *others])}" if others else ""
    advice = f"Unset what you don't mean{choose}: {named.used[0]} comes first."
    return warning("wallet", f"{what}; {', '.join(named.ignored)} would name one too and isn't used", advice)
