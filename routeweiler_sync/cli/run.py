"""``routeweiler-sync run``: any program, its `requests` paying.

The program gets an interpreter of its own, which takes this one's place: all that ``python script.py`` does is done by python, from
the arguments to the traceback and Ctrl-C. One thing is added: PYTHONPATH begins with the folder ``paying``, whose sitecustomize has
`requests` pay once it is imported, also in the interpreters that the program starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from .._core import env_vars
from ..config import env_settings
from .outcome import printable

_PAYING = str(Path(__file__).parent.absolute() / "paying")


@click.command(context_settings={"allow_interspersed_args": False}, short_help="Run a program, its requests paying.")
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is a module's name, as for python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(is_module: bool, script: str, args: tuple[str, ...]) -> None:
    """Run a program as python does, its `requests` paying, no line changed.

    SCRIPT is a file, a folder or a zip file with a __main__.py, or - for stdin. What follows it is the program's, and the exit code
    is the program's, too. Interpreters that it starts (multiprocessing, sys.executable) pay as well.

    Node, budget, ledger and trace are those of the environment, as for routeweiler-sync get. What became of the money is told by
    the program's responses and errors, by its log (logger routeweiler_sync) and by the trace.
    """
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise click.UsageError("with python's options -E, -I and -S nothing can be made to pay: leave them out. Nothing was run.")
    if not sys.executable:
        raise click.ClickException("python doesn't know its own path (sys.executable). Nothing was run.")
    try:
        env_settings.budget()
    except ValueError as error:  # better now than when the program has done half its work
        raise click.UsageError(printable(error)) from None
    what = ["-m", script] if is_module else ["--", script] if script.startswith("-") and script != "-" else [script]
    command = [sys.executable, *options_of(sys.orig_argv), *what, *args]
    environ = paying_environ(os.environ)
    try:
        if os.name == "nt":
            sys.exit(stand_by(command, environ))
        os.execve(sys.executable, command, environ)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise click.ClickException(f"{sys.executable} can't be started: {error.strerror}. Nothing was run.") from None


def paying_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for interpreters of this very installation whose `requests` is to pay."""
    path = environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != _PAYING:
        path = os.pathsep.join([_PAYING, path] if path else [_PAYING])  # an empty entry would be the current folder
    return {**environ, "PYTHONPATH": path, env_vars.RUN: "{}.{} {}".format(*sys.version_info[:2], sys.prefix)}


def options_of(command: Sequence[str]) -> list[str]:
    """The options of the interpreter in ``command``, the command line of one: what stands before the program."""
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
            if letter in "mc":  # the program
                return options if at == 1 else [*options, each[:at]]
            if letter in "WX":  # what follows is its value
                break
        options.append(each)
        if each[-1] in "WX" and at == len(each) - 1 and rest:
            options.append(rest.pop(0))
    return options


def stand_by(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run ``command`` and return its exit code.

    For Windows, where exec starts another process and ends this one, which a shell takes for the end of the program.
    """
    with subprocess.Popen(command, env=environ) as program:  # noqa: S603
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the program as well, and is its to answer
        return program.wait()
