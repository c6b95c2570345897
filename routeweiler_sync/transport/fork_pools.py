"""The HTTP connections of an adapter in a forked child.

The child inherits its parent's open connections: both would send on them, and each would read what the other was answered. A 402
would be lost, or somebody else's be paid. `requests` leaves that to its users; who pays can't.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary

from requests.adapters import BaseAdapter, HTTPAdapter

#: In which process an adapter that isn't ours was seen first.
_seen_in: WeakKeyDictionary[BaseAdapter, int] = WeakKeyDictionary()
#: Inherited pools, unused: to close one would wait for its lock, which a thread that didn't survive the fork may hold.
_inherited: list[Any] = []


def connect_anew(adapter: HTTPAdapter) -> None:
    """Use ``adapter``'s connections no more; it makes new ones."""
    _inherited.append((adapter.poolmanager, adapter.proxy_manager))
    adapter.proxy_manager = {}
    adapter.init_poolmanager(adapter._pool_connections, adapter._pool_maxsize, block=adapter._pool_block)


def connect_anew_if_forked(adapter: BaseAdapter) -> None:
    """`connect_anew`, where ``adapter``, which isn't one of ours, was used before the fork that made this process."""
    pid = os.getpid()
    try:
        seen_in = _seen_in.setdefault(adapter, pid)
    except TypeError:  # it can't be remembered: its class says what `==` means, or has slots
        return
    if seen_in != pid:
        _seen_in[adapter] = pid
        if isinstance(adapter, HTTPAdapter) and hasattr(adapter, "_pool_block"):
            connect_anew(adapter)
