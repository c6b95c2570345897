"""What an interrupt (Ctrl-C, an exit in a signal handler, a stopped notebook cell) in the midst of a payment means for the money.

The interrupt itself goes on unchanged; it is only explained.
"""

from __future__ import annotations

import contextlib
import warnings

from .._core.log import log
from .._core.money import sats
from .._core.user_line import callers_level
from ..ledger.types import PaymentRow


def warn_interrupted(row: PaymentRow, interrupt: BaseException) -> None:
    """Warn once, and write to the log, that ``interrupt`` came while the payment ``row`` is unfinished. Else do nothing.

    Raises nothing, even if the program turns warnings into errors: the interrupt itself must get through.
    """
    if not row.unfinished or getattr(interrupt, "_routeweiler_told", None) == row.payment_hash:
        return
    with contextlib.suppress(AttributeError, TypeError):  # a class with __slots__
        interrupt._routeweiler_told = row.payment_hash  # type: ignore[attr-defined]
    text = (
        f"Interrupted while the payment {row.payment_hash} of {sats(row.amount_msat)} to {row.origin} isn't finished: the node may "
        "still make it; call again (the same purchase goes on, and nothing is paid twice), or call session.recover()."
    )
    with contextlib.suppress(Exception):
        log.warning(text)
    with contextlib.suppress(Exception):
        warnings.warn(text, RuntimeWarning, stacklevel=callers_level())
