"""discourse-toll, as the dependency of a FastAPI route. Its challenge is in the body only."""

from __future__ import annotations

import common
from discourse_toll import PricingConfig, TollConfig, create_toll
from fastapi import Depends, FastAPI, Request


class LndWallet:
    """The package's WalletBackend, with the real lnd behind it."""

    async def create_invoice(self, sats: int, description: str) -> dict[str, str]:
        made = await common.invoice(sats, description)
        return {"invoice": made.payment_request, "payment_hash": made.payment_hash}

    async def lookup_invoice(self, payment_hash: str) -> dict[str, object]:
        raise NotImplementedError("the middleware doesn't ask")


def make_app() -> FastAPI:
    app = FastAPI()
    toll = create_toll(TollConfig(secret=common.KEY, wallet=LndWallet(), pricing=PricingConfig(base_sats=common.PRICE_SAT)))()

    async def gate(request: Request) -> None:
        await toll(request)

    @app.api_route("/{path:path}", methods=["GET", "POST"], dependencies=[Depends(gate)])
    async def sold(request: Request) -> dict[str, str]:
        return await common.page(request)

    return app


common.serve(make_app)
