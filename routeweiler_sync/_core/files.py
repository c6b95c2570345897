"""Open files that only their user may read, and SQLite files that several processes use. Their content is left to the callers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

#: The shortest pause before SQLite is asked again. A random pause, up to ten times as long, keeps waiting processes out of step.
_RETRY_PAUSE_S = 0.005


def open_private(path: Path, *, exclusive: bool = False) -> int:
    """Open ``path`` for reading and appending and return its descriptor. A new file gets mode 0600, its new folders 0700.

    Raises: OSError; FileExistsError with ``exclusive`` if the file exists.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if exclusive else 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def file_identity(path: Path) -> object:
    """Return a value that identifies the file that ``path`` names, links followed; None if there is no file.

    The value stays equal while the path names the same file. On Windows an open file can be neither deleted nor replaced, so the
    value is the path itself.
    """
    if os.name == "nt":
        return path
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def connect_sqlite(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Open the SQLite file ``path`` in autocommit mode, usable from any thread.

    The connection waits at most ``timeout_s`` seconds for the locks of others. The caller has imported sqlite3 under
    `forks.importing`.

    Raises: sqlite3.Error.
    """
    import sqlite3

    return sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)


def make_private_sqlite(path: Path) -> None:
    """Create an empty file for SQLite with mode 0600, unless the file exists. SQLite gives its -wal and -shm files the same mode.

    Raises: OSError.
    """
    with suppress(FileExistsError):
        os.close(open_private(path, exclusive=True))


def while_locked(step: Callable[[], object], *, timeout_s: float) -> None:
    """Run ``step``, and run it again while SQLite reports "locked", for at most ``timeout_s`` seconds.

    If several processes switch a new file to WAL at once, SQLite reports "locked" at once, despite its busy timeout (seen).

    Raises: what ``step`` raises.
    """
    import sqlite3

    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= ends_s:
                raise
        time.sleep(_RETRY_PAUSE_S * (1 + 9 * random.random()))  # noqa: S311 - no secret depends on it
