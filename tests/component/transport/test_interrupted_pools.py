"""Ctrl-C while urllib3 takes a connection from its pool, or puts one back: the session goes on, as it must in a notebook."""

from __future__ import annotations

import contextlib
import copy
import pickle
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from routeweiler_sync import PaywallAdapter, Routeweiler
from routeweiler_sync.agents.waits import watch_heads
from routeweiler_sync.transport import pools
from routeweiler_sync.transport.fork_pools import connect_anew
from tests.support.http_server import server
from tests.support.proxies import HttpProxy, SocksProxy

#: Where the lock of a pool is taken and given back.
QUEUES = {queue.__file__, pools.__file__}
#: After so many seconds a call that was interrupted is taken to hang.
HANGS_S = 10


class OwnManager(PaywallAdapter):
    """Makes its own PoolManager, as requests' documentation shows."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        self.poolmanager = urllib3.PoolManager(num_pools=connections, maxsize=maxsize, block=block, **pool_kwargs)


def anew(adapter: PaywallAdapter) -> PaywallAdapter:
    connect_anew(adapter)
    return adapter


def watched(adapter: PaywallAdapter) -> PaywallAdapter:
    session = requests.Session()
    session.mount("http://", adapter)
    watch_heads(session)
    return adapter


ADAPTERS: dict[str, Callable[[], PaywallAdapter]] = {
    "new": PaywallAdapter,
    "unpickled": lambda: pickle.loads(pickle.dumps(PaywallAdapter())),
    "copied": lambda: copy.deepcopy(PaywallAdapter()),
    "forked": lambda: anew(PaywallAdapter()),
    "own manager": OwnManager,
    "agents'": lambda: watched(PaywallAdapter()),
}


@contextlib.contextmanager
def interrupted(at: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at call or return number ``at`` of the functions of a queue and its lock: handlers run there."""
    seen = [0]

    def trace(frame: Any, event: str, _: object) -> Any:
        filename = frame.f_code.co_filename
        if filename not in QUEUES and (filename != threading.__file__ or frame.f_back.f_trace is not trace):
            return None
        if event in ("call", "return"):
            seen[0] += 1
            if seen[0] == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


def left_locked(adapter: PaywallAdapter) -> bool:
    """Return whether a pool of ``adapter`` was left locked. It is unlocked then: else this process could never end."""
    locked = [
        pool.pool.mutex
        for manager in (adapter.poolmanager, *adapter.proxy_manager.values())
        for pool in manager.pools._container.values()
        if pool.pool.mutex.locked()
    ]
    for each in locked:
        each.release()
    return bool(locked)


@contextlib.contextmanager
def proxied(way: str) -> Iterator[dict[str, str]]:
    if way == "direct":
        yield {}
    elif way == "proxy":
        with HttpProxy({}) as proxy:
            yield {"http": proxy.url}
    else:
        pytest.importorskip("socks")
        with SocksProxy({}) as proxy:
            yield {"http": proxy.url("socks5")}


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "direct") for kind in ADAPTERS), ("new", "proxy"), ("unpickled", "proxy"), ("agents'", "proxy"), ("new", "socks")],
)
def test_an_interrupt_at_any_instant_leaves_no_pool_locked(session: Routeweiler, kind: str, way: str) -> None:
    """The next call to that server would hang for ever, whatever its timeout; so would the end of the program."""
    adapter = ADAPTERS[kind]()
    session.mount("http://", adapter)
    at = 0
    with server(lambda handler: (200, [], b"")) as url, proxied(way) as proxies:
        while True:
            assert session.get(url, proxies=proxies, timeout=30).status_code == 200
            at += 1
            hung: list[bool] = []
            watchdog = threading.Timer(HANGS_S, lambda: hung.append(left_locked(adapter)))  # noqa: B023 - ends with this round
            watchdog.start()
            with interrupted(at) as seen:
                session.get(url, proxies=proxies, timeout=30)
            watchdog.cancel()
            assert not hung, f"at {at}"
            assert not left_locked(adapter), f"at {at}"
            if seen[0] < at:
                break
    assert at > 10, "a connection was taken from the pool and put back"


class OwnQueue(queue.LifoQueue[Any]):
    """As a program's green threads may need it."""


class OwnPool(HTTPConnectionPool):
    QueueCls = OwnQueue


def test_a_pool_stays_what_it_is(session: Routeweiler) -> None:
    """Programs look for urllib3's classes and names, and for the queue that they have chosen themselves."""
    adapter = session.get_adapter("https://shop.example")
    for scheme, kind in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool)):
        pool = adapter.poolmanager.connection_from_host("shop.example", scheme=scheme)
        assert isinstance(pool, kind)
        assert type(pool).__qualname__ == kind.__name__
        assert str(pool) == str(kind("shop.example", pool.port))
    assert urllib3.poolmanager.pool_classes_by_scheme == {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
    assert type(requests.Session().get_adapter("http://shop.example").poolmanager.connection_from_host("h")) is HTTPConnectionPool
    manager = urllib3.PoolManager()
    manager.pool_classes_by_scheme = {"http": OwnPool}
    adapter.poolmanager = manager
    assert type(adapter.poolmanager.connection_from_host("shop.example").pool) is OwnQueue


def test_a_pool_that_blocks_waits_for_a_connection() -> None:
    """Else `pool_block=True` would raise at once, or open more connections than the server may bear."""
    connections = pools.Connections(1)
    connections.put(1)
    with pytest.raises(queue.Full):
        connections.put(2, block=False)
    with pytest.raises(queue.Full):
        connections.put(2, timeout=0.01)
    taken: list[Any] = []
    assert connections.get() == 1
    with pytest.raises(queue.Empty):
        connections.get(block=False)
    with pytest.raises(queue.Empty):
        connections.get(timeout=0.01)
    taker = threading.Thread(target=lambda: taken.append(connections.get(timeout=60)))
    taker.start()
    connections.put(3, timeout=60)
    taker.join(60)
    assert taken == [3]
    connections.put(4)
    putter = threading.Thread(target=lambda: connections.put(5, timeout=60))
    putter.start()
    assert connections.get() == 4
    putter.join(60)
    assert connections.get(timeout=60) == 5
