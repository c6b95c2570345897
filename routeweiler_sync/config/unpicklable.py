"""The parts of a session that a pickle can't hold, and what stands for them in the copy.

A session is pickled whatever it was given: a lambda as ``confirm``, a wallet with a lock. Its copy uses tokens that are paid for,
and refuses to buy where a missing part would have had a say, rather than buy without asking. Which parts there are is left to
`payer`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from .._core.log import log
from ..errors import FundingError

if TYPE_CHECKING:
    from ..funding.lightning import LightningFundingSource
    from ..funding.wallet import PaymentStatus
    from ..trace.schema import TraceEvent

#: Pickling libraries that can hold more than `pickle` can, lambdas for instance.
_PICKLERS = ("cloudpickle", "dill")
#: Dask's own pickling. It tries `pickle`, and takes cloudpickle for what `pickle` can't hold.
_DASK = "distributed.protocol.pickle"
#: How many callers up such a library is looked for.
_MAX_FRAMES = 200


def why_not(part: object) -> str | None:
    """Return why the pickle that is being made can't hold ``part``, as a short text; None if it can."""
    try:
        _dumps()(part)
    except Exception as error:  # noqa: BLE001 - the part may be anything, and may raise anything
        # Not the error's text: it repeats what the part's repr says, which may be a secret.
        return f"{type(error).__name__} for a {type(getattr(part, 'client', part)).__name__}"
    return None


def _dumps() -> Callable[[Any], object]:
    """Return the ``dumps`` of the library that is pickling the session: `pickle`, unless it is one of `_PICKLERS` or Dask."""
    frame = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        if frame.f_back is None:
            break
        frame = frame.f_back
        name = frame.f_globals.get("__name__", "")
        if name == _DASK and "cloudpickle" in sys.modules:
            return sys.modules["cloudpickle"].dumps  # type: ignore[no-any-return]
        if any(each in name for each in _PICKLERS):
            dumps = frame.f_globals.get("dumps")
            if callable(dumps):
                return dumps  # type: ignore[no-any-return]
    return pickle.dumps


def refusal(lost: Mapping[str, str]) -> FundingError:
    """Return the error of a copy that may not buy. ``lost``: the arguments whose values it lacks, and why."""
    parts = "; ".join(f"{name} couldn't be pickled ({why})" for name, why in lost.items())
    return FundingError(
        f"This session is an unpickled copy, and {parts}: it uses tokens that are paid for, and buys nothing.",
        advice=f"Make a new session in this process; or give, as {' and '.join(lost)}, what can be pickled (such as a function "
        "of a module).",
    )


@dataclass
class LostClient:
    """Stands for a wallet that couldn't be pickled. It knows nothing, and pays nothing.

    ``why`` is the text of `why_not`.
    """

    why: str

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Refuse: raise FundingError."""
        self._refuse()

    def track_payment(self, payment_hash: bytes) -> PaymentStatus:
        """Refuse: raise FundingError."""
        self._refuse()

    def get_node_pubkey(self) -> str:
        """Refuse: raise FundingError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise refusal({"funding": self.why})


def kept_sources(sources: Sequence[LightningFundingSource]) -> tuple[LightningFundingSource, ...]:
    """Return ``sources``, with one that refuses in the place of each that can't be pickled."""
    from ..funding.lightning import LightningFundingSource

    kept = []
    for source in sources:
        why = why_not(source)
        kept.append(source if why is None else LightningFundingSource(client=LostClient(why), network=source.network))
    return tuple(kept)


class LostSink:
    """Stands for a trace that couldn't be pickled. It writes nothing, and says so in the log, once."""

    def __init__(self, why: str) -> None:
        self.why = why
        self._has_warned = False

    def emit(self, event: TraceEvent) -> bool:
        """Return False: the event isn't written, so that a payment of it isn't taken for reported."""
        if not self._has_warned:
            self._has_warned = True
            log.warning("trace_sink couldn't be pickled (%s): the calls of this unpickled session leave no trace line", self.why)
        return False

    def close(self) -> None:
        """Do nothing: there is no file."""
