"""The files that a report is written to. Only a complete one replaces a file, and only its user can read it (mode 0600)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from .._core.files import replace

#: The name of stdout.
STDOUT = "-"
#: A database's last changes are in files beside it, with these endings.
_SQLITE_ENDS = ("-wal", "-shm", "-journal")
_SQLITE_MAGIC = b"SQLite format 3\x00"


def problem_of(path: str, sources: Iterable[str]) -> str | None:
    """Return why a report can't or mustn't be written to ``path``; None if it can.

    ``sources`` are paths that must stay as they are. Looked at before anything is read: reading may take long.
    """
    if path == STDOUT:
        return None
    if os.path.isdir(path):
        return "it is a folder"
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        return "its folder doesn't exist"
    if not os.path.exists(path):
        return None if os.access(folder, os.W_OK) else "its folder is read-only"
    for source in sources:
        with suppress(OSError):
            if os.path.samefile(path, source):
                return "the report is read from it"
    if _is_database(path) or any(path.endswith(end) and _is_database(path[: -len(end)]) for end in _SQLITE_ENDS):
        return "it is a database"
    return None if os.access(path, os.W_OK) else "it is read-only"


def _is_database(path: str) -> bool:
    if os.path.isfile(path):
        with suppress(OSError), open(path, "rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    return False


@contextmanager
def written(path: str) -> Iterator[TextIO]:
    """Open ``path`` for a report: UTF-8, with line ends as they are written. A file is replaced at the end of the block.

    Raises: OSError; then a file that was there stays as it was, and nothing else is left.
    """
    if path == STDOUT:
        sys.stdout.flush()
        file = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="backslashreplace", newline="")
        try:
            yield file
            file.flush()
        finally:
            with suppress(OSError, ValueError):
                file.detach()
    elif os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as device:
            yield device
    else:
        final = os.path.realpath(path)
        fd, part = tempfile.mkstemp(dir=os.path.dirname(final), prefix=f".{os.path.basename(final)[:100]}.", suffix=".part")
        try:
            with open(fd, "w", encoding="utf-8", errors="backslashreplace", newline="") as complete:
                yield complete
            replace(part, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
