"""Calls by tenacity that leave no garbage behind.

A `tenacity.Retrying` that has run refers to itself, and has a `threading.local`. Left to Python's garbage collector, it keeps what
its functions refer to; and Python 3.11 before 3.11.9 hangs for ever if that collector meets a `threading.local` inside
`sys._current_frames()`, which profilers call (Dask's workers do so all the time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")


def run(retrying: tenacity.Retrying, call: Callable[[], T]) -> T:
    """Return ``retrying(call)``, and take ``retrying`` apart: it can't be used again."""
    try:
        return retrying(call)
    finally:
        state = getattr(retrying, "iter_state", None)  # tenacity 8.2 has none, and doesn't refer to itself
        if state is not None:
            state.reset()
