"""lightning-toll with FastAPI, its settings as they come."""

from __future__ import annotations

from typing import Any

import common
from fastapi import FastAPI, Request
from lightning_toll import create_toll


class LndWallet:
    """A wallet as `create_toll(wallet=...)` wants it."""

    async def create_invoice(self, amount_sats: int, description: str, expiry: int) -> Any:
        made = await common.invoice(amount_sats, description)
        return _Made(made.payment_request, made.payment_hash)


class _Made:
    def __init__(self, invoice: str, payment_hash: str) -> None:
        self.invoice, self.payment_hash = invoice, payment_hash


def make_app() -> FastAPI:
    app = FastAPI()
    toll = create_toll(wallet=LndWallet(), secret=common.KEY)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    @toll.require(sats=common.PRICE_SAT)
    async def sold(request: Request) -> dict[str, str]:
        return await common.page(request)

    return app


common.serve(make_app)
