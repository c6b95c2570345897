"""A throw-away PostgreSQL server on loopback: a cluster in a folder of its own, reached over TCP with a password.

    with Server.make() as server, server.standby() as standby:
        server.waits_for_standby = True
        url = server.url(server.new_database())
        server.kill()
        standby.promote()

Made by ``initdb``, ``pg_basebackup`` and ``pg_ctl`` of whatever PostgreSQL is installed. PostgreSQL refuses to run as root, so for
root it runs as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

PASSWORD = "s3cret/@:?&%"
TIMEOUT_S = 60
#: What a standby calls itself, and what its primary waits for.
STANDBY = "standby"
#: Nothing here outlives the machine; a crash of the server alone loses nothing that was written.
SETTINGS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "120",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "deadlock_timeout": "200ms",
    "autovacuum_naptime": "5s",
}


class NotInstalledError(Exception):
    """There is no PostgreSQL server on this machine."""


def programs() -> Path:
    """The folder that has initdb and pg_ctl."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []  # a link to it may stand alone
    folders += [Path(each).parent for each in sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        folders.append(Path(subprocess.run(["pg_config", "--bindir"], check=True, capture_output=True, text=True).stdout.strip()))
    for folder in folders:
        if all(shutil.which(program, path=str(folder)) for program in ("initdb", "pg_ctl", "pg_basebackup")):
            return folder
    raise NotInstalledError("PostgreSQL's initdb and pg_ctl aren't installed (apt-get install postgresql)")


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
        return port


class Server:
    """A cluster: may be stopped, crashed, frozen and started again."""

    def __init__(
        self,
        folder: Path,
        bin_folder: Path,
        user: tuple[int, int] | None,
        settings: Mapping[str, str] = SETTINGS,
        port: int | None = None,
    ) -> None:
        self.folder, self.port = folder, port or free_port()
        self._settings = settings
        self._bin, self._user = bin_folder, user
        self._numbers = count(1)

    @classmethod
    @contextlib.contextmanager
    def make(cls, **settings: str) -> Iterator[Server]:
        """A server that runs; it ends with the block. ``settings`` are PostgreSQL's, and replace those of `SETTINGS`."""
        bin_folder, user = programs(), server_user()
        folder = Path(tempfile.mkdtemp(prefix="rw-postgres-"))
        if user:
            os.chown(folder, *user)
        server = cls(folder, bin_folder, user, {**SETTINGS, **settings})
        with server._ending():
            server._initialise()
            server.start()
            yield server

    @contextlib.contextmanager
    def standby(self, port: int | None = None) -> Iterator[Server]:
        """A server that replicates this one as long as both run, and takes no writes before `promote`. It ends with the block."""
        folder = Path(tempfile.mkdtemp(prefix="rw-standby-"))
        if self._user:
            os.chown(folder, *self._user)
        standby = Server(folder, self._bin, self._user, port=port)
        with standby._ending():
            source = f"{self.url()}&application_name={STANDBY}"
            standby._run("pg_basebackup", "-d", source, "-D", "data", "-R", "-X", "stream", "-c", "fast", "--no-sync")
            with (folder / "data" / "postgresql.auto.conf").open("a") as conf:
                conf.write("synchronous_standby_names = ''\n")
            standby.start()
            until(lambda: self.admin("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))
            yield standby

    @property
    def waits_for_standby(self) -> bool:
        """Whether each commit waits until the standby has it on disk."""
        return bool(self.admin("SHOW synchronous_standby_names")[0][0])

    @waits_for_standby.setter
    def waits_for_standby(self, waits: bool) -> None:
        self.set("synchronous_standby_names", STANDBY if waits else "")
        if waits:
            until(lambda: self.admin("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))

    def set(self, name: str, value: str) -> None:
        """Change a setting of the server that runs, and wait until it holds."""
        self.admin(f"ALTER SYSTEM SET {name} = '{value}'")
        self.admin("SELECT pg_reload_conf()")
        until(lambda: self.admin(f"SHOW {name}") == [(value,)])

    def promote(self) -> None:
        """Make a standby a primary, and wait until it takes writes."""
        self._run("pg_ctl", "-D", "data", "-w", "-t", str(TIMEOUT_S), "promote")

    def kill(self) -> None:
        """``kill -9`` of the server with all its processes, as by the end of its machine."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)  # it starts no other while its children are looked for
        children = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True, check=False).stdout.split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(_lives, (postmaster, *map(int, children)))))

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        finally:
            with contextlib.suppress(subprocess.SubprocessError):
                self.stop("immediate")
            shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", *, user: str = "postgres", password: str = PASSWORD, port: int | None = None) -> str:
        """The URL of ``database``; over a relay, with that one's ``port``."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}?sslmode=disable"

    def new_database(self) -> str:
        """The name of a database that is empty."""
        name = f"ledger{next(self._numbers)}"
        self.admin(f"CREATE DATABASE {name}")
        return name

    def admin(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Do ``sql`` as the superuser, each time on a new connection."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", str(TIMEOUT_S), "-o", f"-p {self.port}", "start")

    def stop(self, how: str = "fast") -> None:
        """``fast`` ends every session; ``immediate`` is a crash: what wasn't written is lost, as by kill -9."""
        self._run("pg_ctl", "-D", "data", "-w", "-t", str(TIMEOUT_S), "-m", how, "stop")

    def _initialise(self) -> None:
        pwfile = self.folder / "password"
        pwfile.write_text(PASSWORD)
        if self._user:
            os.chown(pwfile, *self._user)
        auth = ("--auth=scram-sha-256", "--pwfile=password", "--username=postgres")
        self._run("initdb", "-D", "data", "--no-sync", "--encoding=UTF8", "--locale=C", *auth)
        with (self.folder / "data" / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def _run(self, program: str, *arguments: str) -> None:
        # Into a file: the server would inherit a pipe, and its end would never come.
        with (self.folder / f"{program}.out").open("w+") as out:
            ended = subprocess.run(
                [*become(self._user), str(self._bin / program), *arguments],
                cwd=self.folder,
                stdout=out,
                stderr=out,
                timeout=TIMEOUT_S + 10,
                check=False,
            ).returncode
            out.seek(0)
            if ended:
                raise subprocess.SubprocessError(f"{program} ended with {ended}: {out.read()}")


def until(condition: Callable[[], object], wait_s: float = TIMEOUT_S) -> None:
    """Wait for ``condition``."""
    end_s = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > end_s:
            raise AssertionError("it never came to that")
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return told != "" and not told.startswith("Z")


def become(user: tuple[int, int] | None) -> list[str]:
    """How a command line begins that is to run as ``user`` (uid, gid)."""
    # Not subprocess's user=: it makes Python fork in earnest, which gRPC's threads in this process don't bear.
    if user is None:
        return []
    uid, gid = user
    code = f"import os, sys; os.setgroups([]); os.setgid({gid}); os.setuid({uid}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", code]


def server_user() -> tuple[int, int] | None:
    """Whom to run it as (uid, gid), where that isn't who runs the tests."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise NotInstalledError("PostgreSQL doesn't run as root, and there is neither a user postgres nor nobody")
