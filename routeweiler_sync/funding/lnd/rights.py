"""The rights that a macaroon of lnd needs, as paths of RPCs. lnd names such a right ``uri:`` and the path.

They are the least: ``offchain:write``, for example, would also allow closing channels.
"""

from __future__ import annotations

#: To pay: send an order, ask what became of it, and read the node's key and network. TrackPaymentV2 is asked in doubt only, when a
#: payment's outcome isn't known: without it such a payment stays unfinished.
PAYING = ("/routerrpc.Router/SendPaymentV2", "/routerrpc.Router/TrackPaymentV2", "/lnrpc.Lightning/GetInfo")
#: To show the outbound balance. Paying doesn't ask for it.
BALANCE = "/lnrpc.Lightning/ChannelBalance"
#: To compare the node's own list of payments (``budget audit``). Shows all payments of the node, with their preimages.
LIST_PAYMENTS = "/lnrpc.Lightning/ListPayments"
#: To see whether a channel still holds a payment that never ends (``doctor``). Shows all channels.
CHANNELS = "/lnrpc.Lightning/ListChannels"
#: What commands ask for beyond `PAYING`.
USEFUL = (BALANCE, LIST_PAYMENTS, CHANNELS)


def uri(path: str) -> str:
    """Return the right to call the RPC ``path``, as ``lncli bakemacaroon`` wants it."""
    return f"uri:{path}"
