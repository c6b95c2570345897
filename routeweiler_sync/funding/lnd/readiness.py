"""Wait until lnd's wallet is unlocked and the node accepts orders. How its state is asked for is left to the connections."""

from __future__ import annotations

from collections.abc import Callable

import tenacity

from ..._core import retries
from ..._core.deadline import Deadline, monotonic_s
from .endpoint import Endpoint
from .stubs import routeweiler_lnd_pb2 as pb

#: The WalletStates of a node that will accept payment orders soon, without anybody's help.
_STARTING = frozenset({pb.UNLOCKED, pb.RPC_ACTIVE, pb.WAITING_TO_START})
#: A node that unlocks itself reports LOCKED for 0.1 to 0.3 s at each start (observed, lnd 0.21.2). One that reports it for longer
#: than this waits to be unlocked.
LOCKED_GRACE_S = 1.0
_START_POLL_S_MIN, _START_POLL_S_MAX = 0.05, 0.5


def await_start(ask_state: Callable[[], int | None], endpoint: Endpoint, timeout_s: float) -> None:
    """Return once the node accepts payment orders. Wait for at most ``timeout_s`` seconds.

    ``ask_state`` returns lnd's WalletState, None if this lnd doesn't report it. It may raise FundingError.

    Raises: FundingError with the cause if the node doesn't accept orders.
    """
    grace_ends = monotonic_s() + LOCKED_GRACE_S
    pauses = Deadline(timeout_s)
    polling = tenacity.Retrying(
        stop=lambda attempt: pauses.passed,
        wait=tenacity.wait_exponential(multiplier=_START_POLL_S_MIN, max=_START_POLL_S_MAX),
        retry=tenacity.retry_if_result(lambda state: state in _STARTING or (state == pb.LOCKED and monotonic_s() < grace_ends)),
        sleep=pauses.pause,
        retry_error_callback=lambda attempt: attempt.outcome.result() if attempt.outcome else None,
    )
    state = retries.run(polling, ask_state)
    if state == pb.LOCKED:
        raise endpoint.error("its wallet is locked", "unlock it with `lncli unlock`")
    if state == pb.NON_EXISTING:
        raise endpoint.error("it has no wallet yet", "create one with `lncli create`")
    if state in _STARTING:
        raise endpoint.error(f"it is still starting after {timeout_s:g} s", "try again in a moment")
