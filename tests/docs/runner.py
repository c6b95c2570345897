"""Run the blocks of one page, in order: ``python -m tests.docs.runner docs/tutorial/first-payment.md``.

Each run has a folder and a home of its own, which it removes at its end, and no variable that names a wallet or a ledger of whoever
runs it.

Python blocks share one namespace, commands one shell environment and working folder. A fake lnd and a paywall stand in for the
reader's node and for the servers ``https://example.com``, ``https://api.example.com``, ``https://shop.example`` and so on
(`STANDS_FOR`). There ``/free`` costs nothing, ``/archive`` 500 sat, each ``/page/…`` 10 sat, one token of 10 sat opens all else.
Routing costs 1 sat.

In the namespace: ``lnd``, ``paywall`` (that of example.com), ``paywall_of(url)``, ``stand_in(text, other)``, which replaces a text
in the blocks below, and ``enter(context)``, which keeps a context open to the page's end.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.cli_process import bare_environ

from .compare import difference
from .pages import ROOT, Block, blocks

COMMAND_S_MAX = 120
CONTENT = b"Berlin, 21 degrees, light rain: take an umbrella.\n"
STANDS_FOR = re.compile(r"https://((?:[\w-]+\.)*example(?:\.(?:com|org|net))?)(?![\w.-])")
#: Variables that name a wallet. A block that sets them shows how; the page's fake wallet stays in place.
WALLET_VARIABLES = re.compile(r"LND_\w+|POLAR_\w+|LNBITS_\w+|NWC_URL|ROUTEWEILER_LNDCONNECT|ROUTEWEILER_WALLET")


class Failed(Exception):
    """A block didn't run, or printed something else."""


class World:
    """What stands in for the reader's node and for the servers."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.lnd = self.stack.enter_context(FakeLnd())
        self.lnd.fee_msat = 1_000
        self.replaced = {
            'network="bitcoin"': 'network="bitcoin-regtest"',
            "ROUTEWEILER_NETWORK=bitcoin\n": "ROUTEWEILER_NETWORK=bitcoin-regtest\n",
            "localhost:10009": f"{self.lnd.host}:{self.lnd.port}",
            '"localhost", 10009': f'"{self.lnd.host}", {self.lnd.port}',
        }
        self.paywalls: dict[str, Paywall] = {}
        self.wallet = dict(self.lnd.environ)

    def paywall_of(self, url: str) -> Paywall:
        """Return the server that stands in for that of ``url``; it starts when it is first named."""
        host = url.removeprefix("https://").partition("/")[0]
        if host not in self.paywalls:
            wall = Paywall(self.lnd, service="weather", price_msat=10_000, content=CONTENT)
            wall.add_service("/archive", name="archive", price_msat=500_000)
            wall.add_service("/page", name="page", price_msat=10_000, sells="path")
            self.paywalls[host] = self.stack.enter_context(wall)
        return self.paywalls[host]

    def stand_in(self, text: str, other: str) -> None:
        """Put ``other`` in place of ``text`` in all blocks below."""
        self.replaced = {text: other, **self.replaced}

    def real(self, code: str) -> str:
        """Return ``code`` with the stand-ins in it."""
        for text, other in self.replaced.items():
            code = code.replace(text, other)
        return STANDS_FOR.sub(lambda found: self.paywall_of(found[0]).base_url, code)

    def shown(self, text: str) -> str:
        """Return what was printed, with the names of the page."""
        for host, wall in self.paywalls.items():
            text = text.replace(wall.base_url, f"https://{host}").replace(wall.base_url.removeprefix("http://"), host)
        for name, other in self.replaced.items():
            if not name.startswith(("network=", "ROUTEWEILER_NETWORK")):
                text = text.replace(other, name)
        return text


class Page:
    """One page's run: its namespace, its environment, and what the last block printed."""

    def __init__(self, page: str, world: World) -> None:
        self.page, self.world = page, world
        self.printed: str | None = None
        self.code = 0
        self.names: dict[str, Any] = {
            "__name__": "__main__",
            "lnd": world.lnd,
            "paywall": world.paywall_of("https://example.com"),
            "paywall_of": world.paywall_of,
            "stand_in": world.stand_in,
            "enter": world.stack.enter_context,
        }

    def run(self, block: Block) -> None:
        """Run one block. Raises: Failed."""
        if (name := block.mark("file")) is not None:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.world.real(block.code), "utf-8")
        elif block.mark("output") is not None:
            if self.printed is None:
                raise Failed(f"{block}: no block above it prints anything.")
            self.compare(block, block.code, self.printed)
        elif block.language in ("python", "setup"):
            self.python(block)
        elif block.language == "pycon":
            self.session(block)
        elif block.language == "console":
            self.console(block)
        else:
            self.script(block)

    def compare(self, block: Block, expected: str, printed: str) -> None:
        told = difference(expected, self.world.shown(printed))
        if told is not None:
            raise Failed(f"{block}: the output differs.\n{told}")

    def python(self, block: Block) -> None:
        real = block.code if block.language == "setup" else self.world.real(block.code)  # a set-up names what stands in for what
        code = "\n" * (block.line - 1) + real
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, str(ROOT / block.page), "exec"), self.names)
            if (raises := block.mark("raises")) is not None:
                raise AssertionError(f"the block raises no {raises}")
        except BaseException as error:
            if type(error).__name__ == block.mark("raises"):
                self.printed = f"{out.getvalue()}{type(error).__name__}: {error}\n"
                return
            raise Failed(f"{block}: {''.join(traceback.format_exception(error))}\nIt printed:\n{out.getvalue()}") from None
        if block.language == "python":
            self.printed = out.getvalue()
        else:  # a set-up may name another wallet
            self.world.wallet = {name: value for name, value in os.environ.items() if WALLET_VARIABLES.fullmatch(name)}

    def session(self, block: Block) -> None:
        """Lines of an interactive session, by doctest, with the comparison of this package."""

        class Checker(doctest.OutputChecker):
            def check_output(checker, want: str, got: str, flags: int) -> bool:
                return difference(want, self.world.shown(got)) is None

        test = doctest.DocTestParser().get_doctest(self.world.real(block.code), self.names, str(block), block.page, block.line)
        out = io.StringIO()
        failed = doctest.DocTestRunner(Checker(), optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(
            test, out=out.write, clear_globs=False
        )
        self.names.update(test.globs)
        if failed.failed:
            raise Failed(out.getvalue())

    def shell(self, code: str, *options: str) -> str:
        """Run lines of bash with the page's environment and folder, keep how they leave both, and return what they print."""
        state = Path(os.environ["HOME"]) / "shell-state"
        keep = f'code=$?; {{ env -0; printf "PWD_NOW=%s\\0" "$PWD"; }} > {shlex.quote(str(state))}; exit $code'
        program = f"trap {shlex.quote(keep)} EXIT\n(exit {self.code})\n{self.world.real(code)}"
        printed = Path(os.environ["HOME"]) / "shell-output"  # not a pipe: a program in the background would keep it open
        with printed.open("wb") as out:
            process = subprocess.Popen(
                ["bash", *options, "-c", program], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            try:
                self.code = process.wait(COMMAND_S_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise Failed(f"no end within {COMMAND_S_MAX} s: {code}") from None
        now = dict(each.split("=", 1) for each in state.read_text("utf-8").split("\0") if "=" in each)
        os.chdir(now.pop("PWD_NOW"))
        for name in os.environ.keys() - now.keys() - self.world.wallet.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in now.items() if not WALLET_VARIABLES.fullmatch(name) and name != "_"})
        return printed.read_text("utf-8", errors="replace")

    def console(self, block: Block) -> None:
        """Lines that begin with ``$`` are commands, those with ``>`` below them go on with one, others are what it prints."""
        commands: list[list[str]] = []
        for line in block.code.splitlines():
            if line.startswith("$ "):
                commands.append([line[2:], ""])
            elif not commands:
                raise Failed(f"{block}: a console block begins with '$ '.")
            elif line.startswith("> ") and not commands[-1][1]:
                commands[-1][0] += "\n" + line[2:]
            else:
                commands[-1][1] += line + "\n"
        for command, expected in commands:
            self.printed = self.shell(command)
            told = difference(expected, self.world.shown(self.printed))
            if told is not None:
                raise Failed(f"{block}: $ {command}\n{told}\nIt printed:\n{self.printed}")

    def script(self, block: Block) -> None:
        self.code = 0
        self.printed = self.shell(block.code, "-e")
        if self.code:
            raise Failed(f"{block}: exit code {self.code}\n{block.code}\nIt printed:\n{self.printed}")


def settle_in(place: Path) -> None:
    """Make ``place`` the home of this process, with an empty folder to work in, and leave its caller's settings behind."""
    folder, home, programs = place / "work", place / "home", place / "bin"
    for each in (folder, home, programs):
        each.mkdir()
    program = programs / "routeweiler-sync"  # the one that is tested, however this Python was set up
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m routeweiler_sync "$@"\n')
    program.chmod(0o755)
    environ = bare_environ(
        HOME=str(home),
        XDG_STATE_HOME=str(home / "state"),
        PATH=os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        COLUMNS="80",
        PYTHONIOENCODING="utf-8",
        LC_ALL="C.UTF-8",
        PYTEST_ADDOPTS="-p no:cacheprovider",
    )
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # for the modules that a page makes


def main(page: str) -> int:
    """Run a page's blocks in a place of their own; return 1 after the first that fails."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as place:
        settle_in(Path(place))
        try:
            return run(page)
        finally:
            os.chdir(before)


def run(page: str) -> int:
    """Run a page's blocks in this folder; return 1 after the first that fails."""
    world = World()
    os.environ.update(world.wallet)
    with world.stack:
        running = Page(page, world)
        for block in blocks(page):
            if block.runs:
                try:
                    running.run(block)
                except Failed as failed:
                    print(failed, file=sys.stderr)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
