"""Where lnd is, by environment variables: read into keyword arguments of `LndClient` or `LndRestClient`.

Opens no connection and no file. No error text of this module holds any part of a macaroon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypedDict
from urllib.parse import urlsplit

from ..._core import env_vars
from ..._core.secret_text import WHERE, kind_of, may_be_secret, problem_of_path, shown
from ...errors import FundingError
from ..variables import kind_in, refused
from .certificates import pem_of, read_certificates
from .lndconnect import DEFAULT_PORT, ClientArguments, parse_lndconnect

#: The variables of (host, certificate, macaroon). The first row whose host is set is used.
_GRPC = (
    (env_vars.LND_GRPC_HOST, env_vars.LND_TLS_CERT_PATH, env_vars.LND_MACAROON_PATH),
    (env_vars.POLAR_LND_HOST, env_vars.POLAR_LND_TLS_CERT, env_vars.POLAR_LND_MACAROON),
)
#: The variables that hold in hex what is in the file that another one names.
_HEX = {
    env_vars.LND_MACAROON_PATH: env_vars.LND_MACAROON_HEX,
    env_vars.LND_TLS_CERT_PATH: env_vars.LND_TLS_CERT_HEX,
}


#: The variable of each argument of `LndRestClient`.
REST_NAMES = {
    "url": env_vars.LND_REST_URL,
    "macaroon_path": env_vars.LND_MACAROON_PATH,
    "macaroon_hex": env_vars.LND_MACAROON_HEX,
    "tls_cert_path": env_vars.LND_TLS_CERT_PATH,
    "tls_cert_pem": env_vars.LND_TLS_CERT_HEX,
}


class _Credentials(TypedDict, total=False):
    macaroon_path: str | None
    macaroon_hex: str | None
    tls_cert_path: str | None
    tls_cert_pem: str | None


class RestArguments(_Credentials, total=False):
    """The arguments of `LndRestClient` that the environment can give."""

    url: str


def from_environment(environ: Mapping[str, str]) -> ClientArguments:
    """Return the arguments in ``ROUTEWEILER_LNDCONNECT``, else in the ``LND_…``, else in the ``POLAR_…`` variables.

    An empty variable counts as unset. A host may have a scheme before it and a port after it (10009 by default). Where the path
    of a file and its content are both given, the path counts.

    Raises: FundingError that names the variable that is missing or can't be used.
    """
    if uri := environ.get(env_vars.LNDCONNECT):
        return parse_lndconnect(uri)
    for host_name, cert_name, macaroon_name in _GRPC:
        if not (address := environ.get(host_name)):
            continue
        if may_be_secret(address):
            kind = kind_of(address)
            raise FundingError(f"{host_name} isn't host:port: it looks like {kind}, and so isn't shown.", advice=f"{WHERE[kind]}.")
        credentials = _credentials(environ, host_name, cert_name, macaroon_name)
        if kind_in(address) == "a key of LNbits":
            raise refused(host_name, address, "host:port", "")
        try:
            parts = urlsplit("//" + address.strip().rpartition("://")[2])
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host:
            raise FundingError(
                f"{host_name}={shown(address)} isn't host:port.", advice="Correct it, for example to localhost:10009."
            )
        return ClientArguments(grpc_host=host, grpc_port=port or DEFAULT_PORT, **credentials)
    sets = "; or ".join(", ".join(names) for names in _GRPC)
    raise FundingError("No node is configured.", advice=f"Set {env_vars.LNDCONNECT}; or {sets}.")


def rest_from_environment(environ: Mapping[str, str]) -> RestArguments:
    """Return the arguments in ``LND_REST_URL`` and the variables of macaroon and certificate, by path or in hex.

    Raises: FundingError that names the variable that is missing or can't be used.
    """
    advice = "Set it to the URL of lnd's REST interface, for example https://localhost:8080."
    url = (environ.get(env_vars.LND_REST_URL) or "").strip()
    if not url:
        raise FundingError(f"{env_vars.LND_REST_URL} isn't set.", advice=advice)
    if kind_in(url) not in (None, "a URL") or may_be_secret(url):
        raise refused(env_vars.LND_REST_URL, url, "the URL of lnd's REST interface", advice)
    credentials = _credentials(environ, env_vars.LND_REST_URL, env_vars.LND_TLS_CERT_PATH, env_vars.LND_MACAROON_PATH)
    return RestArguments(url=url, **credentials)


def _credentials(environ: Mapping[str, str], because: str, cert_name: str, macaroon_name: str) -> _Credentials:
    """Return macaroon and certificate. ``because`` is the variable that needs them, the others name their files."""
    found = _Credentials(macaroon_path=environ.get(macaroon_name) or None, tls_cert_path=environ.get(cert_name) or None)
    macaroon_hex, cert_hex = _HEX.get(macaroon_name), _HEX.get(cert_name)
    if found["macaroon_path"] is None:
        if macaroon_hex is None or not (text := environ.get(macaroon_hex)):
            if macaroon_hex is None:
                raise FundingError(f"{because} is set but {macaroon_name} isn't.", advice="Set that to the path of lnd's macaroon.")
            advice = f"Set {macaroon_name} to the path of lnd's macaroon, or {macaroon_hex} to the macaroon in hex."
            raise FundingError(f"{because} is set but neither {macaroon_name} nor {macaroon_hex} is.", advice=advice)
        found["macaroon_hex"] = _macaroon(macaroon_hex, text)
    for name in (macaroon_name, cert_name):
        if (problem := problem_of_path(name, environ.get(name) or "")) is not None:
            raise FundingError(f"{problem}.", advice=f"Correct {name}.")
    if found["tls_cert_path"] is None and cert_hex is not None and (text := environ.get(cert_hex)):
        found["tls_cert_pem"] = _certificate(cert_hex, text)
    return found


def _macaroon(name: str, text: str) -> str:
    """Return the macaroon in hex that the variable ``name`` holds."""
    digits = "".join(text.split())
    if re.fullmatch(r"(?:[0-9a-fA-F]{2})+", digits) and kind_in(digits) not in ("a key of LNbits", "a certificate in hex"):
        return digits
    raise refused(name, text, "a macaroon in hex", "Set it to what this prints: xxd -p -c 0 payer.macaroon")


def _certificate(name: str, text: str) -> str:
    """Return as PEM the certificate whose PEM or DER the variable ``name`` holds in hex."""
    digits = "".join(text.split())
    advice = "Set it to what this prints: xxd -p -c 0 tls.cert"
    if "-----BEGIN" in text or not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", digits):
        raise refused(name, text, "a certificate in hex", advice)
    try:
        return pem_of(read_certificates(bytes.fromhex(digits))).decode("ascii")
    except ValueError as error:
        cause = str(error)
    if kind_in(digits) in (None, "a secret", "a certificate in hex"):
        raise FundingError(f"{name} can't be used: what it says in hex {cause}.", advice=advice)
    raise refused(name, digits, "a certificate in hex", advice)
