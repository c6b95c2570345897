"""Lengths of time: read from an argument, and in words for error texts, as is how far clocks are apart."""

from __future__ import annotations

import math
import numbers
from contextlib import suppress
from decimal import Decimal

from .secret_text import shown

_UNITS = ((86_400 * 365, "year"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


#: The longest timeout, in seconds. Nobody waits longer for one call, and the system's timers can't be set to much more.
TIMEOUT_S_MAX = 7 * 86_400


def read_seconds(name: str, given: object) -> float:
    """Return ``given``, the value of the argument ``name``, as a float.

    Raises: ValueError for anything but a number of seconds above 0 and up to `TIMEOUT_S_MAX`.
    """
    if isinstance(given, bool) or not isinstance(given, (numbers.Real, Decimal)):
        raise ValueError(f"{name} must be a number of seconds, not {shown(given)}")
    seconds = math.nan
    with suppress(OverflowError, ValueError):  # a huge number, or a signalling NaN
        seconds = float(given)
    if not 0 < seconds <= TIMEOUT_S_MAX:
        raise ValueError(f"{name} must be above 0 and at most {TIMEOUT_S_MAX} seconds, not {shown(given)}")
    return seconds


def in_words(seconds: float) -> str:
    """Return a length of time as people say it, rounded, for example "3 hours"."""
    for size, name in _UNITS:
        count = seconds / size
        if count >= 1.95:
            return f"{count:.0f} {name}s"
        if 0.98 <= count <= 1.05:
            return f"1 {name}"
    return "less than 2 seconds"


def clock_remark(expires_at: float, now_s: float) -> str:
    """Return what to add to the node's word that an invoice has expired, if by this machine's clock it hasn't; else "".

    ``expires_at`` and ``now_s`` are unix seconds. The clocks differ by at least what is left of the invoice's life.
    """
    left_s = expires_at - now_s
    return f" (this machine's clock is at least {in_words(left_s)} behind the node's)" if left_s >= 2 else ""
