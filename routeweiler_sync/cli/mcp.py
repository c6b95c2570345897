"""``routeweiler-sync mcp``: a server of the Model Context Protocol, so that an agent can fetch and pay within the user's limits.

This module knows the options. The tools are in `agent_tools`, the protocol in `mcp_server`, which needs the extra ``mcp``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .outcome import Exit, printable
from .tables import print_line

if TYPE_CHECKING:
    from .agent_tools import Tools

#: The most characters that a page may be cut at.
MAX_CHARS_MAX = 10_000_000


@click.command(short_help="Serve an agent over the Model Context Protocol.")
@click.option("--max-sats", type=click.IntRange(min=0), metavar="N", help="Limit what the server may spend in all while it runs.")
@click.option("--max-sats-per-call", type=click.IntRange(min=0), metavar="N", help="Limit what one call may spend.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Fetch from this origin, such as https://example.com or '*.example.com', and from no others; repeat for several.",
)
@click.option("--confirm", is_flag=True, help="Ask the user before each payment, through the client, which must be able to ask.")
@click.option("--folder", metavar="DIR", help="Let pages be written to new files in this folder.")
@click.option(
    "--max-chars",
    type=click.IntRange(1, MAX_CHARS_MAX),
    default=20_000,  # fetching.MAX_CHARS: its module would make every command start later
    show_default=True,
    metavar="N",
    help="Cut pages after N characters.",
)
@click.option("--agent-id", metavar="NAME", help="Name the agent in ledger and trace. Default: ROUTEWEILER_AGENT.")
@click.option(
    "--http",
    "port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve over streamable HTTP on loopback, in place of stdio. 0: any free port. The URL is written to stderr.",
)
@click.pass_context
def mcp(
    context: click.Context,
    *,
    max_sats: int | None,
    max_sats_per_call: int | None,
    origins: Sequence[str],
    confirm: bool,
    folder: str | None,
    max_chars: int,
    agent_id: str | None,
    port: int | None,
) -> None:
    """Serve an agent over the Model Context Protocol (MCP), by stdio or by HTTP on loopback.

    The tools are fetch (which pays), quote, budget and payments; the resource is spending. Limits come from these options and from
    the budget: no argument of a tool raises one, nor does a page that the agent reads. --max-sats counts from the server's start;
    limits that hold across restarts, such as per day, belong to the budget in ROUTEWEILER_BUDGET.

    The environment names wallet, budget, ledger and trace, as for the command get. It needs the extra mcp:
    pip install 'routeweiler-sync[mcp]'

    Over HTTP, every program on this machine can use the server, within its limits. Web pages can't.

    \b
    Examples:
      routeweiler-sync mcp --max-sats 500 --max-sats-per-call 50
      routeweiler-sync mcp --confirm --allow-origin https://example.com
      routeweiler-sync mcp --http 8402 --folder downloads

    \b
    Exit codes:
      0  the client has gone, or the server was told to stop
      1  the port can't be used, or the extra is missing
      2  wrong usage
    """
    from ..policy.patterns import problem_of_origin

    if problem := next(filter(None, map(problem_of_origin, origins)), None):
        raise click.UsageError(printable(f"--allow-origin: {problem}"))
    try:
        from . import mcp_server
    except ImportError as error:
        print_line(f"The command mcp needs the extra mcp: pip install 'routeweiler-sync[mcp]' ({error}).", err=True)
        context.exit(Exit.ERROR)
    from .agent_tools import Options, Tools

    try:
        options = Options(
            max_sats=max_sats,
            max_sats_per_call=max_sats_per_call,
            origins=tuple(origins),
            confirm=confirm,
            folder=folder,
            max_chars=max_chars,
            agent_id=agent_id,
        )
        tools = Tools(options)
    except ValueError as error:
        raise click.UsageError(printable(error)) from None
    with contextlib.closing(tools), contextlib.suppress(KeyboardInterrupt):
        if port is None:
            if sys.stdin is not None and sys.stdin.isatty():
                print_line("Waiting for an MCP client on stdin. Ctrl-C ends it.", err=True)
            mcp_server.run_stdio(tools)
        else:
            _serve_http(context, tools, port)


def _serve_http(context: click.Context, tools: Tools, port: int) -> None:
    """Serve over HTTP at ``port`` until a signal ends it. End the command if the port can't be used."""
    from . import mcp_server

    try:
        listener = mcp_server.listening(port)
    except OSError as error:
        print_line(f"Port {port} can't be used: {error.strerror or error}.", err=True)
        context.exit(Exit.ERROR)
    with listener:
        print_line(f"Serving MCP at {mcp_server.url_of(listener)}", err=True)
        mcp_server.run_http(tools, listener)
