"""The scheme ``Payment`` (MPP) over Lightning as servers write it: challenges, credentials, receipts and refusals.

Knows the bytes of aperture 0.5.0, of mppx 0.3.16 and 0.11.0 (with the lightning method of the Spark SDK) and of pympp 0.16.0. Which
payments are good is decided in `_paywall_logic`. Sources: draft-httpauth-payment-01, draft-lightning-charge-00, and those servers'
own answers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

SCHEME = "Payment"
AUTHORIZATION = "Authorization"
OTHER_HEADER = "Payment-Authorization"
PROBLEM_TYPE = ("Content-Type", "application/problem+json")
Receipts = Literal["always", "delivered", "never", "junk"]
Intent = Literal["charge", "session"]
Digest = Literal["colons", "bare"]
AuthScheme = Literal["l402", "mpp", "l402+mpp"]
#: What a session costs in advance, in units of its price, and how long it may lie idle (s): aperture's defaults.
_DEPOSIT_UNITS = 20
_IDLE_TIMEOUT_S = "300"
_NETWORKS = {"bcrt": "regtest", "bc": "mainnet", "tb": "testnet", "tbs": "signet"}
#: Fields of ``request`` that stand beside ``methodDetails``, not in it.
_TOP_FIELDS = frozenset({"amount", "currency", "description", "recipient", "externalId", "methodDetails"})
_BOUND = ("realm", "method", "intent", "request", "expires", "digest", "opaque")
_HINTED = ("payment-required", "malformed-credential")
_HINT = (
    "Use a supported wallet to pay for this resource using one of the supported payment methods returned in the WWW-Authenticate "
    "header. See https://mpp.dev/tools/wallet.md"
)
_CORS = (
    ("Access-Control-Allow-Headers", "Authorization, Grpc-Metadata-macaroon, WWW-Authenticate, Payment-Receipt"),
    ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "WWW-Authenticate, Payment-Receipt"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentForm:
    """How one server speaks ``Payment``.

    - ``parameters``: those of a challenge, in its order; those without a value are left out.
    - ``life_s``: how long a challenge is good. ``digits``: of the fraction of a second in times.
    - ``single_use``: a payment opens one page. ``bound``: a payment opens only the method, path and query that it was sold for.
    - ``reoffers``: a refusal has a fresh challenge for the payment that came, not a new invoice.
    - ``joined``: several challenges stand in one header line.
    - ``failed``: the status where a genuine challenge came back with a preimage that isn't taken.
    - ``receipts``: which answers have one, those to a payment that was taken. ``private``: they say ``Cache-Control: private``.
    - ``names_challenge``, ``hints``: what the JSON of a refusal says more. ``blanks``: it is written with blanks.
    """

    parameters: tuple[str, ...]
    life_s: int = 300
    digits: int = 0
    single_use: bool = True
    bound: bool = False
    reoffers: bool = True
    joined: bool = True
    failed: int = 402
    receipts: Receipts = "always"
    private: bool = True
    names_challenge: bool = True
    hints: bool = False
    blanks: bool = False
    digest: Digest = "bare"


_MPPX = ("id", "realm", "method", "intent", "request", "description", "digest", "expires", "opaque", "header")
_PYMPP = ("id", "realm", "method", "intent", "request", "digest", "expires", "description", "header", "opaque")
#: All forms by name.
PAYMENT_FORMS: dict[str, PaymentForm] = {
    "aperture": PaymentForm(
        parameters=("id", "realm", "method", "intent", "request", "expires", "digest", "description", "opaque", "header"),
        life_s=900,
        single_use=False,
        reoffers=False,
        joined=False,
        names_challenge=False,
        digest="colons",
    ),
    "mppx": PaymentForm(parameters=_MPPX, digits=3, private=False),
    "mppx-0.11": PaymentForm(parameters=_MPPX, digits=3, failed=500, hints=True),
    "pympp": PaymentForm(parameters=_PYMPP, digits=6, bound=True, joined=False, receipts="delivered", hints=True, blanks=True),
}


@dataclass(slots=True, kw_only=True)
class Charge:
    """A payment that is for sale, or was sold. ``request`` is that parameter of its challenges; ``payment_hash`` has 32 bytes."""

    request: str
    payment_hash: bytes
    used: bool = False
    revoked: bool = False
    offers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What came in a credential. ``echo`` are the challenge's parameters, ``preimage`` is what was sent as one, if any was."""

    echo: Mapping[str, str]
    preimage: str | None

    @property
    def payment_hash(self) -> bytes | None:
        """The hash of the preimage, 32 bytes. None if that isn't one."""
        is_hex = self.preimage is not None and re.fullmatch(r"[0-9a-fA-F]{64}", self.preimage) is not None
        return hashlib.sha256(bytes.fromhex(self.preimage or "")).digest() if is_hex else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request isn't served, for the JSON body: the last part of the ``type``, and the ``detail``."""

    name: str
    detail: str
    status: int = 402


def read(form: str, header: str | None, lines: Sequence[tuple[str, str]]) -> str | None:
    """Return the token of the credential in the header lines, in which the server looks; None if it finds none.

    aperture reads the first ``Authorization`` line alone, and the scheme as it is written; others look for it in all.
    """
    wanted = (header or AUTHORIZATION).lower()
    values = [value for name, value in lines if name.lower() == wanted]
    if form == "aperture":
        found = re.fullmatch(r"Payment +(\S+)", values[0]) if values else None
        return None if found is None else found[1]
    for value in values:
        anywhere = re.search(r"(?i)(?:^|,)\s*payment\s+([^\s,]+)\s*(?:,|$)", value)
        if anywhere is not None:
            return anywhere[1]
    return None


def decoded(token: str) -> Credential | None:
    """Return what is in a token: base64url of JSON. None if it isn't that, or holds no challenge."""
    try:
        content = _json(token)
        echo, payload = content["challenge"], content.get("payload")
        _json(echo["request"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(echo, dict) or not all(isinstance(echo.get(name), str) for name in ("id", *_BOUND[:4])):
        return None
    told = payload.get("preimage") if isinstance(payload, dict) else None
    return Credential(echo={name: str(value) for name, value in echo.items()}, preimage=told if isinstance(told, str) else None)


def challenge_id(secret: bytes, parameters: Mapping[str, str]) -> str:
    """Return the ``id`` of a challenge: an HMAC over what must come back unchanged. The description isn't part of it."""
    bound = [parameters.get(name, "") for name in _BOUND] + ([parameters["header"]] if parameters.get("header") else [])
    return _url_safe(hmac.digest(secret, "|".join(bound).encode(), "sha256"))


def is_issued(secret: bytes, credential: Credential) -> bool:
    """Return whether the challenge in the credential is one of this server, unaltered."""
    return hmac.compare_digest(challenge_id(secret, credential.echo).encode(), credential.echo["id"].encode())


def request_of(
    invoice: Any, *, amount_msat: int, currency: str | None, scope: Mapping[str, str] | None, false: Mapping[str, Any] | None
) -> str:
    """Return the parameter ``request`` of a charge: base64url of canonical JSON.

    ``currency`` is the invoice's BOLT-11 prefix, ``scope`` the method, path and query (see `scope_of`), for servers that write them
    into it. ``false`` has fields that are put in as they are, None leaves one out.
    """
    asked: dict[str, Any] = {} if scope is None else {"_mppx_scope": dict(scope)}
    details: dict[str, Any] = {
        "invoice": invoice.bolt11,
        "network": _NETWORKS[currency or "bcrt"],
        "paymentHash": invoice.payment_hash.hex(),
    }
    asked |= {"amount": str(-(-amount_msat // 1000)), "currency": "sat", "methodDetails": details}
    for name, value in (false or {}).items():
        place = asked if name in _TOP_FIELDS else details
        place[name] = value
        if value is None:
            del place[name]
    return _url_safe(_canonical(asked))


def scope_of(method: str, path: str, query: str) -> dict[str, str]:
    """Return what a challenge is bound to, as pympp writes it."""
    return {"http_method": method, "resource": path, **({"query": query} if query else {})}


def has_scope(request: str, scope: Mapping[str, str]) -> bool:
    """Return whether a parameter ``request`` of this module's was written for this method, path and query."""
    return bool(_json(request).get("_mppx_scope") == scope)


def session_request(invoice: Any, *, amount_msat: int) -> str:
    """Return the parameter ``request`` of a session. ``invoice`` is for the deposit, see `deposit_msat`."""
    sats = -(-amount_msat // 1000)
    asked = {
        "amount": str(sats),
        "currency": "sat",
        "depositAmount": str(sats * _DEPOSIT_UNITS),
        "depositInvoice": invoice.bolt11,
        "idleTimeout": _IDLE_TIMEOUT_S,
        "paymentHash": invoice.payment_hash.hex(),
    }
    return _url_safe(_canonical(asked))


def deposit_msat(amount_msat: int) -> int:
    """Return what a session asks for in advance."""
    return -(-amount_msat // 1000) * 1000 * _DEPOSIT_UNITS


def expiry(form: PaymentForm, now: float, life_s: float | None) -> str | None:
    """Return ``expires`` (RFC 3339) for a challenge that is made ``now`` (unix s). ``life_s`` None: the form's own; inf: None."""
    life_s = form.life_s if life_s is None else life_s
    return None if math.isinf(life_s) else _time(form, now + life_s)


def has_expired(expires: str | None, now: float) -> bool:
    """Return whether an ``expires`` of this module's is over."""
    return expires is not None and datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp() <= now


def body_digest(way: Digest, body: bytes) -> str:
    """Return the digest of a body: ``colons`` as RFC 9530 writes it (``sha-256=:…:``), ``bare`` without them."""
    told = base64.standard_b64encode(hashlib.sha256(body).digest()).decode("ascii")
    return f"sha-256=:{told}:" if way == "colons" else f"sha-256={told}"


def written(form: PaymentForm, parameters: Mapping[str, str]) -> str:
    """Return a challenge as a value of ``WWW-Authenticate``."""
    told = [f'{name}="{_escaped(parameters[name])}"' for name in form.parameters if parameters.get(name) is not None]
    return f"{SCHEME} {', '.join(told)}"


def problem_body(form: PaymentForm, problem: Problem, challenge: str | None) -> bytes:
    """Return the JSON of a refusal. ``challenge`` is the id of the fresh challenge, if there is one."""
    told: dict[str, Any] = {
        "type": f"https://paymentauth.org/problems/{problem.name}",
        "title": problem.name.replace("-", " ").title(),
        "status": problem.status,
        "detail": problem.detail,
    }
    hint = {"hint": _HINT} if form.hints and problem.name in _HINTED else {}
    named = {"challengeId": challenge} if form.names_challenge and challenge is not None else {}
    told |= named | hint if form.blanks else hint | named
    return json.dumps(told, separators=None if form.blanks else (",", ":"), ensure_ascii=False).encode()


def payment_required(form: PaymentForm, description: str | None, realm: str) -> Problem:
    """Return the problem of a request without a credential."""
    more = f" ({description})" if description else ""
    if not form.names_challenge:
        detail = "Payment required for access."
    elif form.blanks:
        detail = f'Payment is required for "{realm}"{more}.'
    else:
        detail = f"Payment is required{more}."
    return Problem(name="payment-required", detail=detail)


def failed(form: PaymentForm, detail: str) -> Problem:
    """Return the problem of a genuine challenge with a preimage that isn't taken."""
    if form.failed == 500:
        return Problem(name="internal-payment-error", detail="An internal payment error occurred.", status=500)
    return Problem(name="verification-failed", detail=f"Payment verification failed: {detail}.")


def refusal_headers(form: PaymentForm) -> tuple[tuple[str, str], ...]:
    """Return the header lines of a refusal but ``WWW-Authenticate``."""
    return (*(() if form.names_challenge else _CORS), ("Cache-Control", "no-store"), PROBLEM_TYPE)


def receipt_headers(
    form: PaymentForm, receipts: Receipts, credential: Credential, payment_hash: bytes, now: float, status: int
) -> tuple[tuple[str, str], ...]:
    """Return the header lines that say that a payment was taken; none if the form, or ``receipts``, has none at this status."""
    if receipts == "never" or (receipts == "delivered" and not 200 <= status < 300):
        return ()
    told = {
        "status": "success",
        "method": "lightning",
        "timestamp": _time(form, now),
        "reference": payment_hash.hex(),
    }
    if form.names_challenge:
        told = dict(sorted(told.items()))
    else:
        told["challengeId"] = credential.echo["id"]
    receipt = "%%%" if receipts == "junk" else _url_safe(json.dumps(told, separators=(",", ":")).encode())
    private = (("Cache-Control", "private"),) if form.private else ()
    return (*(() if form.names_challenge else _CORS), *private, ("Payment-Receipt", receipt))


def _time(form: PaymentForm, at: float) -> str:
    moment = datetime.fromtimestamp(at, tz=timezone.utc)
    fraction = f".{moment.microsecond:06d}"[: 1 + form.digits] if form.digits else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _json(text: str) -> Any:
    """Return what is in base64url of JSON. Raises: ValueError if it isn't that."""
    text = text.rstrip("=")
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
