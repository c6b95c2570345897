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
from .._core.secret_text import shown
from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from ..config import env_settings, environment
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
        except ValueError as error:
            is_known = False
            yield wrong("budget", str(error).rstrip("."), f"Correct {env_vars.BUDGET}.")
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
    from ..funding.lnd.lndconnect import names_node
    from ..funding.wallet import NETWORKS

    environ, network = os.environ, os.environ.get(env_vars.NETWORK)
    findings = []
    if not names_node(environ):
        half = [name for name in wallets.NODE_VARIABLES if environ.get(name)]
        said = f" ({', '.join(half)} alone name none)" if half else ""
        advice = (
            f"Set {env_vars.LNDCONNECT} to the node's lndconnect URI; or {env_vars.LND_GRPC_HOST} (host:port), "
            f"{env_vars.LND_TLS_CERT_PATH} and {env_vars.LND_MACAROON_PATH}."
        )
        return (), [wrong("wallet", f"the environment names no wallet{said}", advice)]
    if network and network not in NETWORKS:
        what = f"{env_vars.NETWORK} is {shown(network)}, which isn't a network"
        findings.append(wrong("network", what, f"Set it to one of {', '.join(NETWORKS)}, or not at all."))
    try:
        from ..funding.lightning import LightningFundingSource
        from ..funding.lnd.client import LndClient

        client = LndClient.from_env()
    except FundingError as error:
        return (), [wrong_by("wallet", error), *findings]
    networks = NETWORKS if findings else environment.networks()
    used, ignored = wallets.naming_variables(environ)
    what = f"lnd at {client._endpoint.address}, named by {', '.join(used)}"
    if ignored:
        advice = f"Unset what you don't mean: {used[0]} comes first."
        findings.insert(0, warning("wallet", f"{what}; {', '.join(ignored)} would name one too and isn't used", advice))
    else:
        findings.insert(0, ok("wallet", what))
    return [LightningFundingSource(client=client, network=each) for each in networks], findings
