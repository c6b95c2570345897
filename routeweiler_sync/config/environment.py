"""What a session pays with when nobody tells it: the environment's node, budget, ledger and trace, shared by the whole process.

`routeweiler_sync.get` in a loop makes a session each time; node connection, ledger and tokens stay, until a variable changes.
"""

from __future__ import annotations

import atexit
import copy
import os
from typing import TYPE_CHECKING, Any

from .._core import env_vars
from .._core.forks import importing
from ..errors import BudgetError, FundingError, RouteweilerError
from ..funding.lnd.lndconnect import names_node
from . import env_settings
from .payer import Payer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..funding.lightning import LightningFundingSource
    from ..settings import Settings

NO_NODE = (
    "{url} wants to be paid, and no node is configured: the 402 is handed on as it is, and nothing was spent. Set "
    f"{env_vars.LNDCONNECT}, or {env_vars.LND_GRPC_HOST}, {env_vars.LND_TLS_CERT_PATH} and {env_vars.LND_MACAROON_PATH}. (This warning is given once.)"
)

_payers: dict[tuple[str | None, ...], Payer] = {}
#: Most of them that are kept. A program's tests may well set a ledger each; each has files and a connection open.
MAX_PAYERS = 4


@atexit.register
def _close_all() -> None:
    for each in list(_payers.values()):
        each.close()


class EnvironmentPayer(Payer):
    """A payer whose node is the environment's. Unpickled, it pays by the environment of where it is then."""

    #: Settings that the environment was to give and hasn't: it named no node, or what it said can't be understood.
    missing: frozenset[str] = frozenset()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pay_as(payer())

    def _pay_as(self, other: Payer) -> None:
        """Pay by the node of ``other``, the environment's; by its budget and with its trace where these are ``missing``."""
        self.funding, self.idle, self.problem, self._checkout = other.funding, other.idle, other.problem, None
        if not other.idle:
            if "budget_envelope" in self.missing:
                self.envelope = other.envelope
            if "trace_sink" in self.missing:
                self.trace_sink = copy.copy(other.trace_sink)  # each payer closes its own sink
            self.missing = self.missing & getattr(other, "missing", frozenset())


def payer(**given: Unpack[Settings]) -> Payer:
    """Who pays as the environment says, for one session. Connects and opens nothing.

    What is ``given`` holds instead. Where no node is named or given it is ``idle``. What is wrong with a variable is raised at the
    first 402, as an error of ours: traffic without 402 needs none of them.
    """
    if given:
        return made(**given)
    said = tuple(map(os.environ.get, env_vars.PAYER_VARIABLES))
    shared = _payers.get(said)
    if shared is None:
        with importing:
            shared = _payers.get(said) or made()
            _payers[said] = shared
            left = [_payers.pop(oldest) for oldest in list(_payers)[:-MAX_PAYERS]]
        for each in left:
            each.close()  # a session that is still there opens what it needs anew
    return shared.twin()


def made(**given: Unpack[Settings]) -> Payer:
    """One that is nobody else's."""
    if not given.get("funding") and not names_node(os.environ):
        idle = EnvironmentPayer(**given, idle=True)
        idle.missing = frozenset(("budget_envelope", "trace_sink")) - given.keys()
        return idle
    said, problem = settings(**given)
    if "funding" in given:
        return Payer(**said, problem=problem)
    payer = EnvironmentPayer(**said, problem=problem)
    payer.missing = frozenset(("budget_envelope",)) - said.keys()
    return payer


def settings(**given: Unpack[Settings]) -> tuple[Settings, RouteweilerError | None]:
    """What the environment says besides what is ``given``, as Routeweiler's arguments; and what is wrong with it, if anything."""
    said: Settings = {**given}
    problem: RouteweilerError | None = None
    try:
        if "funding" not in given:
            said["funding"] = node()
    except FundingError as error:
        problem = error
    except ValueError as error:  # an unknown network
        problem = FundingError(f"The environment's node can't be used: {error}.", advice=f"Correct {env_vars.NETWORK}.")
    try:
        if "budget_envelope" not in given:
            said["budget_envelope"] = env_settings.budget()
    except ValueError as error:  # a budget that isn't understood must not become no budget
        problem = BudgetError(str(error), advice="")
    if "trace_sink" not in given:
        said["trace_sink"] = env_settings.trace_sink()
    return said, problem


def node() -> list[LightningFundingSource]:
    """The node that the environment names. Connects nothing. FundingError where it names none, ValueError for what can't be one.

    Where ``ROUTEWEILER_NETWORK`` doesn't tell the network, a source stands for each: the one of the invoice's network is taken,
    and asks the node for its own before it pays.
    """
    from ..funding.lightning import LightningFundingSource
    from ..funding.lnd.client import LndClient

    client = LndClient.from_env()
    return [LightningFundingSource(client=client, network=network) for network in networks()]


def networks() -> tuple[str, ...]:
    """The network that the environment names, else all of them."""
    from ..funding.wallet import NETWORKS

    named = os.environ.get(env_vars.NETWORK)
    return (named,) if named else NETWORKS
