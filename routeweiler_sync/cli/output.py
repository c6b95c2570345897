"""Where `get` writes a page: stdout, a device or pipe, or a file that only a whole page replaces.

What a broken-off download leaves for the next one (``--continue``) is left to `continued`, the bar to `progress`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import BinaryIO

import requests

from .._core.files import replace

#: A page is read in parts of this size.
CHUNK_BYTES = 64 * 1024
#: The most characters of a file's name that its temporary file's name has. File systems allow 255 bytes, 4 to a character.
_NAME_CHARS_MAX = 40

#: Called with the number of bytes of each part of the page that is written.
Wrote = Callable[[int], object]


def ignore(number: int) -> None:
    """Do nothing with ``number``."""


class Output:
    """A destination of one page, here stdout; a context manager, which opens it.

    It is opened before anything is fetched, so that one that can't be written to is found before anything is paid.

    Raises: on entering, OSError if the destination can't be written to.
    """

    #: Whether the page goes into a regular file.
    is_file = False
    #: Whether the page is where it should be.
    is_whole = False

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the request for the page needs besides."""
        return {}

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the page are there already, from an earlier download that broke off."""
        return 0

    def takes(self, response: requests.Response) -> bool:
        """Return whether `write` may be called with ``response``. If not, ask again: `headers` has changed."""
        return True

    def write(self, response: requests.Response, wrote: Wrote = ignore) -> None:
        """Write the body of ``response`` as it arrives, undecoded. Its ``raw`` must be unread.

        Raises: OSError if it can't be written, urllib3's HTTPError if it doesn't arrive whole.
        """
        with self._stdout() as stream:
            copy(response, stream, wrote)
            stream.flush()
        self.is_whole = True

    @contextlib.contextmanager
    def _stdout(self) -> Iterator[BinaryIO]:
        """Yield stdout. If it can't be written to, Python doesn't try once more at its end, which would change the exit code."""
        try:
            yield sys.stdout.buffer
        except OSError as error:
            if error.errno != errno.EPIPE:  # click sees to that
                with contextlib.suppress(OSError, ValueError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, sys.stdout.fileno())
                    os.close(null)
            raise

    def __enter__(self) -> Output:
        if sys.stdout is None:  # Python was started with stdout closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class DeviceOutput(Output):
    """A device or named pipe. It is written to directly, and never replaced."""

    is_file = True

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, response: requests.Response, wrote: Wrote = ignore) -> None:
        """Write the body of ``response``: see `Output.write`."""
        copy(response, self._stream, wrote)
        self._stream.close()
        self.is_whole = True

    def __enter__(self) -> Output:
        self._stream = open(self._path, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # what is still in its buffer after an error
            self._stream.close()


class FileOutput(Output):
    """A regular file. The page is written to a temporary file in the same folder, which replaces it once it is whole and on disk.

    Until then an existing file stays as it was, and if that moment doesn't come, nothing is left behind. A new file's mode is as
    the umask says; an existing one keeps its mode.
    """

    is_file = True

    def __init__(self, path: str) -> None:
        self._given = path
        self._final = os.path.realpath(path)
        self._part = ""

    def write(self, response: requests.Response, wrote: Wrote = ignore) -> None:
        """Write the body of ``response``: see `Output.write`."""
        copy(response, self._stream, wrote)
        self._replace()

    def _replace(self) -> None:
        """Put the temporary file, which is whole now, in the place of the file."""
        self._stream.flush()
        sync(self._stream.fileno())
        self._stream.close()
        if os.path.exists(self._final):
            # Without the bits that let a program run as another user: what a server sends isn't that program.
            os.chmod(self._part, stat.S_IMODE(os.stat(self._final).st_mode) & 0o777)
        with uninterrupted():
            replace(self._part, self._final)
            self._part, self.is_whole = "", True
        sync_folder(self._final)

    def _check_writable(self) -> None:
        """Find out whether the file may be replaced. Raises: OSError."""
        if os.path.isdir(self._final) or self._given.endswith((os.sep, os.altsep or os.sep)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.exists(self._final) and not os.access(self._final, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")

    def _new_mode(self) -> int:
        """Return the mode of a new temporary file, but for the umask: nobody may read it who mayn't read the file."""
        try:
            return stat.S_IMODE(os.stat(self._final).st_mode) & 0o666 | 0o600
        except OSError:
            return 0o666

    def __enter__(self) -> Output:
        self._check_writable()
        folder, name = os.path.split(self._final)
        with uninterrupted():
            part = os.path.join(folder, f"{name[:_NAME_CHARS_MAX]}.{secrets.token_hex(4)}.part")
            self._stream: BinaryIO = open(part, "xb", opener=lambda path, flags: os.open(path, flags, self._new_mode()))
            self._part = part
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with uninterrupted():
            with contextlib.suppress(OSError):  # what is still in its buffer can't be written: the disk is full
                self._stream.close()
            if self._part:
                with contextlib.suppress(OSError):
                    os.unlink(self._part)


def output_at(path: str | None, *, continues: str | None = None) -> Output:
    """Return the destination ``path``: stdout for None and ``-``, else a file.

    ``continues`` is the URL whose download may be continued, None if it must begin anew.

    Raises: ValueError if ``continues`` makes no sense there.
    """
    if path is None or path == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
        if continues is not None:
            raise ValueError("-C continues a file: name it by -o FILE.")
        return Output() if path is None or path == "-" else DeviceOutput(path)
    if continues is not None:
        from .continued import ContinuedOutput

        return ContinuedOutput(path, continues)
    return FileOutput(path)


def copy(response: requests.Response, stream: BinaryIO, wrote: Wrote) -> None:
    """Write the body of ``response`` to ``stream`` as it arrives. Raises: OSError, urllib3's HTTPError."""
    for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
        stream.write(chunk)
        wrote(len(chunk))


def sync(fd: int) -> None:
    """Wait until the file is on disk. Raises: OSError if it can't be written; not where the file system has no such thing."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(path: str) -> None:
    """Wait until the folder of ``path`` is on disk, with the new name in it. Raises nothing: the file itself is there."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            fd = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block, so that no file is forgotten between two steps."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
