"""The one folder that an agent's pages may be written to. Names are plain, and no file is ever replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import requests

from .pages import Page, PageBrokenError, chunks

#: A longer page isn't written to a file.
FILE_BYTES_MAX = 100_000_000
#: Names that a file may have: the same on every system, without a path, without a leading dot.
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


class FolderError(ValueError):
    """A file can't be made where, or as, it was asked for."""


class Folder:
    """A folder that pages may be written to.

    Raises: FolderError if there is no such folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(os.path.realpath(os.path.expanduser(path)))
        if not self.path.is_dir():
            raise FolderError(f"there is no folder {path}")
        self._guard = threading.Lock()
        self._taken: set[str] = set()

    @contextlib.contextmanager
    def taken(self, name: str) -> Iterator[None]:
        """Keep ``name`` for one call: another would learn that it is taken only when it has paid for its page.

        Raises: FolderError, on entering, as `check`, and if another call has the name.
        """
        self.check(name)
        key = name.lower()  # the same file on many systems
        with self._guard:
            if key in self._taken:
                raise FolderError(f"another call is about to make {name}: choose another name")
            self._taken.add(key)
        try:
            yield
        finally:
            with self._guard:
                self._taken.discard(key)

    def check(self, name: str) -> None:
        """Raise FolderError if no file ``name`` can be made here: to be known before a page is paid for."""
        if not re.fullmatch(FILE_NAME, name) or name.endswith(".") or _DEVICES.fullmatch(name):
            raise FolderError("a file has a plain name of letters, digits, dots, - and _, without a folder, and begins with no dot")
        if os.path.lexists(self.path / name):
            raise FolderError(f"{name} exists already, and isn't replaced: choose another name")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise FolderError(f"{self.path} can't be written to")

    def write(self, name: str, response: requests.Response) -> Page:
        """Write the page of ``response`` to the file ``name``, whole or not at all, and close the response.

        Raises: PageBrokenError if the page doesn't arrive whole, is above `FILE_BYTES_MAX`, or can't be written.
        """
        part, size_bytes = self.path / f".{name}.{secrets.token_hex(8)}.part", 0
        try:
            with response, self._opened(part) as file:
                for chunk in chunks(response):
                    size_bytes += len(chunk)
                    if size_bytes > FILE_BYTES_MAX:
                        raise PageBrokenError(f"it is longer than {FILE_BYTES_MAX} bytes, and no longer one is written to a file")
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            self._publish(part, self.path / name)
        except OSError as problem:
            raise PageBrokenError(f"{name} can't be written: {problem.strerror or type(problem).__name__}") from problem
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        return Page(text=None, size_bytes=size_bytes, note=f"The page is in the file {self.path / name}.")

    @staticmethod
    @contextlib.contextmanager
    def _opened(path: Path) -> Iterator[IO[bytes]]:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            yield file

    @staticmethod
    def _publish(part: Path, path: Path) -> None:
        """Give the file its name, unless something has that name meanwhile."""
        try:
            os.link(part, path, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, "a file of this name was made meanwhile") from None
            os.rename(part, path)
