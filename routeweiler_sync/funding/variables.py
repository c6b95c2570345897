"""How the environment variables of wallets are read: checks that the modules `environment` of all wallets share.

An empty variable counts as unset. No error repeats a value: it may be a secret that was given in the wrong variable, and some, such
as the keys of LNbits, look like any id. Opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from .._core import env_vars
from .._core.secret_text import WHERE, kind_of, may_be_secret
from ..errors import FundingError

T = TypeVar("T")

#: An id of 32 hex digits, in which form LNbits writes its keys and the ids of users and wallets.
_LNBITS_KEY = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATH = re.compile(r"(?:[A-Za-z]:\\|[/~.])\S+|\S+\.(?:macaroon|cert|pem|crt)")
#: The hex of a certificate begins so: its PEM, or its DER (a sequence whose length takes two bytes).
_CERTIFICATE_HEX = re.compile(r"2d2d2d2d2d424547494e|3082[0-9a-f]{4}3082", re.IGNORECASE)
#: Where a value belongs that a variable holds by mistake, for the kinds that `WHERE` doesn't know.
_WHERE = {
    "a path": f"Give a path as {env_vars.LND_MACAROON_PATH} or {env_vars.LND_TLS_CERT_PATH}",
    "a key of LNbits": f"Give a key of LNbits as {env_vars.LNBITS_ADMIN_KEY}",
    "a URL": f"Give a URL as {env_vars.LND_REST_URL} or {env_vars.LNBITS_URL}",
    "a URL with a password": f"Leave out user and password; give the URL of a ledger as {env_vars.LEDGER}",
    "a key of nostr": f"Give the whole Nostr Wallet Connect URI as {env_vars.NWC_URL}",
    "a certificate in hex": f"Give a certificate in hex as {env_vars.LND_TLS_CERT_HEX}",
}


def required(environ: Mapping[str, str], name: str, advice: str, *, because: str) -> str:
    """Return the value of the variable ``name``, without white space around it. ``because`` is the variable that needs it.

    Raises: FundingError with ``advice`` if it isn't set.
    """
    if value := (environ.get(name) or "").strip():
        return value
    raise FundingError(f"{because} is set but {name} isn't.", advice=advice)


def refused(name: str, value: str, wanted: str, advice: str) -> FundingError:
    """Return the error for the variable ``name`` whose ``value`` isn't what is ``wanted``: it says what it looks like instead."""
    kind = kind_in(value)
    if kind is None:
        return FundingError(f"{name} isn't {wanted}.", advice=advice)
    where = _WHERE.get(kind) or WHERE[kind]
    return FundingError(f"{name} isn't {wanted}: it looks like {kind}, and so isn't shown.", advice=f"{where}.")


def kind_in(value: str) -> str | None:
    """Return what ``value`` looks like: ``a macaroon``, ``a path``, ``a key of LNbits``, …; None for none of these."""
    value = value.strip()
    kind = kind_of(value)
    if kind != "a secret":
        return kind
    if _LNBITS_KEY.fullmatch(value):
        return "a key of LNbits"
    if value.lower().startswith(("nsec1", "npub1", "nprofile1")):
        return "a key of nostr"
    if _CERTIFICATE_HEX.match(value):
        return "a certificate in hex"
    if _URL.match(value):
        return "a URL"
    if _PATH.fullmatch(value):
        return "a path"
    return kind if may_be_secret(value) else None


def made(make: Callable[[], T], names: Mapping[str, str]) -> T:
    """Return what ``make`` returns: a client whose arguments come from variables. ``names`` are the variables by argument.

    Raises: FundingError for a ValueError, in whose text each argument becomes its variable.
    """
    try:
        return make()
    except ValueError as error:
        text = str(error)
    words = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + r")(?![\w=(])")
    said = words.sub(lambda found: names[found[1]], text)
    variables = list(dict.fromkeys(names.values()))
    named = [name for name in variables if name in said]
    if not named:
        said = f"{' and '.join(variables)} can't be used: {said}"
    raise FundingError(f"{said.rstrip('.')}.", advice=f"Correct {' or '.join(named or variables)}.")
