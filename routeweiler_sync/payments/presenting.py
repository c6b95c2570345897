"""Which call pays for and presents a charge, so that each charge goes with one request of one call.

A charge opens one request, once (`ledger.charges`). The ledger knows which call has claimed it, by the name that is made here. A
call gives its claims up when it ends. If it died instead, its claim is over as soon as its process is known to be dead; a claim of
another machine's call, once it has run out.
"""

from __future__ import annotations

import os
import time
from itertools import count
from typing import TYPE_CHECKING

from .._core.forks import in_child
from .._core.log import log
from ..errors import LedgerError
from .report_claims import is_dead, this_claimant

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.types import PaymentRow

#: The names of the calls of this process that may have claimed charges. Sets and counters change in one step, so no lock is needed.
_presenters: set[str] = set()
_numbers = count(1)


@in_child
def _start_over_after_fork() -> None:
    # The parent's calls go on in the parent: to this process, its names are those of another.
    _presenters.clear()


class Presenter:
    """A call, or a hop of it, as the one that presents charges. It has no name before it needs one."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._pid = 0
        self._claimed: list[str] = []

    @property
    def name(self) -> str:
        """The name in the ledger: ``machine/pid/time of its start/random#number``."""
        if self._name is None or self._pid != os.getpid():  # after a fork in its midst, the call goes on in the parent too
            name = f"{this_claimant()}#{next(_numbers)}"
            _presenters.add(name)
            self._name, self._pid, self._claimed = name, os.getpid(), []
        return self._name

    def holds(self, payment_hash: str) -> None:
        """Note that this call has claimed a charge, by its payment hash (hex), to give it up at the end."""
        _ = self.name  # first: it begins a new list in a forked child
        self._claimed.append(payment_hash)

    def claim(self, ledger: Ledger, row: PaymentRow) -> PaymentRow | None:
        """Claim the charge ``row``. Return its row as it is then, or None if another call has it, or it is spent.

        Raises: LedgerError.
        """
        if not is_free(row):
            return None
        self.holds(row.payment_hash)  # before: an interrupt may come between the write and its return
        return ledger.claim_charge(row.payment_hash, self.name, instead_of=row.presenter)

    def end(self, ledger: Ledger) -> None:
        """Give up all claims: the call is over. Raises nothing: the claims of a call that has ended are over in any case."""
        name, claimed = self._name, self._claimed
        if name is None or self._pid != os.getpid():
            return
        self._name, self._claimed = None, []
        try:
            for payment_hash in claimed:
                ledger.release_charge(payment_hash, name)
        except LedgerError as error:
            log.warning("the ledger can't note that a call has ended, which others find out by themselves: %s", error)
        finally:
            _presenters.discard(name)


def is_free(row: PaymentRow) -> bool:
    """Return whether no call has claimed the charge ``row``, or the one that has is over, as far as is known here."""
    presenter = row.presenter
    if presenter is None:
        return True
    if row.presented_until is not None and row.presented_until.timestamp() <= time.time():
        return True
    process = presenter.rpartition("#")[0]
    return presenter not in _presenters if process == this_claimant() else is_dead(process)
