"""The base class of all trace sinks. It makes sure that a trace that can't be written never loses a payment or a response.

Nor does it hold one up for long: whatever an event has to wait for (another thread, a lock of another process, a pipe that nobody
reads), it waits for at most `WAIT_S_MAX`, and after a wait in vain the next events hardly wait until one is written again. Only a
write that the system itself doesn't end, to a dead network disk for instance, has no bound for the thread that is in it.

How events are stored, and how several writers share one file, is left to `sink_jsonl` and `sink_sqlite`; what an event contains to
`schema`.
"""

from __future__ import annotations

import copy
import json
import os
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from .._core.deadline import monotonic_s
from .._core.files import printable
from .._core.forks import importing, in_child
from .._core.log import log
from .._core.secret_text import problem_of_path, shown
from .free_call import Labels, free_call_text
from .redaction import redacted, redacted_url
from .schema import TraceEvent, new_id

#: The encoder writes ASCII only. So no lone surrogate gets into a file, and no character that some reader takes for the end of a
#: line.
_to_json = json.JSONEncoder(separators=(",", ":")).encode

UrlMode = Literal["raw", "drop"]

#: The most that one event waits, in seconds, for everything together. Then it is lost.
WAIT_S_MAX = 3.0
#: The most that one event waits, in seconds, after one that waited in vain.
STUCK_WAIT_S_MAX = 0.2


class TraceSink(ABC):
    """Writes trace events to a file. `TraceSink.jsonl` and `TraceSink.sqlite` make one.

    ``redact=True`` leaves out preimages, query strings and fragments, error messages and invoice descriptions. ``url_mode="drop"``
    leaves out all URLs (they become null). user:password@ is never written.

    Threads may share a sink, and it survives a fork. Copies and unpickled sinks write to the same file. Making a sink touches no
    file: the file is opened at the first event and created with mode 0600 (its folder with 0700). A file that exists keeps its
    mode: if others can read it, a warning says so, and if every user can write to it, nothing is written. If the file was moved or
    deleted, a new one is created, so that logs can be rotated.
    """

    #: Whether `_write` needs nothing of an event but its text.
    _takes_text = False

    def __init__(self, path: str | os.PathLike[str], redact: bool = False, url_mode: UrlMode = "raw") -> None:
        """Make a sink for the file ``path``. A relative path is resolved now, against the current folder; ``~`` is expanded.

        Raises: ValueError for an unknown ``url_mode``, or a ``path`` that looks like a secret.
        """
        if url_mode not in ("raw", "drop"):
            raise ValueError(f"url_mode must be 'raw' or 'drop', not {shown(url_mode)}")
        if (problem := problem_of_path("The trace", path)) is not None:
            raise ValueError(problem)
        expanded = os.path.expanduser(os.fsdecode(path))
        try:
            self.path = Path(os.path.abspath(expanded))
        except OSError:  # the current folder was deleted
            self.path = Path(expanded)
        self.redact = redact
        self.url_mode: UrlMode = url_mode
        self._lock = threading.RLock()
        #: Id of the thread that is writing an event. None if none is.
        self._writer: int | None = None
        #: Until when the event that is being written may wait, by `monotonic_s`.
        self._deadline_s = 0.0
        #: Whether this sink stands in for another one that the same thread is writing to.
        self._is_nested = False
        #: Whether the last event waited in vain.
        self._is_stuck = False
        #: Whether to close the file once the event that is being written is written.
        self._close_later = False
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

        Raises no Exception, and takes at most `WAIT_S_MAX` seconds. An event that can't be written is lost; each loss is logged,
        and the first of a sink is also a `RuntimeWarning`.
        """
        try:
            payload = redacted(event.to_json_dict(), redact=self.redact, drop_urls=self.url_mode == "drop")
            text = _to_json(payload)
            self._write_in_turn(event.event_id, payload, text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the payment and the response matter more
            with suppress(Exception):
                payment = getattr(event, "payment", None)
                paid = f" of payment {payment.payment_hash}" if payment is not None else ""
                self._warn_of_loss(f"{getattr(event, 'request_id', None)}{paid}", error)
            return False
        return True

    def emit_free_call(self, labels: Labels, method: str, url: str, http_status: int, started_s: float) -> bool:
        """Do what `emit` does with the event of a call that is now over, met no challenge, used no token, and raised nothing.

        Return False, and do nothing, if the call isn't plain, or if a program's own code is to get the event. Raises no Exception.
        """
        if not self._takes_text or getattr(self.emit, "__func__", None) is not _emit:
            return False
        try:
            if "@" in url:  # it may be that of a user info, which must be found
                return False
            shown_url = redacted_url(url, redact=self.redact, drop_urls=self.url_mode == "drop")
            request_id = new_id()
            text = free_call_text(request_id, labels, method, shown_url, http_status, started_s=started_s, ended_s=time.time())
        except Exception:  # noqa: BLE001 - whatever it is, building the event meets it too, and tells of it
            return False
        try:
            self._write_in_turn("", {}, text)
        except Exception as error:  # noqa: BLE001 - as in `emit`
            with suppress(Exception):
                self._warn_of_loss(request_id, error)
        return True

    def reports(self, payment_hash: str) -> bool:
        """Return whether the trace holds an event that reports the payment: one whose ``payment`` isn't ``reused``.

        Asked only for a payment whose call died before it noted in the ledger that its event is written. Raises no Exception. False
        as well if the trace can't be read.
        """
        try:
            return any(_reports(text, payment_hash) for text in self._find(payment_hash))
        except Exception as error:  # noqa: BLE001 - as in `emit`
            log.warning("whether the trace %s reports payment %s can't be read: %s", self.path, payment_hash, error)
            return False

    @property
    def keeps_events(self) -> bool:
        """Whether events are written anywhere. False for a sink that only looks at them."""
        return True

    def close(self) -> None:
        """Close the file. May be called twice. A later event opens the file again, because other sessions may share the sink."""
        if self._writer == threading.get_ident():  # a signal handler or finalizer, in the midst of a write
            self._close_later = True
            return
        if self._lock.acquire(timeout=WAIT_S_MAX):  # else a thread hangs in a write: the system closes the file
            try:
                self._close()
            finally:
                self._lock.release()

    def _write_in_turn(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        """Write one event when no other thread writes to this sink.

        Raises: TimeoutError if it had to wait for too long; any Exception of `_write`.
        """
        began_s = monotonic_s()
        if self._writer == threading.get_ident():
            # The call of a signal handler or finalizer, in the midst of a write: the sink's state is half changed, so use another.
            other = copy.copy(self)
            try:
                other._is_nested = True
                other._deadline_s = began_s + STUCK_WAIT_S_MAX
                other._write(event_id, payload, text)
            finally:
                other._close()
            return
        held = False
        try:
            held = self._lock.acquire(timeout=STUCK_WAIT_S_MAX if self._is_stuck else WAIT_S_MAX)
            if not held:
                raise TimeoutError("another thread is still writing to it")
            self._writer = threading.get_ident()
            self._deadline_s = began_s + WAIT_S_MAX
            if self._is_stuck:  # noticed by another thread, perhaps, while this one waited for the lock
                self._deadline_s = min(self._deadline_s, monotonic_s() + STUCK_WAIT_S_MAX)
            self._write(event_id, payload, text)
            self._is_stuck = False
        except TimeoutError:
            self._is_stuck = True
            raise
        finally:
            if held:
                self._writer = None
                if self._close_later:
                    self._close_later = False
                    self._close()
                self._lock.release()

    @abstractmethod
    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        """Write one event. ``text`` is ``payload`` as JSON. Called while the sink's lock is held; may raise any Exception.

        A sink whose `_takes_text` is True may get the text alone.

        Raises TimeoutError if something that others have to do is still missing at ``_deadline_s``.
        """

    def _find(self, payment_hash: str) -> Iterable[str | bytes]:
        """Yield the written events that may be about a payment, as JSON. May raise any Exception."""
        return ()

    @abstractmethod
    def _close(self) -> None:
        """Close the file if it is open."""

    @abstractmethod
    def _forget_after_fork(self) -> None:
        """In a forked child, give up the file that the parent opened, without any effect on the parent."""

    def _warn_of_loss(self, event: str, error: Exception) -> None:
        cause = f"{type(error).__name__}: {error}"
        advice = getattr(error, "advice", None)
        loss = f"trace event {event} is lost: {printable(self.path)} can't be written ({cause})"
        loss += f". {advice.rstrip('.')}" if isinstance(advice, str) else ""
        log.warning("%s. The call itself isn't affected, and the ledger has its payment.", loss)
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


#: What writes an event, unless a program has put something of its own in its place.
_emit = TraceSink.emit


def _reports(text: str | bytes, payment_hash: str) -> bool:
    try:
        payment = json.loads(text)["payment"]
        return bool(payment["paymentHash"] == payment_hash and payment["reused"] is False)
    except (ValueError, TypeError, KeyError):  # half a line, or one that somebody else wrote
        return False


_sinks: weakref.WeakSet[TraceSink] = weakref.WeakSet()


@in_child
def _renew_after_fork() -> None:
    for sink in list(_sinks):
        sink._lock = threading.RLock()  # a thread of the parent may have held the old one, and doesn't exist here
        sink._writer = None
        with suppress(Exception):
            sink._forget_after_fork()
