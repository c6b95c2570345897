"""Which call reports a payment to the trace, so that no two calls report the same one.

The ledger row says whether a payment is reported. Any call that finds a settled and unreported payment reports it, because the call
that settled it may have ended in a crash. That alone isn't enough:
  1. Call A settles a payment. Its trace event is written only when the call ends.
  2. Call B, in another thread, process or machine, finds the row settled and unreported, and reports it too.
So whoever settles a payment claims its report in the same transaction, for `ledger.ledger.CLAIM_S`. Others take the claim over only
once it has run out, or once its process is known to be dead.

The ledger knows which *process* has a claim. Which *call* of this process has it is kept here. What is reported, and how, is left
to `paywall.call_record`.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

from .._core.forks import in_child

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow

#: Payment hash → id of the thread that claimed its report. A call, or a recovery, stays in one thread from beginning to end.
claimed: dict[str, int] = {}
#: Reentrant, so that a signal handler or finalizer in the middle of it can't wait for its own thread.
_lock = threading.RLock()

#: The name of this process in the ledger, made when it is first needed.
_claimant: str | None = None


def this_claimant() -> str:
    """Return the name under which this process claims reports: ``machine/pid/time of its start/random``."""
    global _claimant
    if _claimant is None:
        pid = os.getpid()
        _claimant = f"{_machine()}/{pid}/{_started(pid)}/{os.urandom(8).hex()}"
    return _claimant


def claim(payment_hash: str) -> bool:
    """Claim the report of a payment for this call. Return False if a call of this process has claimed it already."""
    with _lock:
        if payment_hash in claimed:
            return False
        claimed[payment_hash] = threading.get_ident()
        return True


def is_claimed_here(payment_hash: str) -> bool:
    """Return whether this thread has claimed the report of a payment."""
    return claimed.get(payment_hash) == threading.get_ident()


def claim_in(ledger: Ledger, row: PaymentRow) -> PaymentRow | None:
    """Claim the report of ``row``, which this process hasn't settled, in the ledger too. Return the row, or None.

    None means that the payment is reported, or that another process is about to report it.

    Raises: LedgerError.
    """
    dead = row.claimant if row.claimant is not None and is_dead(row.claimant) else None
    return ledger.claim_report(row.payment_hash, this_claimant(), instead_of=dead)


def is_dead(claimant: str) -> bool:
    """Return whether the process that ``claimant`` names is known to run no more. False if it is of another machine."""
    machine, _, rest = claimant.partition("/")
    pid, _, rest = rest.partition("/")
    started = rest.partition("/")[0]
    if claimant == _claimant or machine != _machine() or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return True  # an earlier process had this number, or it was this one's parent before a fork without Python's knowledge
    if not _runs(int(pid)):
        return True
    return started != _started(int(pid))  # the system has given the number to another process since


def release(payment_hash: str) -> None:
    """Release this thread's claim, since the payment is reported or couldn't be. A claim of another thread stays."""
    with _lock:
        if claimed.get(payment_hash) == threading.get_ident():
            del claimed[payment_hash]


def release_all() -> None:
    """Release all claims of this thread. Called when no call of the thread is in progress any more, however the last one ended."""
    this_thread = threading.get_ident()
    with _lock:
        for payment_hash in [each for each, owner in claimed.items() if owner == this_thread]:
            del claimed[payment_hash]


def _machine() -> str:
    """Return a name for this machine and, where the system tells it, for its process numbers: containers have their own."""
    try:
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        space = ""
    return f"{socket.gethostname()}:{space}".replace("/", "_")


def _started(pid: int) -> str:
    """Return when the process ``pid`` was started, as the system counts it, or an empty text if it doesn't tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[19].decode()  # proc(5): field 22, "starttime"
    except (OSError, IndexError):
        return ""


def _runs(pid: int) -> bool:
    """Return whether the process ``pid`` of this machine runs, or may run."""
    if os.name == "nt":
        return True  # os.kill() would end it. The claim runs out by itself
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[:1] != [b"Z"]  # killed, and not yet collected by its parent
    except OSError:
        return True


@in_child
def _start_over_after_fork() -> None:
    # The parent's calls report the parent's payments. Their threads don't exist here, nor does a thread that may have the lock.
    global _lock, _claimant
    _lock = threading.RLock()
    _claimant = None
    claimed.clear()
