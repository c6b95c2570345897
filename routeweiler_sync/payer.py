"""What a session pays with: its settings, and what is made of them on the first 402 (ledger, checkout, token book).

Cheap to make: nothing is opened, read or connected until it is needed, and what only paying needs isn't imported before.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .tokens import TokenBook

if TYPE_CHECKING:
    from .budgets.fmv import FmvProvider
    from .budgets.ledger import Ledger
    from .budgets.schema import BudgetEnvelope
    from .checkout import Checkout, Quote
    from .funding.lightning import LightningFundingSource
    from .policy.dsl import Policy
    from .trace.sink import TraceSink

Unpayable = Literal["raise", "return"]


class Payer:
    """The paying part of a session. The arguments are `routeweiler_sync.Routeweiler`'s; ValueError for what can't be one.

    Pickled, copied or forked it keeps the settings and shares the ledger; everything else is made anew.
    """

    def __init__(
        self,
        *,
        funding: Sequence[LightningFundingSource] = (),
        policy: Policy | None = None,
        budget_envelope: BudgetEnvelope | str | None = None,
        trace_sink: TraceSink | None = None,
        fmv_provider: FmvProvider | None = None,
        agent_id: str | None = None,
        session_id: str | None = None,
        ledger: Ledger | str | os.PathLike[str] | None = None,
        payment_timeout: float = 60.0,
        confirm: Callable[[Quote], bool] | None = None,
        unpayable: Unpayable = "raise",
    ) -> None:
        if isinstance(payment_timeout, bool) or not isinstance(payment_timeout, (int, float)) or not payment_timeout > 0:
            raise ValueError(f"payment_timeout is a number of seconds above 0, not {payment_timeout!r}")
        if unpayable not in ("raise", "return"):
            raise ValueError(f"unpayable is 'raise' or 'return', not {unpayable!r}")
        self.funding = tuple(funding)
        self.policy = policy
        self.envelope = budget_envelope
        self.trace_sink = trace_sink
        self.fmv_provider = fmv_provider
        self.agent_id = agent_id
        self.session_id = session_id
        self.payment_timeout_s = float(payment_timeout)
        self.confirm = confirm
        self.unpayable = unpayable
        self._ledger_given = ledger
        self._started_s = time.time()
        self._make()

    def _make(self) -> None:
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None
        self._checkout: Checkout | None = None
        self.book = TokenBook(lambda: self.ledger)

    @property
    def ledger(self) -> Ledger:
        """The ledger; nothing is opened yet. Where none was given: ``$ROUTEWEILER_LEDGER``, else the user's state folder."""
        if self._ledger is None:
            from .budgets.ledger import Ledger
            from .config import ledger_url

            self._ledger = Ledger.open(self._ledger_given if self._ledger_given is not None else ledger_url())
        return self._ledger

    @property
    def checkout(self) -> Checkout:
        """The checkout, made on first use."""
        with self._lock:
            if self._checkout is None:
                from .checkout import Checkout

                self._checkout = Checkout(
                    funding=self.funding,
                    ledger=self.ledger,
                    envelope=self.envelope,
                    policy=self.policy,
                    fmv_provider=self.fmv_provider,
                    payment_timeout_s=self.payment_timeout_s,
                    confirm=self.confirm,
                    session_started_s=self._started_s,
                )
            return self._checkout

    @property
    def envelope_id(self) -> str | None:
        """The id of the envelope in force."""
        return self.envelope if self.envelope is None or isinstance(self.envelope, str) else self.envelope.id

    @property
    def policy_hash(self) -> str | None:
        """The hash of the policy in force."""
        return None if self.policy is None else self.policy.policy_hash

    def close(self) -> None:
        """Close what this payer opened for itself: ledger, trace, the nodes' connections. All open anew if used again."""
        if self._ledger is not None and self._ledger is not self._ledger_given:
            self._ledger.close()
        if self.trace_sink is not None:
            self.trace_sink.close()
        for source in self.funding:
            close = getattr(source.client, "close", None)
            if close is not None:
                close()

    def __getstate__(self) -> dict[str, Any]:
        dropped = {"_lock", "_ledger", "_checkout", "book"}
        state = {name: value for name, value in self.__dict__.items() if name not in dropped}
        state["_ledger_given"] = self.ledger.url  # also where the default applied: the copy shares this very ledger
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make()
