"""A child process that makes one paid call and dies where it is told to. Run by the crash tests.

    python -m tests.support.crashing_buyer URL LEDGER TRACE POINT

POINT names a function and a side of it, e.g. ``Ledger.open_payment:after``; ``none`` lets the call through.
"""

from __future__ import annotations

import functools
import os
import sys

from routeweiler_sync import Funding, Ledger, LndClient, Routeweiler, TraceSink
from routeweiler_sync.funding.lightning import LightningFundingSource
from routeweiler_sync.paywall.call_record import CallRecord
from routeweiler_sync.paywall.handler import PaywallHandler

POINTS = {
    "Ledger.open_payment": (Ledger, "open_payment"),
    "Ledger.change": (Ledger, "change"),
    "Source.send": (LightningFundingSource, "send"),
    "Source.track": (LightningFundingSource, "track"),
    "PaywallHandler.resend": (PaywallHandler, "resend"),
    "CallRecord.finish": (CallRecord, "finish"),
    "Ledger.mark": (Ledger, "mark"),
}
DIED = 86


def die_at(point: str) -> None:
    """Make the process end, as by kill -9, before or after the function of ``point``."""
    name, _, side = point.partition(":")
    owner, attribute = POINTS[name]
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def dying(*args, **kwargs):
        if side == "before":
            os._exit(DIED)
        result = original(*args, **kwargs)
        os._exit(DIED)
        return result

    setattr(owner, attribute, dying)


def main() -> None:
    url, ledger, trace, point = sys.argv[1:]
    if point != "none":
        die_at(point)
    funding = Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")
    with Routeweiler(funding=[funding], ledger=ledger, trace_sink=TraceSink.jsonl(trace)) as session:
        response = session.get(url, timeout=60)
    print(response.status_code, response.payment.payment_hash)


if __name__ == "__main__":
    main()
