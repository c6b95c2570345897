"""Deeds done in a thread of their own, so that nothing that interrupts the caller can interrupt them.

An interrupt - Ctrl-C, an exception raised by a signal's handler - lands in the main thread at any instruction. In the midst of
grpc's Python code it leaves a lock of grpc's taken for ever, and the next call on that channel waits for it without end: grpc's
deadlines are told by a thread that waits for it, too. Here the caller touches nothing but a queue written in C, and waits no longer
than its own bound. Knows threads and queues; what the deed is, and what its silence means, is left to `connection`.
"""

from __future__ import annotations

import time
from _thread import start_new_thread  # a Thread's start waits for the thread, under a lock that an interrupt could leave taken
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ..errors import RouteweilerError

_Item = TypeVar("_Item")

#: A deed that has been told that its caller is gone needs so long at most to clean up; nobody waits longer for it.
_LEAVING_S_MAX = 1.0


class NoThreadError(Exception):
    """The system gives no thread. The deed was not begun."""


class SilentError(Exception):
    """The deed didn't end in time, and goes on, or hangs, in its thread. What it has done isn't known."""


class _LeftError(BaseException):
    """Ends a deed whose caller doesn't wait for it any more."""


class WorkerCall(Generic[_Item]):
    """What a deed sees of its caller. It goes on only where the caller asks for more, so that both are never at work at once."""

    def __init__(self, ends: float) -> None:
        #: Called in another thread if the caller leaves while the deed is at work: makes it end early.
        self.cancel: Callable[[], object] | None = None
        self._ends = ends
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._said: SimpleQueue[tuple[bool, _Item | BaseException]] = SimpleQueue()

    def tell(self, item: _Item) -> None:
        """Hand ``item`` to the caller, and wait until it asks for more. Where it doesn't, this raises what ends the deed."""
        self._said.put((False, item))
        self._wait()

    def _wait(self) -> None:
        try:
            goes_on = self._asked.get(timeout=max(self._ends - time.monotonic(), 0))
        except Empty:
            goes_on = False
        if not goes_on:
            raise _LeftError

    def _run(self, do: Callable[[WorkerCall[_Item]], _Item]) -> None:
        try:
            self._wait()
            last = do(self)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            if isinstance(error, RouteweilerError):  # it tells all by itself; its frames hold what is to be let go of here
                error.__traceback__ = error.__context__ = None
            self._said.put((True, error))
        else:
            self._said.put((True, last))

    def _next(self) -> tuple[bool, _Item]:
        self._asked.put(True)
        try:
            is_last, item = self._said.get(timeout=max(self._ends - time.monotonic(), 0))
        except Empty:
            raise SilentError from None
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # else its traceback and it would hold each other
        return is_last, item

    def _leave(self, *, waits: bool) -> None:
        self._asked.put(False)
        if waits:  # it is in tell(): it cleans up by itself, and a caller that forks next finds no lock taken
            try:
                self._said.get(timeout=_LEAVING_S_MAX)
            except Empty:
                return
        elif self.cancel is not None:
            try:
                start_new_thread(self.cancel, ())
            except RuntimeError:  # no thread: it ends at its own deadline then
                return


def items_of(do: Callable[[WorkerCall[_Item]], _Item], *, timeout_s: float) -> Generator[_Item, None, None]:
    """What ``do`` tells, and, last, what it returns; what it raises is raised here. It runs in a thread of its own.

    Raises NoThreadError, before ``do`` has begun, and SilentError ``timeout_s`` after the start. Closing the iterator early, and an
    interrupt of the caller, end the deed at its next `WorkerCall.tell`, or by its ``cancel``.
    """
    worker_call: WorkerCall[_Item] = WorkerCall(time.monotonic() + timeout_s)
    is_last = waits = False
    try:
        try:
            start_new_thread(worker_call._run, (do,))
        except RuntimeError as error:
            raise NoThreadError(str(error)) from None
        while not is_last:
            waits = False
            is_last, item = worker_call._next()
            waits = True
            yield item
    finally:
        if not is_last:
            worker_call._leave(waits=waits)


def result_of(do: Callable[[WorkerCall[_Item]], _Item], *, timeout_s: float) -> _Item:
    """As `items_of`, for a deed that tells nothing but its result."""
    (result,) = items_of(do, timeout_s=timeout_s)
    return result
