"""``routeweiler-sync schema``: commands, outputs, exit codes and environment as JSON, so that an agent can use the shell.

Commands and options are read from the commands themselves; what they print with ``--json`` is described in `output_schemas`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any

import click

from .._core import env_vars
from .._version import VERSION
from .outcome import Exit

#: What each exit code means, in general. The help of a command says what it means there.
EXIT_CODES = {
    Exit.OK: "done",
    Exit.ERROR: "network or HTTP error, nothing was paid; or what was looked at isn't as it should be",
    Exit.USAGE: "wrong usage, nothing was sent",
    Exit.REFUSED: "refused before paying, nothing was spent; or the ledger or the wallet can't be used",
    Exit.FAILED: "the payment failed, nothing was spent",
    Exit.PENDING: "the outcome of a payment isn't known yet: call again, nothing is paid twice",
    Exit.UNDELIVERED: "paid, but the page didn't arrive: call again, a token is used; if paid for one request, ask --dry-run",
}
#: The same of all other codes.
OTHER_EXIT_CODES = "stopped by a signal (130, 143, ...): call again, nothing is paid twice; of run: the program's own"
#: When a command that is told --json prints none.
NO_OUTPUT = "nothing is printed if the command is stopped, or can't do what it is asked: then stderr says why"
#: What each environment variable means, and whether its value is a secret.
ENVIRONMENT = {
    env_vars.LNDCONNECT: ("lnd, as an lndconnect URI", True),
    env_vars.LND_GRPC_HOST: ("lnd's gRPC, as host:port", False),
    env_vars.LND_REST_URL: ("lnd's REST interface, as a URL", False),
    env_vars.LND_TLS_CERT_PATH: ("path of lnd's tls.cert", False),
    env_vars.LND_MACAROON_PATH: ("path of the macaroon that pays", False),
    env_vars.LND_TLS_CERT_HEX: ("lnd's tls.cert itself, in hex", False),
    env_vars.LND_MACAROON_HEX: ("the macaroon itself, in hex", True),
    env_vars.POLAR_LND_HOST: ("as LND_GRPC_HOST, in Polar's words", False),
    env_vars.POLAR_LND_TLS_CERT: ("as LND_TLS_CERT_PATH, in Polar's words", False),
    env_vars.POLAR_LND_MACAROON: ("as LND_MACAROON_PATH, in Polar's words", False),
    env_vars.LNBITS_URL: ("an LNbits, as a URL", False),
    env_vars.LNBITS_ADMIN_KEY: ("the admin key of its wallet", True),
    env_vars.NWC_URL: ("a wallet over Nostr Wallet Connect, as nostr+walletconnect://...", True),
    env_vars.WALLET: ("which wallet, if several are named: lnd, lnd-rest, lnbits or nwc", False),
    env_vars.NETWORK: ("bitcoin, bitcoin-testnet, bitcoin-signet or bitcoin-regtest; default: the wallet is asked", False),
    env_vars.BUDGET: ("limits, such as '1000 sat/call, 50000 sat/day', or 'none'", False),
    env_vars.ENVELOPE: ("the id of a budget in the ledger, in place of ROUTEWEILER_BUDGET", False),
    env_vars.AGENT: ("the agent whose payments they are, for ledger and trace", False),
    env_vars.LEDGER: ("path or URL of the ledger; default: the user's own", True),
    env_vars.TRACE: ("path of the trace: JSON lines, or SQLite if it ends in .db; default: no trace", False),
    env_vars.ALLOW_HTTP_PAYMENT: ("1: pay by the Payment scheme over plain http too", False),
    env_vars.ALLOW_HTTP_WALLET: ("1: reach a wallet over plain http or ws too", False),
}
_TYPES = {click.INT: "integer", click.FLOAT: "number", click.BOOL: "boolean"}


@click.command(short_help="Print commands, outputs and exit codes as JSON Schema.")
@click.argument("command", nargs=-1)
def schema(*, command: Sequence[str]) -> None:
    """Print the arguments, outputs, exit codes and environment variables of all commands as JSON, for agents and other programs.

    With COMMAND, print only that command, or the commands of that group. Each command has a JSON Schema (draft 2020-12) of its
    arguments, input, and one of what it prints with --json, output: on stdout, or nothing and the reason on stderr.

    \b
    Examples:
      routeweiler-sync schema
      routeweiler-sync schema payments list
    """
    wanted = " ".join(command)
    from . import main

    commands = [each for each in _commands(main) if not wanted or f"{each['name']} ".startswith(f"{wanted} ")]
    if not commands:
        raise click.UsageError(f"there is no command {wanted[:100]!r}: routeweiler-sync schema lists all")
    printed: dict[str, Any] = {
        "program": "routeweiler-sync",
        "version": VERSION,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "commands": commands,
        "output": NO_OUTPUT,
        "exitCodes": {**{str(code.value): meaning for code, meaning in EXIT_CODES.items()}, "other": OTHER_EXIT_CODES},
        "environment": [{"name": name, "meaning": meaning, "secret": secret} for name, (meaning, secret) in ENVIRONMENT.items()],
    }
    if not wanted or wanted == "mcp":
        printed["mcp"] = _mcp()
    click.echo(json.dumps(printed, indent=1))


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Yield all commands below ``command``, groups left out."""
    if isinstance(command, click.Group):
        for name, each in sorted(command.commands.items()):
            yield from _commands(each, (*path, name))
        return
    from . import output_schemas

    name = " ".join(path)
    yield {
        "name": name,
        "summary": command.get_short_help_str(10_000),
        "help": _plain(command.help or ""),
        "input": _input(command),
        "output": output_schemas.OF_COMMANDS.get(name),
    }


def _plain(text: str) -> str:
    """Return a help text without click's marks."""
    return inspect.cleandoc("\n".join(line for line in text.splitlines() if line.strip() != "\b"))


def _input(command: click.Command) -> dict[str, Any]:
    """Return the JSON Schema of a command's arguments. ``x-flags`` says how an option is written; arguments have none."""
    properties, required = {}, []
    for each in command.params:
        flags = [] if isinstance(each, click.Argument) else sorted((*each.opts, *each.secondary_opts), key=len, reverse=True)
        name = flags[0].lstrip("-") if flags else (each.name or "")
        properties[name] = {**_value(each), "x-flags": flags}
        if each.required:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(parameter: click.Parameter) -> dict[str, Any]:
    """Return the JSON Schema of one argument or option."""
    kind = parameter.type
    value: dict[str, Any] = {"type": "string"}
    if isinstance(parameter, click.Option) and parameter.is_flag:
        value = {"type": "boolean"}
    elif isinstance(kind, click.Choice):
        value = {"type": "string", "enum": list(kind.choices)}
    elif isinstance(kind, click.IntRange):
        value = {"type": "integer"}
        if kind.min is not None:
            value["minimum"] = kind.min
        if kind.max is not None:
            value["maximum"] = kind.max
    elif kind in _TYPES:
        value = {"type": _TYPES[kind]}
    if parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs == -1:
        value = {"type": "array", "items": value}
    about = {"description": parameter.help} if isinstance(parameter, click.Option) and parameter.help else {}
    return {**about, **value}


def _mcp() -> dict[str, Any]:
    """Return the tools of ``mcp``, which a client of it lists in more detail."""
    from ..agents.folder import FILE_NAME
    from . import output_schemas as schemas
    from .agent_tools import PAYMENTS_LISTED, PAYMENTS_LISTED_MAX

    return {
        "tools": {
            "fetch": {"input": schemas.fetch_input(FILE_NAME), "output": schemas.FETCH_OUTPUT},
            "quote": {"input": schemas.QUOTE_INPUT, "output": schemas.FETCH_OUTPUT},
            "budget": {"input": schemas.BUDGET_INPUT, "output": schemas.BUDGET_OUTPUT},
            "payments": {
                "input": schemas.payments_input(PAYMENTS_LISTED, PAYMENTS_LISTED_MAX),
                "output": schemas.PAYMENTS_OUTPUT,
            },
        },
        "resources": {"routeweiler-sync://spending": schemas.SPENDING_OUTPUT},
    }
