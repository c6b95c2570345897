"""A new token's first use belongs to its buyer.

A token that opens a page but once would else be used up by those who waited for the purchase, and its buyer refused after paying.
"""

from __future__ import annotations

import threading
import time

from .._core.forks import in_child

#: So long at most a new token is kept for its buyer: a server may take its time to answer.
FIRST_USE_S = 5.0
#: By payment hash, tokens that their buyers are about to use: until when on the monotonic clock, and what tells of the end.
_first_uses: dict[str, tuple[float, threading.Event]] = {}


@in_child
def _start_over_after_fork() -> None:
    _first_uses.clear()


def begin_first_use(payment_hash: str) -> None:
    """Keep the token of ``payment_hash`` for its buyer until `end_first_use`, for `FIRST_USE_S` at most."""
    _first_uses[payment_hash] = (time.monotonic() + FIRST_USE_S, threading.Event())


def end_first_use(payment_hash: str) -> None:
    """Let the others have it."""
    kept = _first_uses.pop(payment_hash, None)
    if kept is not None:
        kept[1].set()


def in_first_use(payment_hash: str) -> bool:
    """Whether the token is kept for its buyer."""
    kept = _first_uses.get(payment_hash)
    return kept is not None and time.monotonic() < kept[0]


def wait_for_first_use(payment_hash: str) -> bool:
    """Wait until the token isn't kept for its buyer any more. Whether there was anything to wait for."""
    kept = _first_uses.get(payment_hash)
    if kept is None:
        return False
    kept[1].wait(max(0.0, kept[0] - time.monotonic()))
    return True
