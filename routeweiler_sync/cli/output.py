"""Where a page goes: stdout, or a file that only a complete page replaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from types import TracebackType
from typing import BinaryIO

import requests

_CHUNK_BYTES = 64 * 1024


class Output:
    """Takes a page, inside ``with``. ``path``: a file; None or ``-`` is stdout.

    Opened at once, so that a place that can't be written to is found before anything is paid; OSError. A file gets its name when
    `write` has all of the page, and stays as it was if that fails. Devices and pipes are written to as they are.
    """

    def __init__(self, path: str | None) -> None:
        self.is_file = path not in (None, "-")
        self._final: str | None = None
        self._stream: BinaryIO
        if path is None or path == "-":
            self._stream = sys.stdout.buffer
        elif os.path.exists(path) and not os.path.isfile(path):
            self._stream = open(path, "wb")  # noqa: SIM115 - closed at the end of our own with
        else:
            self._final = os.path.realpath(path)
            if os.path.exists(self._final) and not os.access(self._final, os.W_OK):
                raise PermissionError(f"{path} is read-only")
            self._part = f"{self._final}.{os.getpid()}.part"
            self._stream = open(self._part, "xb")  # noqa: SIM115

    def write(self, response: requests.Response) -> None:
        """Write the body of ``response``, whose ``raw`` is unread, as it comes. Raises OSError, urllib3's HTTPError."""
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            self._stream.write(chunk)
        self._stream.flush()
        if self._final is not None:
            self._stream.close()
            if os.path.exists(self._final):
                shutil.copymode(self._final, self._part)
            os.replace(self._part, self._final)
            self._final = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_file:
            self._stream.close()
        if self._final is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part)
