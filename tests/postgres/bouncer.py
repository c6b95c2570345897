"""A PgBouncer in transaction mode on loopback, in front of a `Server`; the program that is installed.

with Bouncer.make(server) as bouncer:
    url = server.url(database, port=bouncer.port)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .server import PASSWORD, NotInstalledError, Server, become, free_port, server_user, until

#: Of its own settings, those that the tests don't change.
SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "scram-sha-256",
    "auth_file": "users",
    "admin_users": "postgres",
    "pool_mode": "transaction",
    "logfile": "log",
    "pidfile": "pid",
    "server_login_retry": "1",  # seconds; by default it takes 15 to see that a server is back
}
PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")


def program() -> str:
    """The path of pgbouncer."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path=os.pathsep.join(PLACES))
    if found is None:
        raise NotInstalledError("PgBouncer isn't installed (apt-get install pgbouncer)")
    return found


class Bouncer:
    """A PgBouncer: may be stopped, killed, started again, and pointed at another server."""

    def __init__(self, server: Server, folder: Path, settings: dict[str, object]) -> None:
        self.server, self.folder, self.port = server, folder, free_port()
        self._settings: dict[str, object] = {**SETTINGS, "listen_port": self.port, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        #: The port at which it looks for the server, if that isn't the server's own.
        self.behind: int | None = None

    @classmethod
    @contextlib.contextmanager
    def make(cls, server: Server, **settings: object) -> Iterator[Bouncer]:
        """One that runs with these settings; it ends with the block."""
        program()
        folder = Path(tempfile.mkdtemp(prefix="rw-bouncer-"))
        bouncer = cls(server, folder, settings)
        try:
            (folder / "users").write_text(f'"postgres" "{PASSWORD}"\n')
            bouncer._write()
            for path in (folder, *folder.iterdir()):
                if user := server_user():
                    os.chown(path, *user)
            bouncer.start()
            yield bouncer
        finally:
            bouncer.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The URL of ``database`` through this."""
        return self.server.url(database, port=self.port)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [*become(server_user()), program(), "-q", "ini"]
        with (self.folder / "out").open("w") as out:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out)
        until(self._answers)

    def stop(self) -> None:
        """End at once, and every connection with it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """``kill -9``."""
        self._end(signal.SIGKILL)

    def tell(self, command: str) -> list[tuple[Any, ...]]:
        """Do an admin's ``command``, such as PAUSE."""
        import psycopg

        with psycopg.connect(self.url("pgbouncer"), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def set(self, **settings: object) -> None:
        """Change settings, and RELOAD."""
        self._settings |= settings
        self._write()
        self.tell("RELOAD")

    def point(self, server: Server) -> None:
        """From now on, be in front of this server."""
        self.server = server
        self.set()

    def _write(self) -> None:
        lines = ["[databases]", f"* = host=127.0.0.1 port={self.behind or self.server.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in self._settings.items()]
        (self.folder / "ini").write_text("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            return bool(self.tell("SHOW VERSION"))
        assert self._process is not None
        if self._process.poll() is not None:
            raise subprocess.SubprocessError((self.folder / "out").read_text())
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None
