"""The command line. Each command has a module of its own; here they are put together. What an exit code means: `outcome`."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

import click

from .._version import VERSION
from .budget import budget
from .demo import demo
from .get import get
from .run import run

_UNSAID = logging.NullHandler()


class Commands(click.Group):
    """Takes its arguments as they are, also on Windows, where click would have a * in them stand for files."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        return super().main(*args, **{"windows_expand_args": False, **kwargs})


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="routeweiler-sync")
@click.pass_context
def main(context: click.Context) -> None:
    """Pay for HTTP over Lightning: L402 challenges are paid through your own LND node, within a budget."""
    if context.invoked_subcommand == "run":
        return  # what the program's process is like is the program's
    # grpc's own log lines say in its words what our errors say in ours. Read by grpc when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What became of the money is told once, in the commands' own words. Unheard, the library's log would be on stderr as well.
    logging.getLogger("routeweiler_sync").addHandler(_UNSAID)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that a Windows code page lacks is no reason to fail


main.add_command(budget)
main.add_command(demo)
main.add_command(get)
main.add_command(run)

__all__ = ["main"]
