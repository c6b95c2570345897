"""New HTTP connection pools for adapters in a forked child process.

A forked child inherits its parent's open connections. If both processes sent on one, each would read answers to the other's
requests: a 402 would be lost, or the 402 of another request paid. `requests` leaves this to its users; a session that pays can't.
Locks and imports at a fork are left to `_core.forks`.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary

from requests.adapters import BaseAdapter, HTTPAdapter

#: The id of the process that last sent through a foreign adapter.
_seen_in: WeakKeyDictionary[BaseAdapter, int] = WeakKeyDictionary()
#: Inherited pools, kept but never used. Closing one could wait for ever for its lock, which a thread of the parent may have held.
_inherited: list[Any] = []


def connect_anew(adapter: HTTPAdapter) -> None:
    """Give ``adapter`` new, empty pools. The inherited ones are neither used again nor closed."""
    _inherited.append((adapter.poolmanager, adapter.proxy_manager))
    classes = getattr(adapter.poolmanager, "pool_classes_by_scheme", None)  # in agents' calls they bound how long an answer takes
    adapter.proxy_manager = type(adapter.proxy_manager)()
    adapter.init_poolmanager(adapter._pool_connections, adapter._pool_maxsize, block=adapter._pool_block)
    if classes is not None:
        adapter.poolmanager.pool_classes_by_scheme = classes


def connect_anew_if_forked(adapter: BaseAdapter) -> None:
    """Give a foreign ``adapter`` new pools if it was last used in another process, which this one was forked from."""
    pid = os.getpid()
    try:
        seen_in = _seen_in.setdefault(adapter, pid)
    except TypeError:  # no key for the dict: the class of ``adapter`` defines `==` or has slots
        return
    if seen_in != pid:
        _seen_in[adapter] = pid
        if isinstance(adapter, HTTPAdapter) and hasattr(adapter, "_pool_block"):
            connect_anew(adapter)
