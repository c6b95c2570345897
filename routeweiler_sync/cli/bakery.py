"""``routeweiler-sync bakery``: print the command that bakes the least-privilege macaroon for paying.

Which rights these are is left to `funding.lnd.rights`. The command is only printed: no node is asked, and no file is read.

Money: none can move here.
"""

from __future__ import annotations

import ipaddress
import shlex

import click

from .._core import env_vars
from .._core.secret_text import problem_of_path
from ..funding.lnd import rights
from .tables import print_json, print_line, print_unbroken

#: Where the macaroon is written if ``--save-to`` isn't given: in the folder where lncli runs.
FILE = "payer.macaroon"
#: The names of networks in ``lncli --network``, by our names. Mainnet is lncli's default.
_LNCLI_NETWORKS = {
    "bitcoin": "mainnet",
    "bitcoin-testnet": "testnet",
    "bitcoin-signet": "signet",
    "bitcoin-regtest": "regtest",
}


@click.command()
@click.option("--save-to", metavar="FILE", default=FILE, show_default=True, help="The file that lncli writes the macaroon to.")
@click.option("--network", type=click.Choice(list(_LNCLI_NETWORKS)), help="The node's network. Default: lncli's, which is bitcoin.")
@click.option("--ip-address", metavar="IP", help="The macaroon is only good for calls from this address.")
@click.option(
    "--timeout", "timeout_s", type=click.IntRange(min=1), metavar="SECONDS", help="The macaroon is only good for so long."
)
@click.option(
    "--root-key-id",
    type=click.IntRange(min=1, max=2**63 - 1),
    metavar="N",
    help="Sign it with a root key of its own, so that 'lncli deletemacaroonid N' revokes it and no other.",
)
@click.option("--balance", is_flag=True, help="Allow reading the channels' balance too, which doctor shows.")
@click.option("--audit", is_flag=True, help="Allow reading the node's list of payments too, which budget audit compares.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of one object: command, arguments, rights, file.")
def bakery(
    *,
    save_to: str,
    network: str | None,
    ip_address: str | None,
    timeout_s: int | None,
    root_key_id: int | None,
    balance: bool,
    audit: bool,
    as_json: bool,
) -> None:
    """Print the command that bakes a macaroon which can pay, and do no more.

    Run the printed command where lncli reaches your node. It needs the node's admin macaroon; this program never does. The macaroon
    can make payments and ask what became of them. It can't send coins on the chain, open or close channels, make addresses or
    invoices, or bake further macaroons. How much it may spend is up to the budget here, not to the macaroon: keep it like money.

    Only the command goes to stdout, so it can be piped to a shell. What to do next goes to stderr.

    \b
    Examples:
      routeweiler-sync bakery
      routeweiler-sync bakery --save-to /etc/l402/payer.macaroon --audit
      routeweiler-sync bakery | ssh node.internal sh
    """
    if problem_of_path("--save-to", save_to) is not None:
        raise click.UsageError("--save-to must be the path of a file. What was given may be a secret, and isn't shown.")
    if not save_to or any(not char.isprintable() for char in save_to):
        raise click.UsageError("--save-to must be the path of a file, without control characters")
    if ip_address is not None:
        ip_address = _checked_address(ip_address)
    paths = [*rights.PAYING, *([rights.BALANCE] if balance else []), *([rights.LIST_PAYMENTS] if audit else [])]
    argv = ["lncli"]
    if network is not None and network != "bitcoin":
        argv.append(f"--network={_LNCLI_NETWORKS[network]}")
    argv += ["bakemacaroon", "--save_to", save_to]
    if ip_address is not None:
        argv += ["--ip_address", ip_address]
    if timeout_s is not None:
        argv += ["--timeout", str(timeout_s)]
    if root_key_id is not None:
        argv += ["--root_key_id", str(root_key_id)]
    argv += [rights.uri(path) for path in paths]
    command = shlex.join(argv)
    if as_json:
        print_json([{"command": command, "argv": argv, "permissions": [rights.uri(path) for path in paths], "saveTo": save_to}])
        return
    print_unbroken(command)
    for line in _next_steps(save_to):
        print_line(line, err=True)


def _next_steps(save_to: str) -> list[str]:
    name = save_to.replace("\\", "/").rpartition("/")[2]
    return [
        "",
        f"Run this where lncli reaches your node. Then copy {name} and the node's tls.cert to the machine that pays, readable by "
        "you alone, and set there:",
        f"  {env_vars.LND_GRPC_HOST}=HOST:10009",
        f"  {env_vars.LND_TLS_CERT_PATH}=/path/to/tls.cert",
        f"  {env_vars.LND_MACAROON_PATH}=/path/to/{name}",
        "routeweiler-sync doctor then says whether all is well.",
    ]


def _checked_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise click.UsageError("--ip-address must be an IP address, such as 192.0.2.7") from None
