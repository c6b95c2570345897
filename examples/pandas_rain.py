"""Buy a table month by month, and put it into a DataFrame; and then the bill.

It prints:

    month
    January     147
    February    143
    March       139
    the tables have cost 33 sat, 393 msat a row
                    scope  amount_msat  fee_msat
    0   /2025/January.csv        10000      1000
    1  /2025/February.csv        10000      1000
    2     /2025/March.csv        10000      1000
"""

from __future__ import annotations

import io

import pandas as pd
from world import world

from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync.testing import PaywallRequest

BUDGET = BudgetEnvelope("rain", per_call_minor_units=20, cap_minor_units=60)
MONTHS = ("January", "February", "March")


def rain(session: Routeweiler, url: str) -> pd.DataFrame:
    """Buy one month."""
    response = session.get(url, timeout=30)
    response.raise_for_status()
    return pd.read_csv(io.StringIO(response.text))


def table(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
    """Return the table that the shop sells: other figures for each month."""
    month = request.path.rpartition("/")[2].removesuffix(".csv")
    rows = [f"{month},{day},{(7 * day + 3 * MONTHS.index(month)) % 11}" for day in range(1, 29)]
    return 200, {"Content-Type": "text/csv"}, "\n".join(["month,day,mm", *rows]).encode()


if __name__ == "__main__":
    with world(BUDGET, sells="path", respond=table) as (session, shop):
        months = pd.concat([rain(session, shop.url_for(f"/2025/{month}.csv")) for month in MONTHS], ignore_index=True)
        print(months.groupby("month", sort=False)["mm"].sum().to_string())
        print(f"the tables have cost {session.spent_msat // 1000} sat, {round(session.spent_msat / len(months))} msat a row")
        bill = pd.DataFrame(session.ledger.payments())  # all but tokens and preimages
        print(bill.sort_values("created_at", ignore_index=True)[["scope", "amount_msat", "fee_msat"]].to_string())
