"""``routeweiler-sync run``: run any Python program so that its `requests` pays.

The program gets its own interpreter, which replaces this process. So everything that ``python script.py`` does is still done by
Python, from the arguments to the traceback and Ctrl-C. One thing is added: PYTHONPATH begins with the folder ``paying``. The
sitecustomize there makes `requests` pay once it is imported, also in the interpreters that the program starts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from .._core import env_vars
from ..config import env_settings
from .outcome import printable

_PAYING = str(Path(__file__).parent.absolute() / "paying")


@click.command(context_settings={"allow_interspersed_args": False}, short_help="Run a Python program whose requests pay.")
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is the name of a module, as with python -m.")
@click.option(
    "--max-sats",
    type=click.IntRange(min=0),
    metavar="N",
    help="Limit what the program may spend, with all interpreters that it starts, routing included. The budget applies too.",
)
@click.option("-q", "--quiet", is_flag=True, help="Present no bill at the end.")
@click.argument("script", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(is_module: bool, max_sats: int | None, quiet: bool, script: str, args: tuple[str, ...]) -> None:
    """Run a Python program so that its `requests` pays. The program needs no change.

    SCRIPT is a file, a folder or a zip file with a __main__.py, or - for stdin. All arguments after it are passed to the program,
    and the exit code is the program's. Interpreters that it starts (multiprocessing, sys.executable) pay as well.

    \b
    Examples:
      routeweiler-sync run script.py --its options
      routeweiler-sync run --max-sats 500 script.py
      routeweiler-sync run -m package.module

    The environment names node, budget, ledger and trace, as for the command get. What was paid is found in the program's
    responses and errors, in its log (logger routeweiler_sync) and in the trace.

    At the end, also after an exception, sys.exit or Ctrl-C, a line on stderr is the bill, if anything was paid: "paid 30 sat for 3
    pages; 2 came from tokens". A program that is killed, or ends by os._exit, has none: routeweiler-sync payments list has it all.

    --max-sats holds for all that pays by this package in the program, and in the Python programs that it starts with its own
    environment. It doesn't count what pays in another way: another installation of Python, a program that isn't Python, an
    interpreter that is started with an empty environment or with -E, -I or -S. Where they share the ledger, the budget holds for
    them too.
    """
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise click.UsageError(
            "With Python's options -E, -I and -S, requests can't be made to pay: leave them out. Nothing was run."
        )
    if not sys.executable:
        raise click.ClickException("Python doesn't know its own path (sys.executable is empty). Nothing was run.")
    try:
        env_settings.budget()
        env_settings.agent_id()
    except ValueError as error:  # better now than at the first 402, when the program has done half its work
        raise click.UsageError(printable(error)) from None
    program = ["-m", script] if is_module else ["--", script] if script.startswith("-") and script != "-" else [script]
    command = [sys.executable, *options_of(sys.orig_argv), *program, *args]
    environ = paying_environ(os.environ)
    try:
        sums = None if max_sats is None else limited(environ, max_sats)
        bill = None if quiet else billed(environ)
        if os.name == "nt":
            code = stand_by(command, environ)
            if bill is not None:
                from ..payments.bill import present  # only Windows needs it in this process

                present(bill)
            if sums is not None:
                with contextlib.suppress(OSError):
                    os.remove(sums)
            sys.exit(code)
        os.execve(sys.executable, command, environ)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise click.ClickException(f"{sys.executable} can't be started: {error.strerror}. Nothing was run.") from None


def paying_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` with what makes the `requests` of an interpreter pay.

    ROUTEWEILER_RUN names this installation, by Python version and prefix: interpreters of other installations ignore it.
    """
    path = environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != _PAYING:
        path = os.pathsep.join([_PAYING, path] if path else [_PAYING])  # an empty entry would be the current folder
    return {**environ, "PYTHONPATH": path, env_vars.RUN: "{}.{} {}".format(*sys.version_info[:2], sys.prefix)}


def limited(environ: dict[str, str], max_sats: int) -> str:
    """Add to ``environ`` that the program may spend ``max_sats``. Return the file, made now, that counts what it spends.

    The program removes the file at its end: it has this process's id, but on Windows.
    """
    fd, path = tempfile.mkstemp(prefix="routeweiler-run-")  # mode 0600
    os.close(fd)
    own = f"{os.getpid()} {max_sats} {path}"
    outer = environ.get(env_vars.RUN_LIMIT)  # of the run that has started this one: it holds too
    environ[env_vars.RUN_LIMIT] = f"{outer}\n{own}" if outer else own
    return path


def billed(environ: dict[str, str]) -> str | None:
    """Add to ``environ`` that the program notes what it pays. Return the file for that, not made yet, or None if there's no place.

    The program presents the bill and removes the file at its end: it has this process's id, but on Windows.
    """
    try:
        folder = tempfile.gettempdir()
    except OSError:  # no folder can be written to: the program runs all the same
        return None
    path = os.path.join(folder, f"routeweiler-run-{secrets.token_hex(16)}.bill")  # nobody can guess it, and make it before
    own, outer = f"{os.getpid()} {path}", environ.get(env_vars.RUN_BILL)
    environ[env_vars.RUN_BILL] = f"{outer}\n{own}" if outer else own
    return path


def options_of(command: Sequence[str]) -> list[str]:
    """Return the interpreter's own options in ``command``, an interpreter's command line: all that precede the program."""
    options: list[str] = []
    rest = list(command[1:])
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        each = rest.pop(0)
        if each.startswith("--"):
            options.append(each)
            if each == "--check-hash-based-pycs" and rest:
                options.append(rest.pop(0))
            continue
        for at, letter in enumerate(each[1:], 1):
            if letter in "mc":  # -m and -c name the program: the options end here
                return options if at == 1 else [*options, each[:at]]
            if letter in "WX":  # the rest of the argument is the value of this option
                break
        options.append(each)
        if each[-1] in "WX" and at == len(each) - 1 and rest:
            options.append(rest.pop(0))
    return options


def stand_by(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run ``command``, wait for its end, and return its exit code.

    Used on Windows instead of exec. There, exec starts another process and ends this one, so a shell would believe that the program
    has ended.
    """
    with subprocess.Popen(command, env=environ) as program:  # noqa: S603
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the program too, which decides what to do
        return program.wait()
