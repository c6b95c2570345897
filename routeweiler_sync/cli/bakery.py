"""``routeweiler-sync bakery``: say how to make the key of a wallet that can pay and do no more; for lnd and litd, by which command.

Which rights these are is left to `funding.lnd.rights` and `funding.nwc.rights`. Commands are only printed: no wallet is asked, and
no file is read.

Money: none can move here.
"""

from __future__ import annotations

import ipaddress
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from .._core import env_vars
from .._core.secret_text import problem_of_path
from ..funding.lnd import rights as lnd_rights
from ..funding.nwc import rights as nwc_rights
from .tables import print_json, print_line, print_unbroken

#: Where the macaroon is written if ``--save-to`` isn't given: in the folder where lncli or litcli runs.
FILE = "payer.macaroon"
#: The names of networks in ``lncli --network``, by our names. Mainnet is lncli's default.
_LNCLI_NETWORKS = {
    "bitcoin": "mainnet",
    "bitcoin-testnet": "testnet",
    "bitcoin-signet": "signet",
    "bitcoin-regtest": "regtest",
}
_DOCTOR = "routeweiler-sync doctor then says whether all is well."


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the options say. None or False: the option wasn't given."""

    save_to: str | None
    network: str | None
    ip_address: str | None
    timeout_s: int | None
    root_key_id: int | None
    sats: int | None
    balance: bool
    audit: bool

    @property
    def file(self) -> str:
        """The file of the macaroon."""
        return FILE if self.save_to is None else self.save_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the key is made: by the command ``argv``, or by hand if that is None; then what to do next.

    ``permissions`` are what the key allows. ``save_to`` is the file that the command writes.
    """

    argv: tuple[str, ...] | None
    permissions: tuple[str, ...]
    steps: tuple[str, ...]
    save_to: str | None = None


def _lnd(wanted: Wanted, address: str = f"{env_vars.LND_GRPC_HOST}=HOST:10009") -> Recipe:
    paths = [
        *lnd_rights.PAYING,
        *([lnd_rights.BALANCE] if wanted.balance else []),
        *([lnd_rights.LIST_PAYMENTS] if wanted.audit else []),
    ]
    permissions = tuple(map(lnd_rights.uri, paths))
    argv = ["lncli"]
    if wanted.network is not None and wanted.network != "bitcoin":
        argv.append(f"--network={_LNCLI_NETWORKS[wanted.network]}")
    argv += ["bakemacaroon", "--save_to", wanted.file]
    if wanted.ip_address is not None:
        argv += ["--ip_address", _checked_address(wanted.ip_address)]
    if wanted.timeout_s is not None:
        argv += ["--timeout", str(wanted.timeout_s)]
    if wanted.root_key_id is not None:
        argv += ["--root_key_id", str(wanted.root_key_id)]
    steps = (
        f"Run this where lncli reaches your node. Then {_copied(wanted.file)}",
        *_variables(wanted.file, address),
    )
    return Recipe(argv=(*argv, *permissions), permissions=permissions, steps=steps, save_to=wanted.file)


def _lnd_rest(wanted: Wanted) -> Recipe:
    return _lnd(wanted, f"{env_vars.LND_REST_URL}=https://HOST:8080")


def _litd(wanted: Wanted) -> Recipe:
    if wanted.sats is None:
        raise click.UsageError("for litd give --sats: the balance of the account, which its macaroon can't exceed")
    argv = ["litcli", "accounts", "create", "--balance", str(wanted.sats), "--save_to", wanted.file]
    if wanted.timeout_s is not None:
        argv += ["--expiration_date", str(int(time.time()) + wanted.timeout_s)]
    steps = (
        f"Run this where litcli reaches your litd. It writes {_name_of(wanted.file)} readable for everybody: chmod 600 it. Then "
        f"{_copied(wanted.file)}",
        *_variables(wanted.file, f"{env_vars.LND_GRPC_HOST}=HOST:10009")[:-1],
        f"(or {env_vars.LND_REST_URL}=https://HOST:8080 in place of {env_vars.LND_GRPC_HOST}).",
        f"litd takes from the account what is paid, with routing: what is in it is the most that can be lost. {_DOCTOR}",
    )
    return Recipe(argv=tuple(argv), permissions=("account",), steps=steps, save_to=wanted.file)


def _lnbits(wanted: Wanted) -> Recipe:
    steps = (
        "LNbits has no key that can pay and do no more: of a wallet's keys, the admin key pays, and the invoice key can't. The "
        "admin key spends all that is in its wallet, and can change that wallet.",
        "So make a wallet for this program alone, and put into it no more than you can do without: nothing beyond it can be lost.",
        "In LNbits: Add a new wallet; open it; 'Node URL, API keys and API docs' shows the admin key. On the machine that pays:",
        f"  {env_vars.LNBITS_URL}=https://HOST",
        f"  {env_vars.LNBITS_ADMIN_KEY}=KEY",
        _DOCTOR,
    )
    return Recipe(argv=None, permissions=("admin key of one wallet",), steps=steps)


def _nwc(wanted: Wanted) -> Recipe:
    permissions = (
        *nwc_rights.PAYING,
        *((nwc_rights.BALANCE,) if wanted.balance else ()),
        *((nwc_rights.LIST_PAYMENTS,) if wanted.audit else ()),
    )
    steps = (
        "In your wallet, make a new connection for this program alone, with these permissions and no others:",
        f"  {', '.join(permissions)}",
        "Set a budget for it, and the time after which the budget is renewed: the wallet itself then refuses what is beyond it. "
        "Where the wallet offers it, give the connection a balance of its own, and a day on which it ends.",
        "The wallet shows its URI, which begins with nostr+walletconnect:// and can spend. Set on the machine that pays:",
        f"  {env_vars.NWC_URL}=URI",
        _DOCTOR,
    )
    return Recipe(argv=None, permissions=permissions, steps=steps)


#: For each wallet: how its key is made, and which options say more about it.
_RECIPES: dict[str, tuple[Callable[[Wanted], Recipe], frozenset[str]]] = {
    "lnd": (_lnd, frozenset({"save_to", "network", "ip_address", "timeout_s", "root_key_id", "balance", "audit"})),
    "lnd-rest": (_lnd_rest, frozenset({"save_to", "network", "ip_address", "timeout_s", "root_key_id", "balance", "audit"})),
    "litd": (_litd, frozenset({"save_to", "timeout_s", "sats", "balance", "audit"})),
    "lnbits": (_lnbits, frozenset({"balance", "audit"})),
    "nwc": (_nwc, frozenset({"balance", "audit"})),
}
_OPTIONS = {
    "save_to": "--save-to",
    "network": "--network",
    "ip_address": "--ip-address",
    "timeout_s": "--timeout",
    "root_key_id": "--root-key-id",
    "sats": "--sats",
}


@click.command()
@click.option("--wallet", type=click.Choice(list(_RECIPES)), default="lnd", show_default=True, help="The kind of wallet.")
@click.option("--save-to", metavar="FILE", help=f"The file that lncli or litcli writes the macaroon to.  [default: {FILE}]")
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
@click.option("--sats", type=click.IntRange(min=1, max=2**63 - 1), metavar="N", help="For litd: what the account may spend in all.")
@click.option("--balance", is_flag=True, help="Allow reading the balance too, which doctor shows.")
@click.option("--audit", is_flag=True, help="Allow reading the wallet's list of payments too, which budget audit compares.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of one object: command, arguments, rights, file, steps.")
def bakery(
    *,
    wallet: str,
    save_to: str | None,
    network: str | None,
    ip_address: str | None,
    timeout_s: int | None,
    root_key_id: int | None,
    sats: int | None,
    balance: bool,
    audit: bool,
    as_json: bool,
) -> None:
    """Print the command that bakes a macaroon which can pay, and do no more.

    Run the printed command where lncli reaches your node. It needs the node's admin macaroon; this program never does. The macaroon
    can make payments and ask what became of them. It can't send coins on the chain, open or close channels, make addresses or
    invoices, or bake further macaroons. How much it may spend is up to the budget here, not to the macaroon: keep it like money.

    For litd the command makes an account, and a macaroon that can spend what is in it. For LNbits and Nostr Wallet Connect there is
    no command: it says what to do in the wallet.

    Only the command goes to stdout, so it can be piped to a shell. What to do next goes to stderr; where there is no command, to
    stdout.

    \b
    Examples:
      routeweiler-sync bakery
      routeweiler-sync bakery --save-to /etc/l402/payer.macaroon --audit
      routeweiler-sync bakery | ssh node.internal sh
      routeweiler-sync bakery --wallet litd --sats 50000
      routeweiler-sync bakery --wallet nwc
    """
    wanted = Wanted(
        save_to=save_to,
        network=network,
        ip_address=ip_address,
        timeout_s=timeout_s,
        root_key_id=root_key_id,
        sats=sats,
        balance=balance,
        audit=audit,
    )
    make, taken = _RECIPES[wallet]
    for name, option in _OPTIONS.items():
        if getattr(wanted, name) is not None and name not in taken:
            of = ", ".join(each for each, (_, options) in _RECIPES.items() if name in options)
            raise click.UsageError(f"{option} isn't for {wallet}, but for {of}")
    if problem_of_path("--save-to", wanted.file) is not None:
        raise click.UsageError("--save-to must be the path of a file. What was given may be a secret, and isn't shown.")
    if not wanted.file or any(not char.isprintable() for char in wanted.file):
        raise click.UsageError("--save-to must be the path of a file, without control characters")
    recipe = make(wanted)
    command = None if recipe.argv is None else shlex.join(recipe.argv)
    if as_json:
        made = {
            "wallet": wallet,
            "command": command,
            "argv": None if recipe.argv is None else list(recipe.argv),
            "permissions": list(recipe.permissions),
            "saveTo": recipe.save_to,
            "steps": list(recipe.steps),
        }
        print_json([made])
        return
    if command is not None:
        print_unbroken(command)
        print_line("", err=True)
    for line in recipe.steps:
        print_line(line, err=command is not None)


def _copied(file: str) -> str:
    return f"copy {_name_of(file)} and the node's tls.cert to the machine that pays, readable by you alone, and set there:"


def _variables(file: str, address: str) -> tuple[str, ...]:
    return (
        f"  {address}",
        f"  {env_vars.LND_TLS_CERT_PATH}=/path/to/tls.cert",
        f"  {env_vars.LND_MACAROON_PATH}=/path/to/{_name_of(file)}",
        _DOCTOR,
    )


def _name_of(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _checked_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise click.UsageError("--ip-address must be an IP address, such as 192.0.2.7") from None
