"""l402kit with FastAPI. The package's providers make token and invoice together; this one does so as its LNbitsProvider does."""

from __future__ import annotations

import base64
import json
import time

import common
from fastapi import FastAPI, Request
from l402kit import Invoice, l402_required

TOKEN_LIFE_S = 3600


class LndProvider:
    """The package's LightningProvider, with the real lnd behind it."""

    async def create_invoice(self, amount_sats: int) -> Invoice:
        made = await common.invoice(amount_sats)
        expires_ms = int((time.time() + TOKEN_LIFE_S) * 1000)
        token = base64.b64encode(json.dumps({"hash": made.payment_hash, "exp": expires_ms}).encode()).decode()
        return Invoice(made.payment_request, made.payment_hash, token, amount_sats, expires_ms // 1000)

    async def check_payment(self, payment_hash: str) -> bool:
        raise NotImplementedError("the middleware doesn't ask")


def make_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    @l402_required(price_sats=common.PRICE_SAT, lightning=LndProvider())
    async def sold(request: Request) -> dict[str, str]:
        return await common.page(request)

    return app


common.serve(make_app)
