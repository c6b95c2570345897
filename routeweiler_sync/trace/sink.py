"""The base class of all trace sinks. It makes sure that a trace that can't be written never loses a payment or a response.

How events are stored, and how several writers share one file, is left to `sink_jsonl` and `sink_sqlite`; what an event contains to
`schema`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from .._core.forks import importing, in_child
from .redaction import redacted
from .schema import TraceEvent

_log = logging.getLogger("routeweiler_sync")

#: The encoder writes ASCII only. So no lone surrogate gets into a file, and no character that some reader takes for the end of a
#: line.
_to_json = json.JSONEncoder(separators=(",", ":")).encode

UrlMode = Literal["raw", "drop"]


class TraceSink(ABC):
    """Writes trace events to a file. `TraceSink.jsonl` and `TraceSink.sqlite` make one.

    ``redact=True`` leaves out preimages, query strings and fragments, error messages and invoice descriptions. ``url_mode="drop"``
    leaves out all URLs (they become null). user:password@ is never written.

    Threads may share a sink, and it survives a fork. Copies and unpickled sinks write to the same file. Making a sink touches no
    file: the file is opened at the first event and created with mode 0600 (its folder with 0700). A file that exists keeps its
    mode. If the file was moved or deleted, a new one is created, so that logs can be rotated.
    """

    def __init__(self, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> None:
        """Make a sink for the file ``path``. A relative path is resolved now, against the current folder; ``~`` is expanded.

        Raises: ValueError for an unknown ``url_mode``.
        """
        if url_mode not in ("raw", "drop"):
            raise ValueError(f"url_mode must be 'raw' or 'drop', not {url_mode!r}")
        self.path = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
        self.redact = redact
        self.url_mode: UrlMode = url_mode
        self._lock = threading.RLock()
        self._has_warned = False
        _sinks.add(self)

    @classmethod
    def jsonl(cls, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> TraceSink:
        """Make a sink that writes JSON lines, one event per line. Lines stay whole even if many processes write at once."""
        with importing:
            from .sink_jsonl import JsonlSink

        return JsonlSink(path, redact, url_mode)

    @classmethod
    def sqlite(cls, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> TraceSink:
        """Make a sink that writes to the table ``trace_events`` of an SQLite database. The column ``payload`` has the event's JSON.

        Don't move or delete the file while a process has it open: SQLite doesn't support that.
        """
        with importing:
            from .sink_sqlite import SqliteSink

        return SqliteSink(path, redact, url_mode)

    def emit(self, event: TraceEvent) -> bool:
        """Write ``event`` and return True once the operating system has it. Return False if the event couldn't be written.

        Raises no Exception. An event that can't be written is lost; each loss is logged, and the first of a sink is also a
        `RuntimeWarning`.
        """
        try:
            payload = redacted(event.to_json_dict(), redact=self.redact, drop_urls=self.url_mode == "drop")
            text = _to_json(payload)
            with self._lock:
                self._write(event.event_id, payload, text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the payment and the response matter more
            with suppress(Exception):
                self._warn_of_loss(event, error)
            return False
        return True

    def close(self) -> None:
        """Close the file. May be called twice. A later event opens the file again, because other sessions may share the sink."""
        with self._lock:
            self._close()

    @abstractmethod
    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        """Write one event. ``text`` is ``payload`` as JSON. Called while the sink's lock is held; may raise any Exception."""

    @abstractmethod
    def _close(self) -> None:
        """Close the file if it is open."""

    @abstractmethod
    def _forget_after_fork(self) -> None:
        """In a forked child, give up the file that the parent opened, without any effect on the parent."""

    def _warn_of_loss(self, event: TraceEvent, error: Exception) -> None:
        payment = getattr(event, "payment", None)
        paid = f" of payment {payment.payment_hash}" if payment is not None else ""
        cause = f"{type(error).__name__}: {error}"
        loss = f"trace event {getattr(event, 'request_id', None)}{paid} is lost: {self.path} can't be written ({cause})"
        _log.warning("%s. The call itself isn't affected, and the ledger has its payment.", loss)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{loss}. Further losses are only logged.", RuntimeWarning, stacklevel=3)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.path), self.redact, self.url_mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, redact={self.redact}, url_mode={self.url_mode!r})"

    def __del__(self) -> None:
        with suppress(Exception):
            self._close()


_sinks: weakref.WeakSet[TraceSink] = weakref.WeakSet()


@in_child
def _renew_after_fork() -> None:
    for sink in list(_sinks):
        sink._lock = threading.RLock()  # a thread of the parent may have held the old one, and doesn't exist here
        with suppress(Exception):
            sink._forget_after_fork()
