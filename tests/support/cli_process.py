"""``routeweiler-sync`` as a process of its own, for the tests of what it does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import routeweiler_sync
from routeweiler_sync.testing import FakeLnd

from .accounts import Books

TIMEOUT_S = 120
#: How every macaroon of the paywall begins: version 2, location "lsat".
ANY_TOKEN = b"AgEEbHNhdA"
NO_NODE = {"LND_GRPC_HOST": "", "LND_MACAROON_PATH": ""}


def bare_environ(**environ: str) -> dict[str, str]:
    """This process's environment without what could lead a child astray."""
    ours = re.compile(r"ROUTEWEILER_|LND_|POLAR_|LNBITS_|NWC_|.*_proxy$|COLUMNS$|NO_COLOR$|FORCE_COLOR$", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {**kept, "PYTHONPATH": str(Path(routeweiler_sync.__file__).parents[1]), **environ}


class Command:
    """Runs ``routeweiler-sync``, and looks through all it says for secrets."""

    def __init__(self, folder: Path, lnd: FakeLnd, books: Books) -> None:
        self.folder, self.lnd, self.books = folder, lnd, books
        self.out = self.err = b""

    def environ(self, **environ: str) -> dict[str, str]:
        ours = {"ROUTEWEILER_LEDGER": str(self.books.ledger_path), "ROUTEWEILER_TRACE": str(self.books.trace_path)}
        return bare_environ(**{**self.lnd.environ, **ours, **environ})

    def __call__(
        self, *args: str, stdin: bytes = b"", before: Callable[[], object] | None = None, stdout: str | None = None, **environ: str
    ) -> int:
        """The exit code; what was written is in ``out`` and ``err``.

        ``before`` is called in the process before it begins. ``stdout`` is a file to which it writes instead.
        """
        with open(stdout, "wb") if stdout is not None else contextlib.nullcontext(subprocess.PIPE) as out:
            done = subprocess.run(
                [sys.executable, "-m", "routeweiler_sync", *args],
                env=self.environ(**environ),
                cwd=self.folder,
                input=stdin,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT_S,
                preexec_fn=before,
            )
        self.out, self.err = done.stdout or b"", done.stderr
        self.look_for_secrets()
        return done.returncode

    def look_for_secrets(self) -> None:
        said = self.out + self.err
        assert ANY_TOKEN not in said
        assert Path(self.lnd.macaroon_path).read_bytes().hex().encode() not in said
        for row in self.books.rows if self.books.ledger_path.exists() else []:
            assert row.token.encode() not in said
            assert row.preimage is None or row.preimage.encode() not in said
        assert b"Traceback" not in self.err, self.err.decode()
        assert b"\x1b" not in self.err

    @property
    def json(self) -> Any:
        """What ``--json`` printed: one object, or a list of objects."""
        return json.loads(self.out)


def demo(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "routeweiler_sync", "demo"],
        env=bare_environ(**environ),
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


def on_terminal(*args: str, columns: int, **environ: str) -> tuple[int, str]:
    """Run ``routeweiler-sync`` on a terminal of so many columns. Return its exit code and what it wrote, escape codes included."""
    import fcntl  # POSIX only, as is pty
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "routeweiler_sync", *args],
        env=bare_environ(**{"TERM": "xterm-256color", **environ}),
        stdin=its,
        stdout=its,
        stderr=its,
    ) as process:
        os.close(its)
        said = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 65536):
                said += piece
        code = process.wait(TIMEOUT_S)
    os.close(ours)
    return code, said.decode(errors="replace").replace("\r\n", "\n")


def without_styles(text: str) -> str:
    """Return what a terminal shows, without the escape codes for styles."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
