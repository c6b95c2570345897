"""Programs of the world as processes: start, wait for, freeze, kill, and none left behind.

Knows processes, ports and log files; what the programs are is told in `node` and `world`. POSIX only, as is all of this folder.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WAIT_TIMEOUT_S = 120.0
WAIT_POLL_S = 0.05
STOP_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0
TAIL_LINES = 25
PORT_ATTEMPTS = 200
#: Below the range that outgoing connections take theirs from (32768 on Linux, 49152 elsewhere): a node that was killed must find
#: its port free when it starts again, not taken by somebody's outgoing connection.
PORTS = range(12000, 32000)


class WorldError(RuntimeError):
    """The world can't be started or doesn't do what it should; the text holds the ends of the logs."""


class PortTakenError(WorldError):
    """Somebody took a port between our choosing it and the program's listening on it."""


class CommandError(WorldError):
    """A command (lncli, btcctl) failed; the text holds what it said."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    for _ in range(PORT_ATTEMPTS):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise WorldError(f"no free port found between {PORTS.start} and {PORTS.stop}")


def run(argv: Sequence[str | Path], *, home: Path) -> str:
    """Standard output of a command that must succeed. Raises CommandError with its standard error."""
    try:
        done = subprocess.run(
            [str(arg) for arg in argv],
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"{Path(argv[0]).name}: no answer in {COMMAND_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        # The name alone: the other arguments hold paths and passwords of no use to the reader.
        raise CommandError(f"{Path(argv[0]).name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_for(what: str, probe: Callable[[], T], *, watched: Sequence[Daemon], timeout_s: float = WAIT_TIMEOUT_S) -> T:
    """The first true value of `probe`, asked again and again; a CommandError counts as "not yet".

    Raises WorldError, with the ends of the logs of `watched`, after `timeout_s` or as soon as one of `watched` has ended.
    """
    deadline = time.monotonic() + timeout_s
    last = "not yet"
    while True:
        try:
            value = probe()
            if value:
                return value
            last = f"the last answer was {value!r}"
        except CommandError as error:
            last = str(error)
        for daemon in watched:
            daemon.check()
        if time.monotonic() > deadline:
            tails = "\n".join(daemon.tail() for daemon in watched)
            raise WorldError(f"{what}: not within {timeout_s:.0f} s ({last})\n{tails}")
        time.sleep(WAIT_POLL_S)


class Keeper:
    """The temporary folder of a world and the process that clears up behind a killed run; see `keeper`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="routeweiler-regtest-"))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("keeper.py"))], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._tell(f"folder {self.folder}")

    def add(self, pid: int) -> None:
        self._tell(f"add {pid}")

    def drop(self, pid: int) -> None:
        self._tell(f"drop {pid}")

    def close(self) -> None:
        """Ends the keeper, which kills what is left and removes the folder."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Daemon:
    """One program that runs in the background, in a session of its own, writing to `log`."""

    def __init__(self, name: str, argv: Sequence[str | Path], *, keeper: Keeper) -> None:
        self.name = name
        self.argv = [str(arg) for arg in argv]
        self.log = keeper.folder / f"{name}.log"
        self.frozen = False
        self._keeper = keeper
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """True while the program runs, also where it is frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                env={**os.environ, "HOME": str(self._keeper.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal is for the test run, which then stops its world in order.
                start_new_session=True,
            )
        self._keeper.add(self.pid)

    def stop(self) -> None:
        """Asks the program to end, and waits until it has; one that doesn't is killed and reported."""
        if not self.running:
            return
        self.thaw()
        self._signal(signal.SIGTERM)
        try:
            self._reap(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorldError(f"{self.name} had to be killed {STOP_TIMEOUT_S:.0f} s after SIGTERM\n{self.tail()}") from None

    def kill(self) -> None:
        """`kill -9`, and waits until the program is gone."""
        if self.running:
            self._signal(signal.SIGKILL)
        if self._process is not None:
            self._reap(STOP_TIMEOUT_S)
        self.frozen = False

    def freeze(self) -> None:
        """SIGSTOP: the program neither answers nor ends; its connections stay open."""
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self._signal(signal.SIGCONT)
            self.frozen = False

    def check(self) -> None:
        """Raises WorldError where the program has ended by itself."""
        if self.running:
            return
        tail = self.tail()
        code = self._process.returncode if self._process else None
        kind = PortTakenError if "address already in use" in tail else WorldError
        raise kind(f"{self.name} has ended (exit code {code})\n{tail}")

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- {self.name}.log", *text[-lines:]])

    def _signal(self, number: signal.Signals) -> None:
        assert self.running, f"{self.name} doesn't run"
        os.killpg(self.pid, number)

    def _reap(self, timeout_s: float) -> None:
        assert self._process is not None
        self._process.wait(timeout_s)
        self._keeper.drop(self.pid)
