"""Choose the L402 or LSAT challenge of a 402 to answer, and read what it offers.

Whether it may and should be paid, and whether token and invoice belong together, is left to `payments`. The grammar of the header
is left to `http_auth`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..._core.rails import L402
from ..._core.urls import MAX_SCOPE_CHARS, bounded_key
from ...errors import ChallengeParseError
from ..challenge import Challenge
from ..http_auth import MAX_CHALLENGES, MAX_HEADER_CHARS, MAX_PARAMS, ListedChallenge, OversizedHeaderError, read_challenges
from ..invoice import decode_invoice
from .credential import MAX_TOKEN_CHARS, NAMES, is_sendable
from .macaroon import parse_macaroon

#: The most L402 and LSAT challenges that are tried. Each may cost a signature check, some 80 ms for the longest invoice.
MAX_CANDIDATES = 4
_SERVICES = "services="
# One of the scheme's names, as a word of its own.
_NAMED = re.compile(r"(?<![^\s,])(?:L402|LSAT)(?![^\s,])", re.IGNORECASE)


def parse_challenge(lines: str | Sequence[str]) -> Challenge | None:
    """Return the first usable L402 challenge, else the first usable LSAT one; None if there is neither.

    ``lines`` are the value or values of ``WWW-Authenticate``, in separate lines or folded into one.

    Raises: ChallengeParseError if there are L402 or LSAT challenges but none can be used. The text gives the reason for each, and
    never holds the token.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    try:
        candidates = [listed for listed in read_challenges(lines) if _name(listed)]
    except OversizedHeaderError:
        if not any(_NAMED.search(line) for line in lines):
            return None
        reasons = [f"the header is above {MAX_HEADER_CHARS} characters or {MAX_CHALLENGES} challenges"]
    else:
        if not candidates:
            return None
        candidates.sort(key=lambda listed: _name(listed) != "L402")
        reasons = []
        for listed in candidates[:MAX_CANDIDATES]:
            try:
                return _challenge(listed)
            except ChallengeParseError as exc:
                reasons.append(f"{_name(listed)}: {exc}")
    raise ChallengeParseError(
        f"The server wants to be paid by L402, but its challenge can't be used ({'; '.join(dict.fromkeys(reasons))}).",
        advice="The server's operator has to correct its WWW-Authenticate header.",
    )


def is_named_alone(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` name L402 or LSAT, but offer neither token nor invoice: there is nothing that could be paid.

    Servers refuse a token in this way, since a 401 has to name a scheme, or say to a HEAD what a GET would cost.
    """
    try:
        named = [listed for listed in read_challenges(lines) if _name(listed)]
    except OversizedHeaderError:
        return False
    return bool(named) and all(_offers_nothing(listed) for listed in named)


def _offers_nothing(listed: ListedChallenge) -> bool:
    offered = any(name in ("token", "macaroon", "invoice") for name, _ in listed.params)
    return not offered and (listed.token68 or not listed.spoiled)


def _challenge(listed: ListedChallenge) -> Challenge:
    """Return the L402 or LSAT challenge in ``listed``.

    Raises: ChallengeParseError if it can't be used. The text is the reason alone, as a clause.
    """
    if listed.spoiled:
        raise ChallengeParseError(f"its parameters are malformed, or more than {MAX_PARAMS}")
    values: dict[str, str] = {}
    for name, value in listed.params:
        name = "token" if name == "macaroon" else name
        if values.setdefault(name, value) != value:
            raise ChallengeParseError("a parameter is given twice, with different values")
    token, invoice = values.get("token"), values.get("invoice")
    if not token or not invoice:
        raise ChallengeParseError(f"it has no {'invoice' if token else 'token'}")
    if not is_sendable(token):
        raise ChallengeParseError(f"its token has a character that can't be sent back, or is above {MAX_TOKEN_CHARS} characters")
    macaroon = parse_macaroon(token)
    return Challenge(
        scheme=_name(listed),
        rail=L402,
        token=token,
        invoice=decode_invoice(invoice),
        names_scope=None if macaroon is None or macaroon.services is None else _service_scope(macaroon.services),
        names_payment_hash=None if macaroon is None else macaroon.payment_hash,
        valid_until=None if macaroon is None else macaroon.valid_until,
    )


def _name(listed: ListedChallenge) -> str:
    """Return ``L402`` or ``LSAT``, or an empty text if the challenge is of another scheme."""
    upper = listed.scheme.upper()
    return upper if upper in NAMES else ""


def _service_scope(services: str) -> str:
    """Return the scope of a token that names services: aperture binds a token to the service's name, not to a path."""
    return _SERVICES + bounded_key(services, MAX_SCOPE_CHARS - len(_SERVICES))
