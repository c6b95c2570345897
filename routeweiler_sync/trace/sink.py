"""Where trace events go: the base of all sinks, and the promise that a trace never costs a payment or a response.

Which bytes are written, and how many writers share a file, is known to `sink_jsonl` and `sink_sqlite`.
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

#: Pure ASCII: neither a lone surrogate nor a character that some reader takes for a line's end gets into a file.
_to_json = json.JSONEncoder(separators=(",", ":")).encode

UrlMode = Literal["raw", "drop"]


class TraceSink(ABC):
    """Takes trace events; made by `TraceSink.jsonl` or `TraceSink.sqlite`.

    ``redact=True`` leaves out preimages, query strings and fragments, error messages and invoice descriptions;
    ``url_mode="drop"`` leaves out all URLs (null). user:password@ is never written.

    A sink may be shared by threads and survives a fork; copies and unpickled sinks write to the same file. The file is opened
    at the first event, created with mode 0600 (its folder with 0700); one that exists keeps its mode. One that was moved or
    deleted is made anew, so logs may be rotated. Making a sink touches no file.
    """

    def __init__(self, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> None:
        """``path``: relative ones are bound to the folder of now, ``~`` is the user's. Raises ValueError for an unknown mode."""
        if url_mode not in ("raw", "drop"):
            raise ValueError(f"url_mode is 'raw' or 'drop', not {url_mode!r}")
        self.path = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
        self.redact = redact
        self.url_mode: UrlMode = url_mode
        self._lock = threading.RLock()
        self._has_warned = False
        _sinks.add(self)

    @classmethod
    def jsonl(cls, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> TraceSink:
        """A file of JSON lines, one event a line, whole also where many processes write at once."""
        with importing:
            from .sink_jsonl import JsonlSink

        return JsonlSink(path, redact, url_mode)

    @classmethod
    def sqlite(cls, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> TraceSink:
        """An SQLite database with the table ``trace_events``, whose ``payload`` is the event's JSON.

        Don't move or delete the file while a process has it open; SQLite doesn't bear that.
        """
        with importing:
            from .sink_sqlite import SqliteSink

        return SqliteSink(path, redact, url_mode)

    def emit(self, event: TraceEvent) -> bool:
        """Write ``event``; blocks until the operating system has it. Returns whether it has.

        Raises no Exception: an event that can't be written is lost. The loss is told: a log record for each event, and one
        `RuntimeWarning` a sink.
        """
        try:
            payload = redacted(event.to_json_dict(), redact=self.redact, drop_urls=self.url_mode == "drop")
            text = _to_json(payload)
            with self._lock:
                self._write(event.event_id, payload, text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the payment and the response matter more
            with suppress(Exception):
                self._tell(event, error)
            return False
        return True

    def close(self) -> None:
        """Close the file. May be called again; an event after it opens the file anew, for other sessions may share the sink."""
        with self._lock:
            self._close()

    @abstractmethod
    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        """Write one event; ``text`` is ``payload`` as JSON. Called under the sink's lock; may raise."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the file, if it is open."""

    @abstractmethod
    def _forget_after_fork(self) -> None:
        """In a forked child: let go of what the parent opened, without touching the parent's file."""

    def _tell(self, event: TraceEvent, error: Exception) -> None:
        payment = getattr(event, "payment", None)
        paid = f" of payment {payment.payment_hash}" if payment is not None else ""
        cause = f"{type(error).__name__}: {error}"
        loss = f"trace event {getattr(event, 'request_id', None)}{paid} is lost: {self.path} can't be written ({cause})"
        _log.warning("%s. The call itself isn't affected; the ledger has its payment.", loss)
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


def open_private(path: Path, *, exclusive: bool = False) -> int:
    """A descriptor of ``path`` for reading and appending; a file not there is made with mode 0600, its folder with 0700.

    Raises OSError; FileExistsError where ``exclusive`` and there is a file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if exclusive else 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


_sinks: weakref.WeakSet[TraceSink] = weakref.WeakSet()


@in_child
def _renew_after_fork() -> None:
    for sink in list(_sinks):
        sink._lock = threading.RLock()  # the parent's may have been held by a thread that doesn't exist here
        with suppress(Exception):
            sink._forget_after_fork()
