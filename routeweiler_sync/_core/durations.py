"""Lengths of time in words, for error texts."""

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
