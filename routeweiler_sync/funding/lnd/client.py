"""The user's own lnd over gRPC: `LndClient`.

Knows the arguments. What is called is left to `node_client`, and how lnd is reached to `channel`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..._core.secret_text import kind_of, may_be_secret, shown
from ...errors import FundingError
from .environment import from_environment
from .lndconnect import DEFAULT_PORT, parse_lndconnect
from .node_client import LndConnection, LndNodeClient, where_it_belongs

if TYPE_CHECKING:
    from .endpoint import Endpoint


class LndClient(LndNodeClient):
    """An lnd node, reached over gRPC with a macaroon and its pinned TLS certificate.

    ``grpc_host`` is a name or an address without a port. Give one of ``macaroon_path`` and ``macaroon_hex``. Give at most one of
    ``tls_cert_path`` and ``tls_cert_pem``; with neither, gRPC's default roots are trusted (for nodes with a public certificate).
    ``~`` in a path is the home folder. ``timeout_seconds`` bounds every call, payments included.

    The constructor reads no file and makes no connection. That happens at the first use, and once more in a forked process. (With
    ``GRPC_ENABLE_FORK_SUPPORT=0`` in the environment, grpc itself hangs in a forked process.) A client is safe to share between
    threads. A pickled client keeps paths and drops ``macaroon_hex``. A copy is the same client.

    Raises: ValueError for arguments that can't be right.
    """

    #: Another thread may ask it ahead of a purchase: see `LightningFundingSource.ask_ahead`.
    asked_ahead = True

    def __init__(
        self,
        grpc_host: str,
        grpc_port: int = DEFAULT_PORT,
        macaroon_path: str | os.PathLike[str] | None = None,
        macaroon_hex: str | None = None,
        tls_cert_path: str | os.PathLike[str] | None = None,
        tls_cert_pem: str | None = None,
        timeout_seconds: float = 60,
    ) -> None:
        host = _host(grpc_host)
        port: object = grpc_port
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError(f"grpc_port must be a whole number from 1 to 65535, not {shown(port)}")
        super().__init__(macaroon_path, macaroon_hex, tls_cert_path, tls_cert_pem, timeout_seconds)
        self.grpc_host = host
        self.grpc_port = grpc_port

    @classmethod
    def from_lndconnect(cls, uri: str) -> LndClient:
        """Return a client for the node of an ``lndconnect://host:port?cert=…&macaroon=…`` URI.

        Raises: FundingError for a URI that can't be used. Its text doesn't repeat the URI.
        """
        try:
            return cls(**parse_lndconnect(uri))
        except ValueError as error:
            raise FundingError(f"The lndconnect URI can't be used: {error}.", advice="Copy it again from the node.") from None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> LndClient:
        """Return a client for the node that the environment names (``environ``, by default `os.environ`).

        The variables are ``ROUTEWEILER_LNDCONNECT``; else ``LND_GRPC_HOST`` (host:port), ``LND_TLS_CERT_PATH``,
        ``LND_MACAROON_PATH`` (or ``LND_TLS_CERT_HEX``, ``LND_MACAROON_HEX``); else ``POLAR_LND_HOST``, ``POLAR_LND_TLS_CERT``,
        ``POLAR_LND_MACAROON``.

        Raises: FundingError that names the variables, if none is set or one can't be used.
        """
        try:
            return cls(**from_environment(os.environ if environ is None else environ))
        except ValueError as error:
            raise FundingError(f"The node of the environment can't be used: {error}.", advice="Correct its variables.") from None

    @property
    def _endpoint(self) -> Endpoint:
        """The node's address, with the credentials that open it."""
        return self._endpoint_at(self.grpc_host, self.grpc_port)

    _connection_module = "funding.lnd.channel"

    def _new_connection(self, endpoint: Endpoint) -> LndConnection:
        from .channel import LndChannel

        return LndChannel(endpoint)

    def __repr__(self) -> str:
        return f"LndClient({self.grpc_host}:{self.grpc_port})"


def _host(given: object) -> str:
    """Return the host in ``grpc_host``. Raises: ValueError for what can't be one. Its text repeats no secret."""
    if isinstance(given, str) and kind_of(given) != "a secret":
        raise ValueError(f"grpc_host isn't a host{where_it_belongs(given)}")
    host = given.strip().removeprefix("[").removesuffix("]") if isinstance(given, str) else ""
    if not host or "/" in host or "@" in host or host.count(":") == 1 or may_be_secret(host):
        raise ValueError(f"grpc_host must be a host or an address without scheme and port (give grpc_port), not {shown(given)}")
    return host
