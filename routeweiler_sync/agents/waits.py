"""How long a server may keep a call waiting, however slowly it sends. A socket's own timeout begins anew with each byte."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import socket
import threading
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

#: For how long the head of an answer may arrive, in seconds.
HEAD_S_MAX = 120.0


class Watch:
    """Within ``with``, shut the connection ``fileno`` down after ``most_s`` seconds: who reads from it finds its end then.

    ``expired`` says whether that has happened. None as ``fileno``: there is no connection, and nothing is watched.
    """

    def __init__(self, fileno: int | None, most_s: float) -> None:
        self.expired = False
        self._timer = threading.Timer(most_s, self._expire)
        self._timer.daemon = True
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        if fileno is not None:
            with contextlib.suppress(OSError):  # a duplicate: the number itself may soon be another connection's
                self._socket = socket.socket(fileno=socket.dup(fileno))

    def __enter__(self) -> Watch:
        if self._socket is not None:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._guard:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _expire(self) -> None:
        with self._guard:
            if self._socket is not None:
                self.expired = True
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


def fileno_of(raw: Any) -> int | None:
    """Return the number of the connection that ``raw``, the body of an answer, comes from; None if there is none any more."""
    with contextlib.suppress(Exception):  # what a library for tests puts there may raise anything
        number = raw.fileno()
        return number if isinstance(number, int) and number >= 0 else None
    return None


#: Whether the heads of answers are watched in this context: in the calls of agents they are.
watching: contextvars.ContextVar[bool] = contextvars.ContextVar("routeweiler_sync_watching", default=False)
_guard = threading.Lock()


def watch_heads(session: requests.Session) -> None:
    """Let the heads of answers to ``session`` arrive within `HEAD_S_MAX` where `watching` is set. Elsewhere nothing changes.

    The first time for an adapter, the connections that it has open aren't used again.
    """
    with _guard:
        for adapter in list(session.adapters.values()):
            if isinstance(adapter, HTTPAdapter) and isinstance(adapter.poolmanager, urllib3.PoolManager):
                _watch(adapter.poolmanager)
                if not isinstance(adapter.proxy_manager, _Managers):
                    adapter.proxy_manager = _Managers()


def _watch(manager: urllib3.PoolManager) -> None:
    """Let ``manager`` make watched connections. They derive from what it makes now, which may go through SOCKS, or be a test's."""
    classes = manager.pool_classes_by_scheme
    if not all(issubclass(each, _WatchedPool) for each in classes.values()):
        manager.pool_classes_by_scheme = {scheme: type(each.__name__, (_WatchedPool, each), {}) for scheme, each in classes.items()}
        manager.clear()


class _Managers(dict[str, Any]):
    """What makes the connections through each proxy of an adapter."""

    def __setitem__(self, proxy: str, manager: urllib3.PoolManager) -> None:
        _watch(manager)
        super().__setitem__(proxy, manager)


class _WatchedPool:
    @property
    def ConnectionCls(self) -> Any:  # noqa: N802 - urllib3's name
        return _watched(super().ConnectionCls)  # type: ignore[misc]


class _WatchedConnection:
    sock: socket.socket | None

    def getresponse(self) -> Any:
        """Wait for the answer. Raises: TimeoutError if its head takes too long."""
        inherited = super().getresponse  # type: ignore[misc]
        if not watching.get():
            return inherited()
        with Watch(None if self.sock is None else self.sock.fileno(), HEAD_S_MAX) as watch:
            try:
                response = inherited()
            except Exception:
                if not watch.expired:
                    raise
        if watch.expired:
            raise TimeoutError(f"the answer's head took longer than {HEAD_S_MAX:g} s")
        return response


@functools.lru_cache(maxsize=16)
def _watched(connection: type) -> type:
    """Return a subclass of ``connection`` of the same name, which errors' texts have."""
    return type(connection.__name__, (_WatchedConnection, connection), {})
