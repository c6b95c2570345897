"""Watch a price. Each look costs 10 sat, and the budget ends the watch.

It prints:

    look 1: coffee is at 12.40
    look 2: coffee is at 11.90
    look 3: coffee is at 10.80
    buy now: 10.80 (the watch has cost 33 sat)
    look 1: coffee is at 12.40
    look 2: coffee is at 11.90
    the budget is used up, and the price never fell below 5.00
"""

from __future__ import annotations

import json
import time
from itertools import count, cycle

from world import world

from routeweiler_sync import BudgetEnvelope, BudgetExceededError, Routeweiler

BUDGET = BudgetEnvelope("price-watch", per_call_minor_units=15, per_day_minor_units=60)


def watch(session: Routeweiler, url: str, below: float, every_s: float) -> float | None:
    """Look until the price is low enough, and return it; None if the budget ended first."""
    for look in count(1):
        try:
            price = float(session.get(url, timeout=30).json()["price"])
        except BudgetExceededError:  # raised before the payment: this look has cost nothing
            return None
        print(f"look {look}: coffee is at {price:.2f}")
        if price < below:
            return price
        time.sleep(every_s)
    return None


if __name__ == "__main__":
    prices = cycle(["12.40", "11.90", "10.80"])
    with world(BUDGET, sells="once", respond=lambda _: (200, {}, json.dumps({"price": next(prices)}).encode())) as (session, shop):
        found = watch(session, shop.url_for("/coffee"), below=11.0, every_s=0)
        print(f"buy now: {found:.2f} (the watch has cost {session.spent_msat // 1000} sat)")
        if watch(session, shop.url_for("/coffee"), below=5.0, every_s=0) is None:
            print("the budget is used up, and the price never fell below 5.00")
