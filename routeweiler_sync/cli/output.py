"""Where `get` writes a page: stdout, or a file that only a complete page replaces."""

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
    """The destination of one page; a context manager. ``path`` names a file; None or ``-`` means stdout.

    The constructor opens the destination, so that one that can't be written to is found before anything is paid. A regular file is
    written as ``FILE.PID.part``, which replaces FILE once `write` has all of the page; if that fails, FILE stays as it was. Devices
    and pipes are written to directly. ``is_file`` is False for stdout.

    Raises: OSError if the destination can't be written to.
    """

    def __init__(self, path: str | None) -> None:
        self.is_file = path not in (None, "-")
        self._final: str | None = None
        self._stream: BinaryIO
        if path is None or path == "-":
            self._stream = sys.stdout.buffer
        elif os.path.exists(path) and not os.path.isfile(path):
            self._stream = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        else:
            self._final = os.path.realpath(path)
            if os.path.exists(self._final) and not os.access(self._final, os.W_OK):
                raise PermissionError(f"{path} is read-only")
            self._part = f"{self._final}.{os.getpid()}.part"
            self._stream = open(self._part, "xb")  # noqa: SIM115 - closed by __exit__

    def write(self, response: requests.Response) -> None:
        """Write the body of ``response`` as it arrives, undecoded. Its ``raw`` must be unread.

        Raises: OSError if it can't be written, urllib3's HTTPError if it doesn't arrive whole.
        """
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
