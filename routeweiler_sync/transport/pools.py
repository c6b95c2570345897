"""urllib3's pools of connections, with a queue that an interrupted call can't leave locked.

urllib3 keeps a pool's connections in a `queue.LifoQueue`, whose `threading.Condition`s are written in Python. An exception of a
signal handler, Ctrl-C for instance, that is raised inside their ``__enter__`` or ``__exit__`` leaves the lock taken: the next call
to that server would wait for ever, and so would `close()` and the end of the process.
"""

from __future__ import annotations

import functools
import queue
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool


class Connections(queue.LifoQueue[Any]):
    """A `queue.LifoQueue` that takes its lock by ``with`` on the lock itself, where no signal handler can run in between.

    Only who has to wait for another thread's connection, in a pool that blocks, does it in the inherited way.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put ``item`` on top. Raises: queue.Full."""
        with self.mutex:
            if not 0 < self.maxsize <= self._qsize():
                self._put(item)
                self.unfinished_tasks += 1
                self.not_empty.notify()
                return
        if not block:
            raise queue.Full
        super().put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take what is on top. Raises: queue.Empty."""
        with self.mutex:
            if self._qsize():
                item = self._get()
                self.not_full.notify()
                return item
        if not block:
            raise queue.Empty
        return super().get(block, timeout)


#: The queues that urllib3 2 and 1.26 take if nobody chooses another.
STOCK_QUEUES = ("queue", "urllib3.util.queue")
#: The most classes of pools that are remembered: http and https, with and without SOCKS, and a program's own.
KINDS_MAX = 16


@functools.lru_cache(KINDS_MAX)
def _with_our_queue(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Return a subclass of ``pool`` with `Connections`, named like it: errors' texts have the name."""
    return type(pool.__name__, (pool,), {"QueueCls": Connections, "__module__": pool.__module__})


def keep_unlocked(manager: Any) -> None:
    """Let the pools that ``manager``, a PoolManager of urllib3, makes from now on have `Connections`.

    Pools for which somebody has chosen another queue keep that, and a manager that isn't urllib3's stays as it is.
    """
    classes = getattr(manager, "pool_classes_by_scheme", None)
    if isinstance(classes, dict):
        manager.pool_classes_by_scheme = {
            scheme: _with_our_queue(kind) if kind.QueueCls.__module__ in STOCK_QUEUES else kind for scheme, kind in classes.items()
        }
