"""How long a server may keep a call waiting, however slowly it sends. A socket's own timeout begins anew with each byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import connection, connectionpool

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


# Named as in urllib3: errors' texts have the names.
class HTTPConnection(connection.HTTPConnection):
    """A connection whose answers' heads arrive within `HEAD_S_MAX`."""

    def getresponse(self) -> Any:
        """Wait for the answer. Raises: TimeoutError if its head takes too long."""
        with Watch(None if self.sock is None else self.sock.fileno(), HEAD_S_MAX) as watch:
            try:
                response = super().getresponse()
            except Exception:
                if not watch.expired:
                    raise
        if watch.expired:
            raise TimeoutError(f"the answer's head took longer than {HEAD_S_MAX:g} s")
        return response


class HTTPSConnection(HTTPConnection, connection.HTTPSConnection):
    """The same, over TLS."""


class HTTPConnectionPool(connectionpool.HTTPConnectionPool):
    """Connections to one server."""

    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(connectionpool.HTTPSConnectionPool):
    """Connections to one server, over TLS."""

    ConnectionCls = HTTPSConnection


def watch_heads(adapter: HTTPAdapter) -> None:
    """Let the answers that come through ``adapter``, which hasn't sent anything yet, have their heads arrive in `HEAD_S_MAX`."""
    pools = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
    adapter.poolmanager.pool_classes_by_scheme = pools
    inherited = adapter.proxy_manager_for

    def proxy_manager_for(proxy: str, **options: Any) -> Any:
        manager = inherited(proxy, **options)
        manager.pool_classes_by_scheme = pools
        return manager

    adapter.proxy_manager_for = proxy_manager_for  # type: ignore[method-assign]
