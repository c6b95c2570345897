"""pympp with a lightning method for charges: an invoice of the lnd for each challenge, a preimage for a payment, once.

pympp writes method, path and query into the challenge, and the digest of a body. Where a credential came that isn't taken, the
fresh challenge is for the same invoice, if it was for the same request: the Spark SDK's method for mppx does so. Used preimages
are kept in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import time
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import common
import fastapi
from mpp import Receipt
from mpp.errors import VerificationFailedError
from mpp.methods import Method
from mpp.server import Mpp, Request, RequestContext, ServerMethod, VerifyContext
from pydantic import BaseModel


class Clock(datetime):
    """The clock of the server: ahead where the tests want it so."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(time.time(), tz)


for module in ("mpp.server.verify", "mpp.server.compose"):
    sys.modules[module].datetime = Clock  # type: ignore[attr-defined]
LIFE = timedelta(seconds=float(os.environ["SERVER_LIFE_S"]))


class Details(BaseModel):
    invoice: str
    paymentHash: str
    network: str


class Charge(BaseModel):
    amount: str
    currency: str
    methodDetails: Details


class Payload(BaseModel):
    preimage: str


def echoed(context: RequestContext) -> dict[str, str] | None:
    """Return the details of the invoice in a credential, if that was sold for the request that it comes with."""
    if context.credential is None or context.input is None:
        return None
    text = context.credential.challenge.request
    try:
        request = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return request["methodDetails"] if request["_mppx_scope"] == context.input.scope() else None
    except (ValueError, KeyError, TypeError):
        return None


def lightning() -> ServerMethod:
    used: set[str] = set()

    async def resolve_request(context: RequestContext) -> dict[str, Any]:
        known = echoed(context)
        if known is not None:
            return {**context.request, "methodDetails": known}
        made = await common.invoice(int(context.request["amount"]))
        details = {"invoice": made.payment_request, "paymentHash": made.payment_hash, "network": "regtest"}
        return {**context.request, "methodDetails": details}

    async def verify(context: VerifyContext) -> Receipt:
        payment_hash = context.challenge.request["methodDetails"]["paymentHash"]
        preimage = context.credential.payload.preimage
        if re.fullmatch("[0-9a-f]{64}", preimage) is None or hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != payment_hash:
            raise VerificationFailedError("wrong preimage")
        if payment_hash in used:
            raise VerificationFailedError("already used")
        used.add(payment_hash)
        return Receipt(status="success", timestamp=datetime.now(timezone.utc), reference=payment_hash, method="lightning")

    definition = Method(name="lightning", intent="charge", request_model=Charge, payload_model=Payload)
    return ServerMethod(method=definition, verify=verify, resolve_request=resolve_request)


def make_app() -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    server = Mpp(
        lightning(), realm="pympp.test", secret_key=common.KEY, requires_auth=os.environ.get("SERVER_REQUIRES_AUTH") == "1"
    )

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def sold(request: fastapi.Request) -> fastapi.Response:
        body = await request.body()
        asked = Request(request.method, str(request.url), headers=request.headers.items(), body=body or None)
        charge = server.charge(
            amount=str(common.PRICE_SAT),
            currency="sat",
            description='a "quoted" thing, with comma',
            expires_in=LIFE,
            **({"body": body} if body else {}),
        )
        result = await charge(asked)
        if result.status != 200:
            answer = result.challenge
            return fastapi.Response(answer.body, answer.status, dict(answer.headers.items()))
        return result.with_receipt(fastapi.responses.JSONResponse(await common.page(request)))

    return app


common.serve(make_app)
