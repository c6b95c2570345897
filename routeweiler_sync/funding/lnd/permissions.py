"""What a macaroon of lnd's says about itself: the operations that it permits, and until when.

Pure. Which of them paying needs is left to `rights`. Whether a macaroon is genuine only its node knows: what is read here counts
once the node has accepted it.

The identifier's form: macaroon-bakery v2, ``bakery/internal/macaroonpb/id.proto``. lnd's operations: lnd, ``rpcserver.go``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

#: What operations allow that could do harm, beyond paying invoices.
_HARMFUL = (
    ("macaroon", frozenset({"generate", "write"}), "make macaroons with any right"),
    ("onchain", frozenset({"write"}), "spend the coins of the node's wallet"),
    ("signer", frozenset({"generate"}), "sign with the node's keys"),
    ("offchain", frozenset({"write"}), "change its channels and delete its payments"),
)
#: URIs whose like in `_HARMFUL` is granted by name.
_HARMFUL_URIS = (
    (re.compile(r"/lnrpc\.Lightning/(BakeMacaroon|DeleteMacaroonID)"), "make macaroons with any right"),
    (re.compile(r"/lnrpc\.Lightning/Send(Coins|Many)|/walletrpc\.WalletKit/(Send|Publish|Fund|Sign|Finalize)\w*"),
     "spend the coins of the node's wallet"),
    (re.compile(r"/signrpc\.Signer/\w+"), "sign with the node's keys"),
)  # fmt: skip
#: The first byte of the identifiers that lnd makes.
_VERSION_3 = 3
_TIME = re.compile(r"time-before (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What a macaroon permits: ``operations`` as (entity, action), and the moment ``until`` which it does, None for ever.

    ``caveats`` are the words before the first blank of its caveats, such as ``ipaddr``.
    """

    operations: frozenset[tuple[str, str]]
    until: datetime | None = None
    caveats: tuple[str, ...] = ()

    @property
    def powers(self) -> tuple[str, ...]:
        """What it could do beyond paying, in words that follow "it can"."""
        found: dict[str, None] = {}
        for entity, actions, power in _HARMFUL:
            if any((entity, action) in self.operations for action in actions):
                found[power] = None
        for entity, action in self.operations:
            if entity == "uri":
                found |= {power: None for pattern, power in _HARMFUL_URIS if pattern.fullmatch(action)}
        return tuple(found)


def read_permissions(macaroon: bytes) -> Permissions | None:
    """Return what a binary macaroon (version 2) permits; None if that can't be read in it."""
    from pymacaroons.serializers import BinarySerializer

    from .stubs import routeweiler_lnd_pb2 as pb

    try:
        read = BinarySerializer().deserialize_raw(macaroon)
        identifier = read.identifier_bytes
        if not identifier or identifier[0] != _VERSION_3:
            return None
        operations = pb.MacaroonId.FromString(bytes(identifier[1:])).ops
        caveats = [_text(caveat.caveat_id) for caveat in read.first_party_caveats()]
    except Exception:  # noqa: BLE001 - the libraries raise many kinds, and what can't be read isn't judged
        return None
    if not operations:
        return None
    return Permissions(
        operations=frozenset((each.entity, action) for each in operations for action in each.actions),
        until=min((moment for each in caveats if (moment := _moment(each)) is not None), default=None),
        caveats=tuple(each.partition(" ")[0] for each in caveats),
    )


def _text(caveat: object) -> str:
    return caveat if isinstance(caveat, str) else bytes(caveat).decode("utf-8", "replace")  # type: ignore[call-overload]


def _moment(caveat: str) -> datetime | None:
    if (found := _TIME.fullmatch(caveat)) is not None:
        with suppress(ValueError):
            return datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00"))
    return None
