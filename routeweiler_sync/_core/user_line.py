"""Which line of the user's program a warning is about: the first outside of this package and of `requests`."""

from __future__ import annotations

import sys

_PACKAGE = __name__.partition(".")[0]


def callers_level() -> int:
    """Return the ``stacklevel`` of the user's line for a warning of the calling function."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("requests", _PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
