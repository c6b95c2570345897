"""Header forms: how real servers write a challenge, and what they put into the body of the 402.

Sources: the named servers' own code. Which token stands in it is left to `_tokens`, what it opens to `_ways`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._tokens import TokenKind

JSON_TYPE = ("Content-Type", "application/json")
TEXT_TYPE = ("Content-Type", "text/plain; charset=utf-8")
_L402 = 'L402 macaroon="{token}", invoice="{invoice}"'
_LSAT = 'LSAT macaroon="{token}", invoice="{invoice}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one challenge offers. ``payment_hash`` is 32 bytes."""

    token: str
    bolt11: str
    payment_hash: bytes
    amount_msat: int

    @property
    def sats(self) -> int:
        """The amount in sats, rounded up."""
        return -(-self.amount_msat // 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A header form. ``lines`` are templates for ``WWW-Authenticate`` with ``{token}`` and ``{invoice}``.

    ``token``: the kind of token that the server makes. ``body`` returns the JSON of its 402, None for a text.
    """

    lines: tuple[str, ...]
    token: TokenKind = "macaroon"  # noqa: S105 - a kind of token
    body: Callable[[Offer], dict[str, Any]] | None = None

    @property
    def schemes(self) -> frozenset[str]:
        """The schemes of the lines. The server reads no other in ``Authorization``."""
        return frozenset(line.partition(" ")[0] for line in self.lines)

    def written(self, offer: Offer) -> list[str]:
        """Return the values of ``WWW-Authenticate`` for ``offer``."""
        return [line.replace("{token}", offer.token).replace("{invoice}", offer.bolt11) for line in self.lines]


def plain_body(offer: Offer) -> dict[str, Any]:
    """Return the challenge as JSON, for servers that repeat it in the body without a way of their own."""
    return {"macaroon": offer.token, "invoice": offer.bolt11}


def _coded(offer: Offer) -> dict[str, Any]:
    return {"code": 402, "message": "Payment Required"}


def _paygate(offer: Offer) -> dict[str, Any]:
    return {"code": 402, "message": "Payment required", "price_sats": offer.sats, "description": None, "invoice": offer.bolt11}


def _l402kit(offer: Offer) -> dict[str, Any]:
    return {"error": "Payment Required", "price_sats": offer.sats, "invoice": offer.bolt11, "macaroon": offer.token}


def _lightning_toll(offer: Offer) -> dict[str, Any]:
    return {
        "status": 402,
        "message": "Payment Required",
        "paymentHash": offer.payment_hash.hex(),
        "invoice": offer.bolt11,
        "macaroon": offer.token,
        "amountSats": offer.sats,
        "protocol": "L402",
    }


def _toll_booth(offer: Offer) -> dict[str, Any]:
    told = {"invoice": offer.bolt11, "macaroon": offer.token, "payment_hash": offer.payment_hash.hex(), "amount_sats": offer.sats}
    return {"l402": told}


#: All forms by name. ``aperture`` is the default; its lines follow the service's ``scheme``. ``aperture-mpp`` is aperture with a
#: line of the scheme ``Payment`` without ``expires`` behind those of L402.
FORMS: dict[str, Form] = {
    "aperture": Form(lines=(_LSAT, _L402)),
    "aperture-mpp": Form(lines=(_LSAT, _L402)),
    "specification": Form(lines=('L402 version="0", token="{token}", invoice="{invoice}"',)),
    "boltwall": Form(lines=(_LSAT,)),
    "l402-js": Form(lines=(_L402,)),
    "l402-middleware": Form(lines=("L402 macaroon={token}, invoice={invoice}",), body=_coded),
    "l402-python": Form(lines=(_L402,), token="macaroon-urlsafe"),  # noqa: S106 - a kind of token
    "l402kit": Form(lines=(_L402,), token="json", body=_l402kit),  # noqa: S106 - a kind of token
    "lightning-toll": Form(
        lines=('L402 invoice="{invoice}", macaroon="{token}"',),
        token="json",  # noqa: S106 - a kind of token
        body=_lightning_toll,
    ),
    "lsat-middleware": Form(lines=("LSAT macaroon={token}, invoice={invoice}",), body=_coded),
    "paygate": Form(lines=(_L402,), body=_paygate),
    "pylsat": Form(
        lines=('LSAT macaroon="{token}",invoice="{invoice}"',),
        token="macaroon-v1",  # noqa: S106 - a kind of token
        body=lambda offer: {"detail": "Payment Required"},
    ),
    "simple-l402-server": Form(lines=("L402 macaroon={token} invoice={invoice}",), body=plain_body),
    "toll-booth": Form(lines=(_L402,), body=_toll_booth),
}


def form_of(form: str, *, scheme: Sequence[str], token_param: str) -> Form:
    """Return the form named ``form``, or the one that is written out in it: a line with ``{token}`` and ``{invoice}``.

    ``scheme`` and ``token_param`` are those of aperture's form alone.
    """
    if form == "aperture":
        version = 'version="0", ' if token_param == "token" else ""  # noqa: S105 - the name of a parameter
        return Form(lines=tuple(f'{each} {version}{token_param}="{{token}}", invoice="{{invoice}}"' for each in scheme))
    return FORMS.get(form) or Form(lines=(form,))


def is_written_out(form: str) -> bool:
    """Return whether ``form`` is a line with ``{token}`` and ``{invoice}``, not a name."""
    return "{token}" in form and "{invoice}" in form
