"""Lengths of time, and how far clocks are apart, in words for error texts."""

from __future__ import annotations

_UNITS = ((86_400 * 365, "year"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


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
