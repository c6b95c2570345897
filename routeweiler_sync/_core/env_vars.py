"""The name of every environment variable that is read, once.

What a variable means is said where it is read: `config.env_settings` (budget, ledger, trace, network), `funding.lnd.lndconnect` (the
node) and `cli.run`.
"""

from __future__ import annotations

#: The ledger: a path or a URL.
LEDGER = "ROUTEWEILER_LEDGER"
#: The trace: a path.
TRACE = "ROUTEWEILER_TRACE"
#: The budget's limits.
BUDGET = "ROUTEWEILER_BUDGET"
#: The network that the node is on.
NETWORK = "ROUTEWEILER_NETWORK"

#: The node, as an lndconnect URI.
LNDCONNECT = "ROUTEWEILER_LNDCONNECT"
#: The node, as host:port and two paths.
LND_GRPC_HOST, LND_TLS_CERT_PATH, LND_MACAROON_PATH = "LND_GRPC_HOST", "LND_TLS_CERT_PATH", "LND_MACAROON_PATH"
#: The same, as Polar (a tool for test networks) names them.
POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON = "POLAR_LND_HOST", "POLAR_LND_TLS_CERT", "POLAR_LND_MACAROON"

#: Set by ``routeweiler-sync run`` for the interpreters that are to pay: which installation it was.
RUN = "ROUTEWEILER_RUN"

#: All that what a session pays with depends on.
PAYER_VARIABLES = (
    LNDCONNECT,
    LND_GRPC_HOST,
    LND_TLS_CERT_PATH,
    LND_MACAROON_PATH,
    POLAR_LND_HOST,
    POLAR_LND_TLS_CERT,
    POLAR_LND_MACAROON,
    NETWORK,
    LEDGER,
    TRACE,
    BUDGET,
)
