"""Calls that run in a worker thread, so that an interrupt of the caller can't break them off halfway.

What would happen if grpc ran in the caller's thread:

1. An interrupt (Ctrl-C, or an exception raised by a signal handler) reaches the main thread at any instruction.
2. If that instruction is in grpc's Python code, one of grpc's locks stays taken for ever.
3. The next call on the same channel waits for that lock without end. grpc's deadline doesn't help: the thread that watches the
   deadlines waits for the same lock.

Here the caller touches nothing but a queue written in C, and waits no longer than its own bound. This module knows threads and
queues. What a call does, and what its silence means, is left to `lnd.channel`.
"""

from __future__ import annotations

import os
from _thread import start_new_thread  # Thread.start() waits for the thread, under a lock that an interrupt could leave taken
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from .._core.deadline import monotonic_s
from ..errors import RouteweilerError

_Item = TypeVar("_Item")

#: The longest single wait of a caller, in seconds. A signal that arrives just before a wait begins, or that the system gives to
#: another thread, doesn't end that wait: Python handles it, and raises KeyboardInterrupt, after it.
_WAIT_S_MAX = 0.5
#: Seconds that a caller who stops early waits for the worker thread to clean up.
_LEAVING_S_MAX = 1.0


class NoThreadError(Exception):
    """The system can't start another thread. The call was not begun."""


class SilentError(Exception):
    """The call didn't end in time. It goes on, or hangs, in its worker thread; what it has done isn't known."""


class _CallerLeftError(BaseException):
    """Ends the function in the worker thread once its caller no longer waits for it."""


class WorkerCall(Generic[_Item]):
    """One call of a function in a worker thread, as that function sees it.

    The function goes on only when the caller asks for the next item, so the two threads never work at the same time.
    """

    def __init__(self, deadline: float) -> None:
        #: Called from a third thread if the caller leaves while the function is working: makes the function end early.
        self.cancel: Callable[[], object] | None = None
        self._deadline = deadline
        # True asks the function to go on; False ends it.
        self._requests: SimpleQueue[bool] = SimpleQueue()
        # (whether it is the last one, an item or the exception that the function raised)
        self._items: SimpleQueue[tuple[bool, _Item | BaseException]] = SimpleQueue()

    def tell(self, item: _Item) -> None:
        """Pass ``item`` to the caller, and wait until the caller asks for the next one.

        Raises: the exception that ends the function, if the caller asks for none before the deadline.
        """
        self._items.put((False, item))
        self._wait()

    def _wait(self) -> None:
        try:
            goes_on = self._requests.get(timeout=max(self._deadline - monotonic_s(), 0))
        except Empty:
            goes_on = False
        if not goes_on:
            raise _CallerLeftError

    def _run(self, do: Callable[[WorkerCall[_Item]], _Item]) -> None:
        try:
            self._wait()
            result = do(self)
        except BaseException as error:  # noqa: BLE001 - every exception is passed on to the caller
            # This package's errors need no traceback, and its frames would keep alive what this thread is about to release.
            if isinstance(error, RouteweilerError):
                error.__traceback__ = error.__context__ = None
            self._items.put((True, error))
        else:
            self._items.put((True, result))

    def _next(self) -> tuple[bool, _Item]:
        self._requests.put(True)
        while True:
            left_s = self._deadline - monotonic_s()
            try:
                is_last, item = self._items.get(timeout=max(min(left_s, _WAIT_S_MAX), 0))
                break
            except Empty:
                if left_s <= _WAIT_S_MAX:
                    raise SilentError from None
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # otherwise the exception and its traceback, which holds this frame, would keep each other alive
        return is_last, item

    def _leave(self, *, in_tell: bool) -> None:
        """End the function. ``in_tell``: it is waiting in `tell`, not working."""
        self._requests.put(False)
        if in_tell:
            # It wakes up, cleans up and ends. This waits for the end: a caller that forks next then finds no lock taken.
            try:
                self._items.get(timeout=_LEAVING_S_MAX)
            except Empty:
                return
        elif self.cancel is not None:
            try:
                start_new_thread(self.cancel, ())
            except RuntimeError:  # no thread can be started, so the function ends at its own deadline
                return


def items_of(do: Callable[[WorkerCall[_Item]], _Item], *, timeout_s: float) -> Generator[_Item, None, None]:
    """Run ``do`` in a worker thread. Yield each item that it passes to `WorkerCall.tell`, and last the value that it returns.

    Closing the iterator early, or an interrupt of the caller, ends ``do``: at once if it is in `WorkerCall.tell`, otherwise through
    its ``cancel``, or else at its next `WorkerCall.tell`.

    Raises: NoThreadError before ``do`` has begun. SilentError if ``do`` is still working ``timeout_s`` seconds after the start.
    Whatever ``do`` raises.
    """
    worker_call: WorkerCall[_Item] = WorkerCall(monotonic_s() + timeout_s)
    is_last = in_tell = False
    try:
        try:
            start_new_thread(worker_call._run, (do,))
        except RuntimeError as error:
            raise NoThreadError(str(error)) from None
        while not is_last:
            in_tell = False
            is_last, item = worker_call._next()
            in_tell = True
            yield item
    finally:
        if not is_last:
            worker_call._leave(in_tell=in_tell)


class BegunCall(Generic[_Item]):
    """A call of ``do``, which passes no items, that works in a worker thread while its caller does something else.

    Raises: NoThreadError before ``do`` has begun.
    """

    def __init__(self, do: Callable[[WorkerCall[_Item]], _Item], *, timeout_s: float) -> None:
        self._pid = os.getpid()
        self._call: WorkerCall[_Item] = WorkerCall(monotonic_s() + timeout_s)
        self._call._requests.put(True)
        try:
            start_new_thread(self._call._run, (do,))
        except RuntimeError as error:
            raise NoThreadError(str(error)) from None

    @property
    def is_own(self) -> bool:
        """Whether it was begun in this very process: a forked child hasn't got the thread."""
        return self._pid == os.getpid()

    def result(self, until_s: float) -> _Item:
        """Wait for the end, not longer than until ``until_s``, and return the result. Call this once. Raises: as `result_of`."""
        self._call._deadline = min(self._call._deadline, until_s)
        return self._call._next()[1]


def result_of(do: Callable[[WorkerCall[_Item]], _Item], *, timeout_s: float) -> _Item:
    """Run ``do``, which passes no items, in a worker thread and return its result. Raises: as `items_of`."""
    (result,) = items_of(do, timeout_s=timeout_s)
    return result
