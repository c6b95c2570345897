"""Report, once, that a payment takes long: in the log, and to whoever has asked for it, such as the command line.

A payment over Lightning may wait for minutes, and its caller sees nothing of that. What the wait ends with is left to `lifecycle`.
"""

from __future__ import annotations

import contextlib
from _thread import LockType, allocate_lock, start_new_thread  # as in `funding.worker_calls`: interrupts leave no lock taken
from collections.abc import Callable, Iterator

from .._core.log import log
from .._core.money import sats
from ..ledger.types import PaymentRow

#: After this many seconds without an outcome, a payment is reported as slow.
SLOW_S = 2.0
#: Functions that are called with the text of each report, in a thread of their own. Empty unless a program wants to show it: the
#: command line appends one if stderr is a terminal.
listeners: list[Callable[[str], object]] = []


@contextlib.contextmanager
def reported_if_slow(row: PaymentRow) -> Iterator[None]:
    """Report, once, if the block, which waits for the payment ``row``, takes longer than `SLOW_S`. Raises nothing of its own."""
    ended = allocate_lock()
    ended.acquire()
    with contextlib.suppress(RuntimeError):  # no thread can be started: then there is no report
        start_new_thread(_report_unless, (ended, row))
    try:
        yield
    finally:
        ended.release()


def _report_unless(ended: LockType, row: PaymentRow) -> None:
    """Report that ``row`` is slow, unless ``ended`` is released within `SLOW_S`."""
    if ended.acquire(timeout=SLOW_S):
        return
    text = (
        f"Still waiting for the payment of {sats(row.amount_msat)} to {row.origin}: the node has reported no outcome "
        f"for {SLOW_S:g} s (payment hash {row.payment_hash})."
    )
    log.info(text)
    for listener in list(listeners):
        with contextlib.suppress(Exception):  # a report that can't be shown is no reason to fail
            listener(text)
