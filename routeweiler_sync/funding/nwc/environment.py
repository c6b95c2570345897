"""Which wallet is reached by Nostr Wallet Connect, by an environment variable: read into an argument of `NwcClient`.

Opens no connection. The URI holds a key that pays, so no error repeats any part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..._core import env_vars
from ...errors import FundingError
from ..variables import refused

#: The variable of each argument.
NAMES = {"uri": env_vars.NWC_URL}
#: How the URI begins (NIP-47), and how it began in wallets' first years.
_SCHEMES = ("nostr+walletconnect:", "nostrwalletconnect:")


def from_environment(environ: Mapping[str, str]) -> str:
    """Return the URI in ``NWC_URL``. An empty variable counts as unset.

    Raises: FundingError that names the variable if it is missing or can't be used.
    """
    uri = (environ.get(env_vars.NWC_URL) or "").strip()
    if not uri:
        advice = "Set it to the nostr+walletconnect:// URI that the wallet shows for a new connection."
        raise FundingError(f"{env_vars.NWC_URL} isn't set.", advice=advice)
    if not uri.lower().startswith(_SCHEMES):
        if any(scheme in uri.lower() for scheme in _SCHEMES):
            what = f"{env_vars.NWC_URL} has something before the URI, a quotation mark for instance."
            raise FundingError(what, advice="Set it to the URI alone, as the wallet shows it.")
        raise refused(env_vars.NWC_URL, uri, "a nostr+walletconnect:// URI", "Copy it again from the wallet.")
    return uri
