"""What a session pays with if its arguments don't say: wallet, budget, ledger and trace from the environment.

They are shared by the whole process. `routeweiler_sync.get` in a loop makes a session each time; the connection to the wallet, the
ledger and tokens stay until a variable changes. Which wallet is used is left to `wallets`, what a variable's value means to
`env_settings` and the wallets.
"""

from __future__ import annotations

import atexit
import copy
import os
from typing import TYPE_CHECKING, Any

from .._core import env_vars
from .._core.forks import importing
from ..errors import BudgetError, FundingError, RouteweilerError
from . import env_settings, wallets
from .payer import Payer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..funding.lightning import LightningFundingSource
    from ..settings import Settings

NO_NODE = (
    "{url} asks for a payment, and no node is configured, nor another wallet. The 402 is returned as it is, and nothing was spent. "
    f"{wallets.HOW_TO_NAME}{{alone}} (This warning is shown once.)"
)

_payers: dict[tuple[str | None, ...], Payer] = {}
#: The most payers that are kept. A program's tests may each set another ledger, and each payer has files and a connection open.
MAX_PAYERS = 4


@atexit.register
def _close_all() -> None:
    for each in list(_payers.values()):
        each.close()


def no_node(url: str) -> str:
    """Return the warning that ``url`` asks for a payment and no wallet is configured."""
    lone = wallets.lone_variables()
    return NO_NODE.format(url=url, alone=f" {', '.join(lone)} alone {'name' if len(lone) > 1 else 'names'} none." if lone else "")


class EnvironmentPayer(Payer):
    """A payer whose wallet is the environment's. Unpickled or copied, it pays as the environment says then and there."""

    #: Settings that the environment should have given and hasn't: it named no wallet, or a value couldn't be understood.
    missing: frozenset[str] = frozenset()

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._pay_as(payer())

    def _pay_as(self, other: Payer) -> None:
        """Take the wallet of ``other``, a payer made from the environment; also its budget and trace if these are ``missing``."""
        self.funding, self.idle, self.problem, self._checkout = other.funding, other.idle, other.problem, None
        if not other.idle:
            if "budget_envelope" in self.missing:
                self.envelope = other.envelope
            if "agent_id" in self.missing:
                self.agent_id = other.agent_id
            if "trace_sink" in self.missing:
                self.trace_sink = copy.copy(other.trace_sink)  # each payer closes its own sink
            self.missing = self.missing & getattr(other, "missing", frozenset())


def payer(**given: Unpack[Settings]) -> Payer:
    """Return a payer for one session, made as the environment says. Nothing is connected or opened.

    A setting in ``given`` (Routeweiler's arguments) takes the place of what the environment says. If no wallet is named or given,
    the payer is ``idle``. A variable that can't be used is reported at the first 402, as a `RouteweilerError`: traffic without a
    402 needs no variable.

    Raises: ValueError for an argument that can't be used.
    """
    if given:
        return made(**given)
    values = tuple(map(os.environ.get, env_vars.PAYER_VARIABLES))
    shared = _payers.get(values)
    if shared is None:
        with importing:
            shared = _payers.get(values) or made()
            _payers[values] = shared
            dropped = [_payers.pop(oldest) for oldest in list(_payers)[:-MAX_PAYERS]]
        for each in dropped:
            each.close()  # a session that still uses it opens what it needs anew
    return shared.twin()


def made(**given: Unpack[Settings]) -> Payer:
    """Return a new, unshared payer, made from ``given`` and the environment.

    Raises: ValueError for an argument that can't be used.
    """
    if not given.get("funding") and not wallets.names_wallet():
        idle = EnvironmentPayer(**given, idle=True)
        idle.missing = frozenset(("budget_envelope", "trace_sink", "agent_id")) - given.keys()
        return idle
    found, problem = settings(**given)
    if "funding" in given:
        return Payer(**found, problem=problem)
    payer = EnvironmentPayer(**found, problem=problem)
    payer.missing = frozenset(("budget_envelope", "agent_id")) - found.keys()
    return payer


def settings(**given: Unpack[Settings]) -> tuple[Settings, RouteweilerError | None]:
    """Return ``given``, completed from the environment, as Routeweiler's arguments; and the error of a variable, or None.

    A setting whose variable can't be used is left out. One error names all such variables.
    """
    found: Settings = {**given}
    problems: list[RouteweilerError] = []
    try:
        if "budget_envelope" not in given:
            found["budget_envelope"] = env_settings.budget()
    except env_settings.VariableError as error:  # a budget that isn't understood must not become no budget
        problems.append(BudgetError(str(error), advice=f"Correct {error.name}."))
    try:
        if "agent_id" not in given:
            found["agent_id"] = env_settings.agent_id()
    except env_settings.VariableError as error:
        problems.append(BudgetError(str(error), advice=f"Correct {error.name}."))
    try:
        if "funding" not in given:
            found["funding"] = node()
    except FundingError as error:
        problems.append(error)
    except ValueError:  # an unknown network
        pass
    if "funding" not in given and (network := _unknown_network()) is not None:
        problems.append(network)
    if "trace_sink" not in given:
        found["trace_sink"] = env_settings.trace_sink()
    return found, _one_of(problems)


def _unknown_network() -> FundingError | None:
    """Return the error for a ``ROUTEWEILER_NETWORK`` that there isn't; None if it is unset or known."""
    from ..funding.wallet import NETWORKS

    unknown = [each for each in networks() if each not in NETWORKS]
    if not unknown:
        return None
    return FundingError(
        f"The environment's wallet can't be used: {env_vars.NETWORK} is {wallets.shown_name(unknown[0])}, and the networks are "
        f"{', '.join(NETWORKS)}.",
        advice=f"Correct {env_vars.NETWORK}.",
    )


def _one_of(problems: list[RouteweilerError]) -> RouteweilerError | None:
    """Return an error that says what all of ``problems`` say, of the kind of the first; None if there are none."""
    if len(problems) < 2:
        return problems[0] if problems else None
    what = " ".join(f"{each.what.rstrip('.')}." for each in problems)
    return type(problems[0])(what, advice=" ".join(each.advice for each in problems if each.advice))


def node() -> list[LightningFundingSource]:
    """Return funding sources for the wallet that the environment names. Nothing is connected.

    Without ``ROUTEWEILER_NETWORK`` there is a source for each network. A payment uses the source of the invoice's network, which
    asks the wallet for its network before it pays.

    Raises: FundingError if no wallet is named or its variables can't be used; ValueError for an unknown network.
    """
    from ..funding.source import LightningFundingSource

    client = wallets.client()
    return [LightningFundingSource(client=client, network=network) for network in networks()]


def networks() -> tuple[str, ...]:
    """Return the network that ``ROUTEWEILER_NETWORK`` names; all networks if it is unset."""
    from ..funding.wallet import NETWORKS

    named = os.environ.get(env_vars.NETWORK)
    return (named,) if named else NETWORKS
