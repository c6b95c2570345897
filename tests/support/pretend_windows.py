"""Makes the package believe that it runs on Windows, as far as Linux can play it. For child processes: it can't be undone.

For modules of the package, and for them alone:

- ``os.name`` is ``nt`` and ``sys.platform`` is ``win32``, so they take Windows' branches;
- fcntl, pwd, resource and the like can't be imported, and functions, signals and flags that Windows lacks aren't there;
- ``msvcrt.locking`` locks a byte of a file between processes;
- a descriptor that was opened without ``O_BINARY`` turns each line feed that is written to it into two characters.

For all modules: a file that any process has open can be neither removed, renamed nor replaced, and the names that Windows refuses
are refused. What this can't show is listed in docs/how-to/windows-and-macos.md.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import re
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import fcntl  # isort: skip - this module plays Windows on a system that isn't

PACKAGE = "routeweiler_sync"
#: Modules that Windows lacks.
NO_MODULES = frozenset(
    {"fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "posix", "syslog", "crypt", "spwd", "readline", "curses"}
)
#: Names that Windows lacks, of modules that it has, as ``module: names``. `tests.unit.project.test_ports` looks for them too.
_NO_NAMES = """
os: fork forkpty register_at_fork getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid seteuid
    setegid setgroups initgroups getpgid getpgrp setpgid setpgrp getsid setsid getpriority setpriority nice killpg
    wait wait3 wait4 waitid WNOHANG WUNTRACED WCONTINUED WIFEXITED WIFSIGNALED WEXITSTATUS WTERMSIG WIFSTOPPED
    WSTOPSIG uname chown fchown lchown lchmod fchmod fchdir chroot mkfifo mknod major minor makedev pread preadv
    pwrite pwritev readv writev sendfile lockf posix_fallocate posix_fadvise posix_spawn posix_spawnp fdatasync sync
    openpty login_tty ttyname ctermid tcgetpgrp tcsetpgrp statvfs fstatvfs pathconf fpathconf sysconf confstr
    getloadavg sched_getaffinity sched_setaffinity sched_yield get_blocking set_blocking getxattr setxattr listxattr
    removexattr memfd_create eventfd splice copy_file_range pipe2 pidfd_open unshare setns O_NOFOLLOW O_CLOEXEC
    O_NONBLOCK O_NOCTTY O_DIRECTORY O_SYNC O_DSYNC O_RSYNC O_NDELAY O_ASYNC O_PATH O_TMPFILE O_NOATIME O_DIRECT
    O_EXLOCK O_SHLOCK environb getenvb EX_USAGE
signal: SIGKILL SIGHUP SIGQUIT SIGPIPE SIGALRM SIGVTALRM SIGPROF SIGCHLD SIGCLD SIGUSR1 SIGUSR2 SIGSTOP SIGTSTP
    SIGCONT SIGTTIN SIGTTOU SIGWINCH SIGIO SIGSYS SIGTRAP SIGURG SIGXCPU SIGXFSZ SIGBUS SIGPWR SIGPOLL SIG_BLOCK
    SIG_UNBLOCK SIG_SETMASK pthread_sigmask pthread_kill sigpending sigwait sigwaitinfo sigtimedwait setitimer
    getitimer ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF alarm pause siginterrupt
time: clock_gettime clock_gettime_ns clock_settime clock_settime_ns clock_getres tzset pthread_getcpuclockid
    CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_BOOTTIME CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID
    CLOCK_TAI CLOCK_HIGHRES
select: poll epoll kqueue kevent devpoll EPOLLIN POLLIN PIPE_BUF
socket: AF_UNIX AF_NETLINK AF_PACKET SO_REUSEPORT CMSG_LEN sethostname recv_fds send_fds TCP_USER_TIMEOUT
sys: abiflags getdlopenflags setdlopenflags
"""
NO_NAMES: dict[str, frozenset[str]] = {
    module: frozenset(names.split()) for module, names in re.findall(r"^(\w+): ([^:]*)$", _NO_NAMES, re.MULTILINE)
}
#: What Windows' signal.signal() takes.
SIGNALS = frozenset({signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM})
#: A bit that Linux has no use for. The real `os.open` never sees it.
O_BINARY = 1 << 30
_FORBIDDEN = frozenset('<>:"|?*')
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{name}{number}" for name in ("COM", "LPT") for number in range(1, 10))})

_open, _write, _listdir, _readlink = os.open, os.write, os.listdir, os.readlink
_import = builtins.__import__
_text_mode: set[int] = set()


def _denied(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, "The process cannot access the file because it is being used by another process", path)


def _is_open(path: str) -> bool:
    """Return whether any process that this user may look at has the file open."""
    for process in _listdir("/proc"):
        if process.isdigit():
            with contextlib.suppress(OSError):
                for fd in _listdir(f"/proc/{process}/fd"):
                    with contextlib.suppress(OSError):
                        if _readlink(f"/proc/{process}/fd/{fd}") == path:
                            return True
    return False


def check_name(path: object) -> None:
    """Raise the error of Windows for a name that it doesn't allow. The folders above it are those of the test."""
    name = os.path.basename(os.fsdecode(path) if isinstance(path, bytes) else str(path))
    if _FORBIDDEN & set(name) or name != name.rstrip(". ") or name.partition(".")[0].upper() in _DEVICES:
        raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", path)


def _guarded(function: Callable[..., Any], *, paths: int) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        dir_fd = kwargs.get("dir_fd")
        folder = _readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
        for each in args[:paths]:
            if _is_open(os.path.realpath(os.path.join(folder, os.fsdecode(each)))):
                raise _denied(each)
        if paths == 2:
            check_name(args[1])
            if function.__name__ == "rename" and os.path.exists(args[1]):
                raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", args[1])
        return function(*args, **kwargs)

    return guarded


def _open_as_windows(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
    check_name(path)
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    fd = _open(path, (flags & ~O_BINARY) | os.O_CLOEXEC, mode, **kwargs)
    (_text_mode.discard if flags & O_BINARY else _text_mode.add)(fd)
    return fd


def _write_as_windows(fd: int, data: Any) -> int:
    if fd in _text_mode and b"\n" in bytes(data):
        _write(fd, bytes(data).replace(b"\n", b"\r\n"))
        return len(data)
    return _write(fd, data)


def _kill(pid: int, number: int) -> None:
    raise AssertionError(f"os.kill({pid}, {number}) would end that process on Windows")


def _signal(number: int, handler: Any) -> Any:
    if number not in SIGNALS:
        raise ValueError("invalid signal value")
    return signal.signal(number, handler)


class _Msvcrt(types.ModuleType):
    """Windows' locks of bytes. They are a process's own in Windows: here too, by open file descriptions."""

    LK_UNLCK, LK_LOCK, LK_NBLCK = 0, 1, 2

    @staticmethod
    def locking(fd: int, how: int, count: int) -> None:
        """Lock or free ``count`` bytes from the position of ``fd`` on."""
        import struct

        kind = fcntl.F_UNLCK if how == _Msvcrt.LK_UNLCK else fcntl.F_WRLCK
        wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, os.lseek(fd, 0, os.SEEK_CUR), count, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK if hasattr(fcntl, "F_OFD_SETLK") else 37, wanted)
        except (BlockingIOError, PermissionError):
            raise PermissionError(errno.EACCES, "Permission denied") from None


class _Stand(types.ModuleType):
    """Stands for a module: without the names that Windows lacks, and with others in the place of some."""

    def __init__(self, module: types.ModuleType, **others: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _others=others, _missing=NO_NAMES[module.__name__])

    def __getattr__(self, name: str) -> Any:
        if name in self._others:
            return self._others[name]
        if name in self._missing:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def pretend() -> None:
    """Play Windows from here on. The package mustn't be imported yet."""
    assert not any(name.partition(".")[0] == PACKAGE for name in sys.modules), "imported too early"
    import select
    import socket

    for name, paths in (("unlink", 1), ("remove", 1), ("rename", 2), ("replace", 2)):
        setattr(os, name, _guarded(getattr(os, name), paths=paths))
    binary = {"O_BINARY": O_BINARY, "open": _open_as_windows, "write": _write_as_windows}
    stands = {
        "os": _Stand(os, name="nt", kill=_kill, **binary),
        "sys": _Stand(sys, platform="win32"),
        "signal": _Stand(signal, signal=_signal, valid_signals=lambda: set(SIGNALS)),
        "time": _Stand(time),
        "select": _Stand(select),
        "socket": _Stand(socket),
        "msvcrt": _Msvcrt("msvcrt"),
    }

    def as_on_windows(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        asks = str((globals or {}).get("__name__", "")).partition(".")[0]
        if level == 0 and (asks == PACKAGE or (globals or {}).get("__package__") == PACKAGE):
            if name in NO_MODULES:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
            if name in stands:
                return stands[name]
        return _import(name, globals, locals, fromlist, level)

    builtins.__import__ = as_on_windows


def environ(folder: os.PathLike[str] | str, *paths: os.PathLike[str] | str) -> dict[str, str]:
    """Return the variables with which a Python process plays Windows from its start, and all that it starts.

    A file for that is written to ``folder``. ``paths`` are further ones for PYTHONPATH; this module must be below one of them.
    """
    with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
        file.write(f"from {__name__} import pretend\n\npretend()\n")
    return {"PYTHONPATH": os.pathsep.join(map(os.fspath, (folder, *paths)))}
