"""The user's own lnd over REST: `LndRestClient`.

Knows the arguments. What is called is left to `node_client`, and how lnd is reached to `rest_channel`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..._core.forks import importing
from ..http_url import read_wallet_url
from ..variables import made
from .environment import REST_NAMES, rest_from_environment
from .node_client import LndConnection, LndNodeClient

if TYPE_CHECKING:
    from .endpoint import Endpoint


class LndRestClient(LndNodeClient):
    """An lnd node, reached over its REST interface with a macaroon and its pinned TLS certificate.

    A node says the same over gRPC (`LndClient`) and over REST, so ledger rows may be begun over one and ended over the other.

    ``url`` is the interface's URL, for example ``https://localhost:8080``; it may have a path, where a proxy puts lnd under one.
    ``http://`` is taken for this machine itself and for ``.onion`` names alone, since the macaroon goes with each call. Give one of
    ``macaroon_path`` and ``macaroon_hex``. Give at most one of ``tls_cert_path`` and ``tls_cert_pem``; with neither, the
    authorities are trusted that the system and `requests` trust. ``timeout_seconds`` bounds every call, payments included. Proxies
    and certificates that the environment names aren't used.

    The constructor reads no file and makes no connection. That happens at the first use. A client is safe to share between threads
    and forks. A pickled client keeps paths and drops ``macaroon_hex``. A copy is the same client.

    Raises: ValueError for arguments that can't be right.
    """

    #: Another thread may ask it ahead of a purchase: see `LightningFundingSource.ask_ahead`.
    asked_ahead = True

    def __init__(
        self,
        url: str,
        *,
        macaroon_path: str | os.PathLike[str] | None = None,
        macaroon_hex: str | None = None,
        tls_cert_path: str | os.PathLike[str] | None = None,
        tls_cert_pem: str | None = None,
        timeout_seconds: float = 60,
    ) -> None:
        self._url = read_wallet_url("url", url)
        super().__init__(macaroon_path, macaroon_hex, tls_cert_path, tls_cert_pem, timeout_seconds)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> LndRestClient:
        """Return a client for the node that the environment names (``environ``, by default `os.environ`).

        The variables are ``LND_REST_URL``, ``LND_MACAROON_PATH`` or ``LND_MACAROON_HEX``, and ``LND_TLS_CERT_PATH`` or
        ``LND_TLS_CERT_HEX``.

        Raises: FundingError that names the variables, if one is missing or can't be used.
        """
        arguments = rest_from_environment(os.environ if environ is None else environ)
        return made(lambda: cls(**arguments), REST_NAMES)

    @property
    def url(self) -> str:
        """The URL of the REST interface."""
        return str(self._url)

    @property
    def _endpoint(self) -> Endpoint:
        """The node's address, with the credentials that open it."""
        return self._endpoint_at(self._url.host, self._url.port, rest_url=self._url)

    _connection_module = "funding.lnd.rest_channel"

    def _new_connection(self, endpoint: Endpoint) -> LndConnection:
        with importing:
            from .rest_channel import LndRestChannel

        return LndRestChannel(endpoint)

    def __repr__(self) -> str:
        return f"LndRestClient({self._url})"
