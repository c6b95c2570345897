"""A web application that buys from another server what its users ask for.

It prints:

    /forecast/berlin: 200 {"city": "berlin", "degrees": 21, "paid_sat": 11}
    /forecast/berlin: 200 {"city": "berlin", "degrees": 21, "paid_sat": 0}
    /forecast/paris: 200 {"city": "paris", "degrees": 21, "paid_sat": 11}
    /forecast/rome: 503 {"error": "Today's budget is used up."}
    /health: 200 {"left_sat": 3}
"""

from __future__ import annotations

import json
from typing import Any

from flask import Flask
from world import world

from routeweiler_sync import BudgetEnvelope, BudgetError, PaymentPendingError, Routeweiler, RouteweilerError

#: One budget for all requests, threads and processes of the application: they share the ledger.
BUDGET = BudgetEnvelope("forecasts", per_call_minor_units=20, per_day_minor_units=25)


def create_app(session: Routeweiler, upstream: str) -> Flask:
    """Return the application. The session is shared by all threads of the server."""
    app = Flask(__name__)

    @app.get("/forecast/<city>")
    def forecast(city: str) -> dict[str, Any]:
        response = session.get(f"{upstream}/{city}", timeout=20)
        response.raise_for_status()
        payment = response.payment  # None: it was free. Reused: it was paid for by an earlier request.
        paid_msat = payment.amount_msat + payment.fee_msat if payment is not None and not payment.reused else 0
        return {"city": city, **response.json(), "paid_sat": paid_msat // 1000}

    @app.get("/health")
    def health() -> dict[str, Any]:
        budget = session.budget
        return {"left_sat": int(budget.headroom_minor_units or 0) if budget is not None else None}

    @app.errorhandler(RouteweilerError)
    def unpaid(error: RouteweilerError) -> tuple[dict[str, str], int]:
        if isinstance(error, PaymentPendingError):  # the next request for the page goes on with the same payment
            return {"error": "The payment takes long. Ask again in a minute."}, 503
        if isinstance(error, BudgetError):
            return {"error": "Today's budget is used up."}, 503
        return {"error": "The forecast can't be bought."}, 502

    return app


if __name__ == "__main__":
    with world(BUDGET, sells="path", respond=lambda request: (200, {}, json.dumps({"degrees": 21}).encode())) as (session, shop):
        browser = create_app(session, shop.base_url).test_client()  # to serve it: create_app(...).run()
        for path in ("/forecast/berlin", "/forecast/berlin", "/forecast/paris", "/forecast/rome", "/health"):
            answer = browser.get(path)
            print(f"{path}: {answer.status_code} {json.dumps(answer.get_json())}")
