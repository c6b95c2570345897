"""What a session can be told: the keyword arguments of `Routeweiler`, which `wrap`, `install` and `PaywallAdapter` take too."""

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
    """Stands for what is made only when it is needed."""

    #: The envelope ``default``: 1 000 sat a call, 10 000 an hour, 50 000 a day.
    ENVELOPE = "the safe default"

    def __repr__(self) -> str:
        return f"<{self.value}>"


class Settings(TypedDict, total=False):
    """`Routeweiler` tells what each means."""

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
    """What `PaywallAdapter` takes by name: `requests.adapters.HTTPAdapter`'s arguments besides."""

    pool_connections: int
    pool_maxsize: int
    max_retries: Retry | int | None
    pool_block: bool


#: Their names.
SETTINGS = frozenset(Settings.__annotations__)
