"""Report, once, that a payment takes long: in the log, in a notebook, and to whoever has asked for it, such as the command line.

A payment over Lightning may wait for minutes, and its caller sees nothing of that. What the wait ends with is left to `lifecycle`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
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
    for listener in (*listeners, *([_print_in_notebook] if in_notebook() else [])):
        with contextlib.suppress(Exception):  # a report that can't be shown is no reason to fail
            listener(text)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook (Jupyter and its like), where stderr is shown below the cell."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_shell is not None and getattr(get_shell(), "kernel", None) is not None


def _print_in_notebook(text: str) -> None:
    """Print ``text`` below the running cell, unless the notebook shows the log there, in which it is already."""
    if not (log.isEnabledFor(logging.INFO) and log.hasHandlers()):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - a notebook has no other place for it
