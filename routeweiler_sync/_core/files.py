"""Open files that only their user may read, and SQLite files that several processes use. Their content is left to the callers.

Which files may be used is checked here too: whether others can read or write a file, and whether it has one name only. What follows
from that is left to the callers.
"""

from __future__ import annotations

import errno
import os
import random
import shlex
import stat
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .deadline import Deadline
from .log import log

if TYPE_CHECKING:
    import sqlite3

#: The shortest pause before SQLite is asked again. A random pause, up to ten times as long, keeps waiting processes out of step.
_RETRY_PAUSE_S = 0.005
#: How often a file is opened again if it is deleted and created by others in between.
_MAX_OPENS = 5
#: How long `replace` waits on Windows for programs that have the file open, such as virus scanners and indexers.
REPLACE_S_MAX = 2.0
#: What SQLite appends to the name of a database to name its write-ahead log, its shared memory and its rollback journal.
SIDE_FILES = ("-wal", "-shm", "-journal")
#: Where Linux lists the mounts that this process sees. Other systems have no such file.
_MOUNTS = "/proc/self/mountinfo"
#: Paths below these lead to files that somebody else has opened, /dev/stdout for instance. Their modes aren't ours to judge.
_OPENED_BY_OTHERS = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")
#: The files that `require_private` has warned of in this process.
_warned: set[str] = set()


class UnsafeFileError(OSError):
    """A file that mustn't be used. The text says why; ``advice`` says what to do."""

    def __init__(self, why: str, *, advice: str) -> None:
        super().__init__(why)
        self.advice = advice

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return _unsafe, (str(self), self.advice)


def _unsafe(why: str, advice: str) -> UnsafeFileError:
    return UnsafeFileError(why, advice=advice)


def open_private(path: Path) -> int:
    """Open ``path`` for reading and appending and return its descriptor. A new file gets mode 0600, its new folders 0700.

    Raises: OSError.
    """
    flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
    for _ in range(_MAX_OPENS):
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process was faster: open what it has made
                return create_private(path)
    raise OSError(f"{path} is deleted faster than it can be opened")


def create_private(path: Path) -> int:
    """Create the file ``path`` and return its descriptor, open for reading and appending. See `open_private`.

    A symbolic link that leads to no file yet is followed, also through further links: the file is created where the last one leads.

    Raises: OSError; FileExistsError if the file exists.
    """
    target = Path(os.path.realpath(path))  # with O_EXCL, the system itself doesn't follow a link
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(target, flags, 0o600)
    except FileNotFoundError:
        _make_folders(target.parent)
        fd = os.open(target, flags, 0o600)
    if os.name != "nt":
        with suppress(OSError):  # a file system without modes
            os.fchmod(fd, 0o600)  # the umask may have taken away more
    return fd


def _make_folders(folder: Path) -> None:
    """Create ``folder`` and what is missing above it, each with mode 0700."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)


def resolved(path: Path) -> Path:
    """Return ``path`` with links resolved, except one to a file that somebody else has opened, such as /dev/stdout."""
    return path if str(path).startswith(_OPENED_BY_OTHERS) else Path(os.path.realpath(path))


def require_private(real: Path) -> None:
    """Check that only this user can read and write ``real`` and, for a database, the files that SQLite keeps beside it.

    ``real`` is a path as `resolved` returns it. If others can read the file, or if it is somebody else's, warn: once for each file
    and process, by `warnings` and the log. Only regular files are checked, and none on Windows, where modes mean nothing.

    Raises: UnsafeFileError if every user of the machine can write to it; OSError if it can't be looked at.
    """
    if os.name == "nt" or str(real).startswith(_OPENED_BY_OTHERS):
        return
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(real).st_mode):
            return  # a pipe or a device, which has no content that stays
    problems, to_do, unsafe = [], [], False
    for each in (str(real), *(f"{real}{suffix}" for suffix in SIDE_FILES)):
        try:
            status = os.stat(each)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        if who := _who_else(status.st_mode):
            problems.append(f"{who} {printable(each)} (mode {stat.S_IMODE(status.st_mode):04o})")
            to_do.append(f"chmod 600 {quoted(each)}")
            unsafe = unsafe or bool(status.st_mode & stat.S_IWOTH)
        if status.st_uid != os.geteuid():
            problems.append(f"{printable(each)} belongs to another user (number {status.st_uid})")
            to_do.append(f"chown {os.geteuid()} {quoted(each)}")
    with suppress(OSError):
        folder = os.stat(real.parent)
        if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
            problems.append(f"every user can replace it, because of the mode of its folder {printable(real.parent)}")
            to_do.append(f"chmod o-w {quoted(real.parent)}")
    if not problems:
        return
    advice = f"To keep others out: {'; '.join(to_do)}."
    if unsafe and _has_modes(real.parent):
        raise UnsafeFileError("; ".join(problems), advice=advice)
    _warn_once(real, f"{printable(real)} isn't private: {'; '.join(problems)}. {advice}")


def _who_else(mode: int) -> str:
    """Return who beside the owner can do what with a file of this ``mode``, as text; empty if nobody can do anything."""
    may = [
        f"{who} can {' and '.join(word for bit, word in ((4, 'read'), (2, 'write')) if bits & bit)}"
        for who, bits in (("every user", mode & 0o6), ("its group", mode >> 3 & 0o6 & ~mode))
        if bits
    ]
    return ", ".join(may)


def _has_modes(folder: Path) -> bool:
    """Return whether the file system of ``folder`` keeps modes. Some show 0777 for every file, whatever its user wants."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return not os.fstat(file.fileno()).st_mode & stat.S_IWOTH
    except OSError:
        return True


def _warn_once(path: Path, text: str) -> None:
    if str(path) in _warned:
        return
    _warned.add(str(path))
    log.warning("%s", text)
    with suppress(Warning):  # where warnings are errors, it is in the log
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def require_one_name(real: Path) -> None:
    """Check that SQLite can guard the database ``real``: that it has one name, so that all programs use the same files beside it.

    ``real`` is a path whose links are resolved.

    SQLite resolves symbolic links, so these are fine. Under a hard link, or where the file alone is mounted at another place, it
    keeps another write-ahead log: neither side would see what the other writes, and both could pay.

    Raises: UnsafeFileError; OSError if the file can't be looked at.
    """
    status = os.stat(real)
    names = status.st_nlink
    if names > 1 and not stat.S_ISDIR(status.st_mode):  # SQLite refuses a folder
        finder = "fsutil hardlink list" if os.name == "nt" else "find / -samefile"
        raise UnsafeFileError(
            f"the file has {names} names (hard links), and programs that use different ones don't see each other's payments",
            advice=f"Find the others by {finder} {quoted(real)} and keep one. Symbolic links are fine.",
        )
    if _is_mounted_alone(real):
        raise UnsafeFileError(
            "the file is mounted alone, without its folder, so programs outside of this mount don't see what is paid here",
            advice="Mount the folder of the file in its place.",
        )


def _is_mounted_alone(real: Path) -> bool:
    try:
        with open(_MOUNTS, "rb") as file:
            mounts = file.read()
    except OSError:
        return os.path.ismount(real)
    escaped = os.fsencode(real)
    for character in b"\\ \t\n":  # the backslash first
        escaped = escaped.replace(bytes((character,)), b"\\%03o" % character)
    if b" " + escaped + b" " not in mounts:  # a few microseconds, for however many mounts
        return False
    return any(line.split(b" ")[4:5] == [escaped] for line in mounts.split(b"\n"))


def quoted(path: object) -> str:
    """Return ``path`` as one word of a shell command."""
    if os.name == "nt":
        return f'"{printable(path)}"'  # no name has this character there
    return shlex.quote(printable(path))


def printable(path: object) -> str:
    """Return ``path`` as text that can be written anywhere: bytes that aren't UTF-8 are shown by their codes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def replace(source: str, target: str) -> None:
    """Put the file ``source`` in the place of ``target``, as `os.replace` does, which on Windows fails while either is open.

    Raises: OSError.
    """
    deadline = Deadline(REPLACE_S_MAX)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or deadline.passed:
                raise
        deadline.pause(_RETRY_PAUSE_S)


def file_identity(path: Path | str) -> object:
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

    Raises: OSError, also for a pipe or a device: SQLite would put its journal beside it, into the system's folder.
    """
    with suppress(FileExistsError):
        os.close(create_private(path))
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, and a database is a file")


def while_locked(step: Callable[[], object], *, timeout_s: float) -> None:
    """Run ``step``, and run it again while SQLite reports "locked", for at most ``timeout_s`` seconds.

    If several processes switch a new file to WAL at once, SQLite reports "locked" at once, despite its busy timeout (seen).

    Raises: what ``step`` raises.
    """
    import sqlite3

    deadline = Deadline(timeout_s)
    while True:
        try:
            step()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or deadline.passed:
                raise
        deadline.pause(_RETRY_PAUSE_S * (1 + 9 * random.random()))  # noqa: S311 - no secret depends on it
