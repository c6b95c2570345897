"""What happened: one event a call, to a JSON-lines file or to SQLite. What the events say is the adapter's to decide.

Light on purpose: a sink's own module, and sqlite3, are imported when such a sink is made.
"""

from __future__ import annotations

from .schema import TraceChallenge, TraceError, TraceEvent, TraceOutcome, TracePayment
from .sink import TraceSink

__all__ = ["TraceChallenge", "TraceError", "TraceEvent", "TraceOutcome", "TracePayment", "TraceSink"]
