"""Where LNbits is, by environment variables: read into keyword arguments of `LnbitsClient`. Opens no connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from ..._core import env_vars
from ..._core.secret_text import may_be_secret
from ...errors import FundingError
from ..variables import kind_in, refused, required

#: The variable of each argument.
NAMES = {"url": env_vars.LNBITS_URL, "admin_key": env_vars.LNBITS_ADMIN_KEY}


class Arguments(TypedDict):
    """The arguments of `LnbitsClient` that the environment gives."""

    url: str
    admin_key: str


def from_environment(environ: Mapping[str, str]) -> Arguments:
    """Return the arguments in ``LNBITS_URL`` and ``LNBITS_ADMIN_KEY``. An empty variable counts as unset.

    Raises: FundingError that names the variable that is missing or can't be used, and never repeats the key.
    """
    about_url = "Set it to the address of your LNbits, for example https://lnbits.example."
    about_key = "Set it to the admin key of one wallet: LNbits shows it in the wallet, under 'Node URL, API keys and API docs'."
    if not environ.get(env_vars.LNBITS_URL) and not environ.get(env_vars.LNBITS_ADMIN_KEY):
        advice = f"{about_url} Set {env_vars.LNBITS_ADMIN_KEY} to the admin key of one wallet."
        raise FundingError(f"{env_vars.LNBITS_URL} and {env_vars.LNBITS_ADMIN_KEY} aren't set.", advice=advice)
    url = required(environ, env_vars.LNBITS_URL, about_url, because=env_vars.LNBITS_ADMIN_KEY)
    if kind_in(url) not in (None, "a URL") or may_be_secret(url):
        raise refused(env_vars.LNBITS_URL, url, "the address of an LNbits", about_url)
    key = required(environ, env_vars.LNBITS_ADMIN_KEY, about_key, because=env_vars.LNBITS_URL)
    if kind_in(key) not in (None, "a secret", "a key of LNbits"):
        raise refused(env_vars.LNBITS_ADMIN_KEY, key, "a key of LNbits", about_key)
    return Arguments(url=url, admin_key=key)
