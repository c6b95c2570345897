"""pylsat, as the dependency of a FastAPI route."""

from __future__ import annotations

import common
from fastapi import Depends, FastAPI, Request
from pylsat import L402Validator, Pricing

TOKEN_LIFE_S = 3600


async def generate_invoice(price_sats: int, label: str, description: str) -> dict[str, str]:
    return {"bolt11": (await common.invoice(price_sats, description)).payment_request}


def make_app() -> FastAPI:
    app = FastAPI()
    validator = L402Validator(common.KEY, TOKEN_LIFE_S, generate_invoice, "a page", Pricing(price_sats=common.PRICE_SAT))

    @app.api_route("/{path:path}", methods=["GET", "POST"], dependencies=[Depends(validator)])
    async def sold(request: Request) -> dict[str, str]:
        return await common.page(request)

    return app


common.serve(make_app)
