"""The name of every environment variable that the package reads, each written once.

What a variable's value means is left to the modules that read it: `config.env_settings` (budget, ledger, trace),
`config.environment` (network), `config.wallets` (which wallet), the module `environment` of each wallet's folder in `funding`,
`payments.checks` (plain http) and `cli.run`.
"""

from __future__ import annotations

#: The ledger: a path or a URL.
LEDGER = "ROUTEWEILER_LEDGER"
#: The trace: a path.
TRACE = "ROUTEWEILER_TRACE"
#: The budget's limits.
BUDGET = "ROUTEWEILER_BUDGET"
#: The id of an envelope in the ledger, which is the budget then.
ENVELOPE = "ROUTEWEILER_ENVELOPE"
#: The agent whose payments they are.
AGENT = "ROUTEWEILER_AGENT"
#: The network that the wallet is on.
NETWORK = "ROUTEWEILER_NETWORK"

#: "1" allows what a single payment opens to be bought over plain http, where others can read the credential.
ALLOW_HTTP_PAYMENT = "ROUTEWEILER_ALLOW_HTTP_PAYMENT"

#: Which wallet is used where several are named, by a name in `config.wallets.WALLETS`.
WALLET = "ROUTEWEILER_WALLET"

#: lnd, as an lndconnect URI.
LNDCONNECT = "ROUTEWEILER_LNDCONNECT"
#: lnd's gRPC, as host:port, and the paths of its files, which are those for REST too.
LND_GRPC_HOST, LND_TLS_CERT_PATH, LND_MACAROON_PATH = "LND_GRPC_HOST", "LND_TLS_CERT_PATH", "LND_MACAROON_PATH"
#: What is in these files, in hex.
LND_TLS_CERT_HEX, LND_MACAROON_HEX = "LND_TLS_CERT_HEX", "LND_MACAROON_HEX"
#: The same under the names that Polar, a tool for test networks, uses.
POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON = "POLAR_LND_HOST", "POLAR_LND_TLS_CERT", "POLAR_LND_MACAROON"
#: lnd's REST interface, as a URL.
LND_REST_URL = "LND_REST_URL"
#: An LNbits, and the admin key of one of its wallets.
LNBITS_URL, LNBITS_ADMIN_KEY = "LNBITS_URL", "LNBITS_ADMIN_KEY"
#: A Nostr Wallet Connect URI.
NWC_URL = "NWC_URL"

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
    WALLET,
    LNDCONNECT,
    LND_GRPC_HOST,
    LND_TLS_CERT_PATH,
    LND_MACAROON_PATH,
    LND_TLS_CERT_HEX,
    LND_MACAROON_HEX,
    POLAR_LND_HOST,
    POLAR_LND_TLS_CERT,
    POLAR_LND_MACAROON,
    LND_REST_URL,
    LNBITS_URL,
    LNBITS_ADMIN_KEY,
    NWC_URL,
    ALLOW_HTTP_WALLET,
    NETWORK,
    LEDGER,
    TRACE,
    BUDGET,
    ENVELOPE,
    AGENT,
)
