"""The command line ``routeweiler-sync``: the group that holds the commands. Each command has its own module.

What the exit codes mean is defined in `outcome`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from .._core.secret_text import without_secrets
from .._version import VERSION
from .bakery import bakery
from .budget import budget
from .demo import demo
from .doctor import doctor
from .get import get
from .groups import Group
from .mcp import mcp
from .payments import payments
from .report import report
from .run import run
from .schema import schema
from .tokens import tokens

_PAYMENT = re.compile(r"(?<= has no payment )[0-9a-f]{8,64}\Z")
_SILENT = logging.NullHandler()


class Commands(Group):
    """A command group that passes its arguments on unchanged. On Windows, click would replace a ``*`` in them with file names."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command in the arguments, and exit with its code."""
        return super().main(*args, **{"windows_expand_args": False, **kwargs})

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Return the context of the command in the arguments."""
        with _errors_without_secrets():
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run the command of ``context``."""
        with _errors_without_secrets():
            return super().invoke(context)


@contextlib.contextmanager
def _errors_without_secrets() -> Iterator[None]:
    """Leave out what may be a secret from the errors of click in the block, which repeat arguments. Hashes of payments stay."""
    try:
        yield
    except click.ClickException as error:
        error.message = without_secrets(error.message, _PAYMENT.findall(error.message))  # type: ignore[misc]
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="routeweiler-sync")
@click.pass_context
def main(context: click.Context) -> None:
    """Pay for HTTP over Lightning. L402 challenges are paid from your own wallet (lnd, LNbits, or Nostr Wallet Connect), within a
    budget.

    \b
    Examples:
      See a purchase, without a node and without bitcoin:
        routeweiler-sync demo
      Is everything ready to pay? And what would a page cost?
        routeweiler-sync doctor
        routeweiler-sync get --dry-run https://example.com/weather
      Buy it, or let a program buy what it needs:
        routeweiler-sync get --max-sats 20 https://example.com/weather
        routeweiler-sync run --max-sats 500 script.py
      Where has the money gone?
        routeweiler-sync payments list --since 7d

    \b
    Completion, in ~/.bashrc, in ~/.zshrc, or in
    ~/.config/fish/completions/routeweiler-sync.fish:
      eval "$(_ROUTEWEILER_SYNC_COMPLETE=bash_source routeweiler-sync)"
      eval "$(_ROUTEWEILER_SYNC_COMPLETE=zsh_source routeweiler-sync)"
      _ROUTEWEILER_SYNC_COMPLETE=fish_source routeweiler-sync | source
    """
    if context.invoked_subcommand == "run":
        return  # environment, log and stdout of that process belong to the program
    # grpc's own log lines would repeat what our errors say. grpc reads this variable when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # The commands report payments themselves. Without a handler, logging would write the library's warnings to stderr as well.
    logging.getLogger("routeweiler_sync").addHandler(_SILENT)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a Windows code page may lack a character: no reason to fail


main.add_command(bakery)
main.add_command(budget)
main.add_command(demo)
main.add_command(doctor)
main.add_command(get)
main.add_command(mcp)
main.add_command(payments)
main.add_command(report)
main.add_command(run)
main.add_command(schema)
main.add_command(tokens)

__all__ = ["main"]
