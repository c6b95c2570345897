"""The trace: one event for each call, written to a JSON-lines file or an SQLite database.

What a call's event contains is decided in `paywall.call_record`. Importing this package is cheap: a sink's own module, and sqlite3,
are imported when such a sink is made.
"""

from __future__ import annotations

from .schema import TraceChallenge, TraceError, TraceEvent, TraceOutcome, TracePayment
from .sink import TraceSink

__all__ = ["TraceChallenge", "TraceError", "TraceEvent", "TraceOutcome", "TracePayment", "TraceSink"]
