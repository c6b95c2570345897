"""The wallets that environment variables can name: one table, and which of them is used.

A wallet's line in `WALLETS` is all that a session, the commands and `doctor` need to know of it. What the values of its variables
mean is left to its client's ``from_env``, whose module is imported only when the wallet is used.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._core import env_vars
from ..errors import FundingError

#: A longer value of a variable that holds a name isn't shown: it is no name, and a key of LNbits has 32 characters.
_NAME_CHARS_MAX = 20


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """A kind of wallet that the environment can name.

    ``name`` is its value of ``ROUTEWEILER_WALLET``, ``title`` what people call it. ``client`` is the client's class, below
    `routeweiler_sync.funding`. ``ways`` are the sets of variables that name it: the first variable of a set names the wallet, the
    others belong to it. ``instead`` are variables that may stand in place of others in a set. ``forms`` says, as the rest of a
    sentence, what some variables are set to. ``half`` are variables of no other wallet: where nothing else is named, one of them
    alone names this wallet, so that the missing ones are told.
    """

    name: str
    title: str
    client: str
    ways: tuple[tuple[str, ...], ...]
    instead: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    half: tuple[str, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables of this wallet."""
        return tuple(dict.fromkeys((*(name for way in self.ways for name in way), *self.instead.values())))

    @property
    def sets(self) -> str:
        """The sets of variables that name this wallet, as a part of a sentence."""
        return "; or ".join(_listed(f"{name}{self.forms.get(name, '')}" for name in way) for way in self.ways)

    def client_class(self) -> Any:
        """Return the class of the client. Imports its module."""
        module, _, name = self.client.rpartition(".")
        return getattr(importlib.import_module(f"..funding.{module}", __package__), name)


_LND_HEX = {
    env_vars.LND_TLS_CERT_PATH: env_vars.LND_TLS_CERT_HEX,
    env_vars.LND_MACAROON_PATH: env_vars.LND_MACAROON_HEX,
}
#: The wallets, in the order in which they are used where several are named and ``ROUTEWEILER_WALLET`` chooses none.
WALLETS = (
    Wallet(
        name="lnd",
        title="lnd",
        client="lnd.client.LndClient",
        ways=(
            (env_vars.LNDCONNECT,),
            (env_vars.LND_GRPC_HOST, env_vars.LND_TLS_CERT_PATH, env_vars.LND_MACAROON_PATH),
            (env_vars.POLAR_LND_HOST, env_vars.POLAR_LND_TLS_CERT, env_vars.POLAR_LND_MACAROON),
        ),
        instead=_LND_HEX,
        forms={env_vars.LNDCONNECT: " to the node's lndconnect URI", env_vars.LND_GRPC_HOST: " (host:port)"},
    ),
    Wallet(
        name="lnd-rest",
        title="lnd over REST",
        client="lnd.rest.LndRestClient",
        ways=((env_vars.LND_REST_URL, env_vars.LND_TLS_CERT_PATH, env_vars.LND_MACAROON_PATH),),
        instead=_LND_HEX,
    ),
    Wallet(
        name="lnbits",
        title="LNbits",
        client="lnbits.client.LnbitsClient",
        ways=((env_vars.LNBITS_URL, env_vars.LNBITS_ADMIN_KEY),),
        half=(env_vars.LNBITS_ADMIN_KEY,),
    ),
    Wallet(
        name="nwc",
        title="a wallet by Nostr Wallet Connect",
        client="nwc.client.NwcClient",
        ways=((env_vars.NWC_URL,),),
        forms={env_vars.NWC_URL: " to the wallet's nostr+walletconnect:// URI"},
    ),
)

#: What to set, as a sentence.
HOW_TO_NAME = f"Set {'; or '.join(wallet.sets for wallet in WALLETS)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What the environment says of wallets.

    ``wallet`` is the one that is used, and ``used`` are the variables that name it. ``chosen``: by ``ROUTEWEILER_WALLET``.
    ``ignored`` are the variables that would name it or another wallet too, or that others stand in place of, and aren't used.
    """

    wallet: Wallet
    used: tuple[str, ...]
    ignored: tuple[str, ...]
    chosen: bool


def names_wallet(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment names a wallet at all, even if what it says can't be used."""
    return bool(environ.get(env_vars.WALLET)) or _first(environ) is not None


def lone_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of wallets that are set; where none names a wallet, they are of no use alone."""
    return [name for name in dict.fromkeys(name for each in WALLETS for name in each.variables) if environ.get(name)]


def named(environ: Mapping[str, str] = os.environ) -> Named | None:
    """Return which wallet the environment names, and by which variables; None if it names none.

    Raises: FundingError if ``ROUTEWEILER_WALLET`` is no wallet's name.
    """
    given = environ.get(env_vars.WALLET)
    wallet = _by_name(given) if given else _first(environ)
    if wallet is None:
        return None
    ways = [way for way in wallet.ways if environ.get(way[0])]
    used, ignored = [], [way[0] for way in ways[1:]]
    for name in (ways or wallet.ways)[0]:
        other = wallet.instead.get(name, "")
        if environ.get(name):
            used.append(name)
            ignored += [other] if environ.get(other) else []
        elif environ.get(other):
            used.append(other)
    if not given:
        ignored += [way[0] for each in WALLETS if each is not wallet for way in each.ways if environ.get(way[0])]
    return Named(wallet=wallet, used=tuple(used), ignored=tuple(ignored), chosen=bool(given))


def client(environ: Mapping[str, str] = os.environ) -> Any:
    """Return a client of the wallet that the environment names. Nothing is connected.

    Raises: FundingError if none is named, or its variables can't be used.
    """
    found = named(environ)
    if found is None:
        raise FundingError("No wallet is configured.", advice=HOW_TO_NAME)
    if not found.used:
        what = f"{env_vars.WALLET} is {found.wallet.name}, and no variable names that wallet."
        raise FundingError(what, advice=f"Set {found.wallet.sets}.")
    return found.wallet.client_class().from_env(environ)


def class_of(client: object) -> str | None:
    """Return the class of ``client`` as `Wallet.client` names it, also for a subclass; None for a program's own client."""
    inherited = [f"{each.__module__}.{each.__qualname__}" for each in type(client).__mro__]
    prefix = f"{__package__.rpartition('.')[0]}.funding."
    classes = {f"{prefix}{wallet.client}": wallet.client for wallet in WALLETS}
    return next((classes[name] for name in inherited if name in classes), None)


def shown_name(given: str) -> str:
    """Return the value of a variable that holds a name, for an error text; a remark if it may be a secret."""
    text = given.strip()
    is_name = len(text) <= _NAME_CHARS_MAX and text.isprintable()
    return repr(text) if is_name else "a text that isn't shown, since it may be a secret"


def _first(environ: Mapping[str, str]) -> Wallet | None:
    by_way = (wallet for wallet in WALLETS for way in wallet.ways if environ.get(way[0]))
    by_half = (wallet for wallet in WALLETS for name in wallet.half if environ.get(name))
    return next(by_way, None) or next(by_half, None)


def _by_name(given: str) -> Wallet:
    name = given.strip().lower()
    for wallet in WALLETS:
        if wallet.name == name:
            return wallet
    names = ", ".join(each.name for each in WALLETS)
    raise FundingError(
        f"{env_vars.WALLET} is {shown_name(given)}, and the wallets are {names}.",
        advice=f"Set {env_vars.WALLET} to one of them, or not at all.",
    )
