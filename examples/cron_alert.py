"""A job for cron: it fetches a page, and raises the alarm once 80 % of a limit are used, while there is time to do something.

cron mails what a job writes to stderr; the exit code tells other schedulers.

    */30 * * * *  /home/me/venv/bin/python cron_alert.py

The example runs the job five times. It prints:

    run 1: exit code 0, 11 sat spent
    run 2: exit code 0, 22 sat spent
    run 3: exit code 0, 33 sat spent
    ALERT: 88 % of per_day_minor_units are used, 6 sat are left
    run 4: exit code 3, 44 sat spent
    ALERT: 88 % of per_day_minor_units are used, 6 sat are left
    NOT FETCHED: BudgetExceededError, spent: False
    run 5: exit code 4, 44 sat spent
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from world import world

from routeweiler_sync import BudgetEnvelope, EnvelopeRow, RequestException, Routeweiler, RouteweilerError

BUDGET = BudgetEnvelope("half-hourly", per_call_minor_units=15, per_day_minor_units=50)
ALERT_PERCENT = 80


def alerts(budget: EnvelopeRow) -> Iterator[str]:
    """Yield a text for each limit of all calls together of which `ALERT_PERCENT` or more are used. Reservations count."""
    for name, used in budget.used_minor_units.items():
        limit = getattr(budget.limits, name)
        if name != "per_call_minor_units" and used * 100 >= limit * ALERT_PERCENT:
            unit = budget.limits.cap_currency
            yield f"{used * 100 // limit} % of {name} are used, {limit - used:.0f} {unit} are left"


def job(session: Routeweiler, url: str) -> int:
    """Fetch the page. Return the exit code: 0, 3 with an alert, 4 if there is no page."""
    failure: RequestException | None = None
    try:
        session.get(url, timeout=60).raise_for_status()
    except RequestException as error:
        failure = error
    told = list(alerts(session.budget)) if session.budget is not None else []
    for text in told:
        print("ALERT:", text, file=sys.stderr)
    if failure is not None:
        spent = f", spent: {failure.spent}" if isinstance(failure, RouteweilerError) else ""
        print(f"NOT FETCHED: {type(failure).__name__}{spent}", file=sys.stderr)
        return 4
    return 3 if told else 0


if __name__ == "__main__":
    sys.stderr = sys.stdout  # so that the example's lines are in order; a job of yours leaves it out
    with world(BUDGET, sells="once") as (session, shop):
        for run in range(1, 6):
            code = job(session, shop.url)
            print(f"run {run}: exit code {code}, {session.spent_msat // 1000} sat spent")
