"""The name of every environment variable that the package reads, each written once.

What a variable's value means is left to the modules that read it: `config.env_settings` (budget, ledger, trace),
`config.environment` (network), `funding.lnd.lndconnect` (the node) and `cli.run`.
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
#: The same under the names that Polar, a tool for test networks, uses.
POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON = "POLAR_LND_HOST", "POLAR_LND_TLS_CERT", "POLAR_LND_MACAROON"

#: ``1`` allows a wallet whose URL begins with ``http://``, also where others could listen in.
ALLOW_HTTP_WALLET = "ROUTEWEILER_ALLOW_HTTP_WALLET"

#: Set by ``routeweiler-sync run`` for the Python processes that shall pay: which installation of this package started them.
RUN = "ROUTEWEILER_RUN"

#: Set by ``routeweiler-sync run --max-sats`` for the same processes: what they may spend together.
RUN_LIMIT = "ROUTEWEILER_RUN_LIMIT"

#: Set by ``routeweiler-sync run`` for the same processes: where they note what they pay.
RUN_BILL = "ROUTEWEILER_RUN_BILL"

#: Every variable that decides what a session pays with. When one changes, later sessions pay by the new values.
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
