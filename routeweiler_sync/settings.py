"""The keyword arguments of `Routeweiler`, which `wrap`, `install` and `PaywallAdapter` take too, and their types.

How their values are checked is left to `config.payer`, their meaning to the docstring of `Routeweiler`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import os

    from urllib3.util import Retry

    from .budgets.fmv import FmvProvider
    from .budgets.schema import BudgetEnvelope
    from .funding.lightning import LightningFundingSource
    from .ledger.ledger import Ledger
    from .payments.types import Quote
    from .policy.dsl import Policy
    from .trace.sink import TraceSink

Unpayable = Literal["raise", "return"]


class Default(Enum):
    """A default value that isn't made until it is needed."""

    #: The envelope ``default``: 1 000 sat a call, 10 000 an hour, 50 000 a day.
    ENVELOPE = "the safe default"

    def __repr__(self) -> str:
        return f"<{self.value}>"


class Settings(TypedDict, total=False):
    """The keyword arguments of a session. The docstring of `Routeweiler` says what each means."""

    funding: Sequence[LightningFundingSource]
    policy: Policy | None
    budget_envelope: BudgetEnvelope | str | Default | None
    trace_sink: TraceSink | str | os.PathLike[str] | None
    fmv_provider: FmvProvider | None
    agent_id: str | None
    session_id: str | None
    ledger: Ledger | str | os.PathLike[str] | None
    payment_timeout: float
    confirm: Callable[[Quote], bool] | None
    unpayable: Unpayable


class AdapterSettings(Settings, total=False):
    """The keyword arguments of `PaywallAdapter`: those of a session and of `requests.adapters.HTTPAdapter`."""

    pool_connections: int
    pool_maxsize: int
    max_retries: Retry | int | None
    pool_block: bool


#: The names of a session's arguments.
SETTINGS = frozenset(Settings.__annotations__)
