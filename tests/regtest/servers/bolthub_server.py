"""bolthub's paywall with its L402 rail, over HTTP.

The package sells calls of tools and leaves HTTP to its user: the credential goes in as the proof, its challenge comes out as a 402.
One resource is sold, so a token opens all paths.
"""

from __future__ import annotations

from typing import Any

import common
from bolthub.paywall import PAYMENT_META_KEY, create_paywall
from bolthub.rails import l402_rail
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse


class LndInvoices:
    """The package's InvoiceProvider, with the real lnd behind it."""

    def create_invoice(self, amount_sat: int, memo: str) -> tuple[str, str]:
        made = common.invoice_now(amount_sat, memo)
        return made.payment_request, made.payment_hash


def make_app() -> FastAPI:
    app = FastAPI()
    paywall = create_paywall([l402_rail(common.KEY, LndInvoices())])

    def paid(args: dict[str, Any], extra: dict[str, Any] | None) -> dict[str, Any]:
        return {"isError": False}

    gate = paywall(paid, price={"amount": common.PRICE_SAT}, resource="pages")

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def sold(request: Request) -> Any:
        scheme, _, proof = request.headers.get("Authorization", "").partition(" ")
        meta = {PAYMENT_META_KEY: {"scheme": "l402", "proof": proof}} if scheme == "L402" else {}
        result = gate({}, {"_meta": meta})
        if not result["isError"]:
            return await common.page(request)
        challenge = result["_meta"][PAYMENT_META_KEY]
        return JSONResponse(challenge, 402, headers={"WWW-Authenticate": challenge["offers"][0]["wwwAuthenticate"]})

    return app


common.serve(make_app)
