"""Where the node is: read an lndconnect URI into keyword arguments of `LndClient`.

Opens no connection; that is left to `channel`. No error text of this module holds any part of a macaroon.
"""

from __future__ import annotations

import base64
import re
import ssl
from typing import TypedDict
from urllib.parse import parse_qs, urlsplit

from ..._core.secret_text import may_be_secret
from ...errors import FundingError

DEFAULT_PORT = 10009


class ClientArguments(TypedDict, total=False):
    """The arguments of `LndClient` that a URI or the environment can give."""

    grpc_host: str
    grpc_port: int
    macaroon_path: str | None
    macaroon_hex: str | None
    tls_cert_path: str | None
    tls_cert_pem: str | None


def parse_lndconnect(uri: str) -> ClientArguments:
    """Return the arguments in ``lndconnect://host:port?[cert=<base64url DER>&]macaroon=<base64url>``.

    Certificate and macaroon are unpadded (the lndconnect specification); padding is accepted. The default port is 10009.

    Raises: FundingError for a URI that can't be used. Its text never repeats the URI, which holds the macaroon.
    """
    if not isinstance(uri, str):
        raise _unusable(f"it is a {type(uri).__name__}, and no text")
    try:
        parts = urlsplit(uri.strip())
        host, port = parts.hostname, parts.port
    except ValueError:  # it repeats the URI, and would be the context of an error that is raised here
        parts = None
    if parts is None:
        raise _unusable("its host or port is malformed")
    if parts.scheme != "lndconnect":
        raise _unusable("it doesn't begin with lndconnect://")
    if not host or parts.username is not None or parts.path not in ("", "/") or may_be_secret(host):
        raise _unusable("it isn't of the form lndconnect://host:port?…")
    query = parse_qs(parts.query, keep_blank_values=True)
    if any(len(query.get(key, ())) > 1 for key in ("cert", "macaroon")):
        raise _unusable("it gives cert or macaroon twice")
    if "macaroon" not in query:
        raise _unusable("it has no macaroon")
    arguments = ClientArguments(
        grpc_host=host, grpc_port=port or DEFAULT_PORT, macaroon_hex=_base64url(query["macaroon"][0], "macaroon").hex()
    )
    if "cert" in query:
        arguments["tls_cert_pem"] = ssl.DER_cert_to_PEM_cert(_base64url(query["cert"][0], "cert"))
    return arguments


def _base64url(text: str, what: str) -> bytes:
    text = text.rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text) or len(text) % 4 == 1:
        raise _unusable(f"its {what} isn't base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _unusable(cause: str) -> FundingError:
    return FundingError(f"The lndconnect URI can't be used: {cause}.", advice="Copy it again from the node.")
