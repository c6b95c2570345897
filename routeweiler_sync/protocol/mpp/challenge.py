"""Choose the ``Payment`` challenge of a 402 to answer: a charge over Lightning.

Whether it may and should be paid is left to `payments`. The grammar of the header is left to `http_auth`.

A challenge of another method, or of another intent (``session``, a prepaid balance), isn't for this package: it is as if it weren't
there. One for a charge over Lightning that can't be used is an error, since its server wants to be paid in this way.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from ..._core.rails import MPP_LIGHTNING
from ...errors import ChallengeMismatchError, ChallengeParseError
from ..challenge import Challenge
from ..http_auth import MAX_CHALLENGES, MAX_HEADER_CHARS, MAX_PARAMS, ListedChallenge, OversizedHeaderError, read_challenges
from .charge import invoice_of
from .credential import ALTERNATE_HEADER, DEFAULT_HEADER, ECHOED, MAX_CREDENTIAL_CHARS, NAMES, SCHEME, is_sendable, token_of

METHOD = "lightning"
INTENT = "charge"
#: The most charges that are tried. Each may cost a signature check, some 80 ms for the longest invoice.
MAX_CANDIDATES = 4
SHA256_BYTES = 32

_REQUIRED = ("id", "realm", "method", "intent", "request")
_NAMED = re.compile(r"(?<![^\s,])Payment(?![^\s,])", re.IGNORECASE)
_METHOD_NAMED = re.compile(rf'(?<![\w-])method\s*=\s*"?{METHOD}"?(?![\w-])', re.IGNORECASE)
# RFC 3339. Python 3.10 reads neither "Z" nor a fraction of any length.
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,30}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
# RFC 9530, and without the colons as several servers write it. Other algorithms may stand beside it.
_DIGEST = re.compile(r"(?:^|,)[ \t]*sha-256[ \t]*=[ \t]*(:?)([A-Za-z0-9+/_-]{43})=?\1[ \t]*(?:;[^,]*)?(?=,|$)", re.IGNORECASE)
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


def parse_challenge(lines: str | Sequence[str]) -> Challenge | None:
    """Return the first usable charge over Lightning; None if there is no charge over Lightning.

    ``lines`` are the value or values of ``WWW-Authenticate``, in separate lines or folded into one.

    Raises: ChallengeParseError if there are charges over Lightning but none can be used; ChallengeMismatchError if one of those
    contradicts its own invoice. The text gives the reason for each.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    error: type[ChallengeParseError] | type[ChallengeMismatchError] = ChallengeParseError
    try:
        candidates = [listed for listed in read_challenges(lines) if _is_ours(listed)]
    except OversizedHeaderError:
        if not any(_NAMED.search(line) and _METHOD_NAMED.search(line) for line in lines):
            return None
        reasons = [f"the header is above {MAX_HEADER_CHARS} characters or {MAX_CHALLENGES} challenges"]
    else:
        if not candidates:
            return None
        reasons = []
        for listed in candidates[:MAX_CANDIDATES]:
            try:
                return _challenge(listed)
            except (ChallengeParseError, ChallengeMismatchError) as exc:
                reasons.append(str(exc))
                error = type(exc) if isinstance(exc, ChallengeMismatchError) else error
    raise error(
        f"The server wants to be paid by a Payment charge over Lightning, but its challenge can't be used "
        f"({'; '.join(dict.fromkeys(reasons))}).",
        advice="Report this to the server's operator."
        if error is ChallengeMismatchError
        else "The server's operator has to correct its WWW-Authenticate header.",
    )


def is_named(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` hold a charge over Lightning, or nothing but the scheme's name."""
    try:
        return any(_is_ours(each) for each in read_challenges(lines)) or not names_others(lines)
    except OversizedHeaderError:
        return True


def is_named_alone(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` hold no charge over Lightning: of this scheme, there is nothing that could be paid."""
    try:
        return not any(_is_ours(listed) for listed in read_challenges(lines))
    except OversizedHeaderError:
        return False


def names_others(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` hold a ``Payment`` challenge that this package doesn't answer."""
    try:
        listed = read_challenges(lines)
    except OversizedHeaderError:
        return False
    return any(each.scheme.upper() in NAMES and each.params and not _is_ours(each) for each in listed)


def _is_ours(listed: ListedChallenge) -> bool:
    """Return whether ``listed`` is a charge over Lightning, usable or not.

    Repeated parameters count if one of them says so. One that has a request and names no intent is meant for one. Without both,
    it is of an older profile, in which the invoice is a parameter: its own clients pay it.
    """
    if listed.scheme.upper() not in NAMES:
        return False
    methods = {value.strip().lower() for name, value in listed.params if name == "method"}
    intents = {value.strip().lower() for name, value in listed.params if name == "intent"}
    has_request = any(name == "request" for name, _ in listed.params)
    return METHOD in methods and (INTENT in intents or (has_request and not intents))


def _challenge(listed: ListedChallenge) -> Challenge:
    """Return the charge in ``listed``.

    Raises: ChallengeParseError if it can't be used, ChallengeMismatchError if it contradicts itself. The text is the reason alone,
    as a clause.
    """
    if listed.spoiled:
        raise ChallengeParseError(f"its parameters are malformed, or more than {MAX_PARAMS}")
    names = [name for name, _ in listed.params]
    if len(set(names)) != len(names):
        raise ChallengeParseError("a parameter is given twice")
    params = {name: _as_sent(value) for name, value in listed.params if name in ECHOED}
    missing = [name for name in _REQUIRED if name not in params or (name != "realm" and not params[name])]
    if missing:
        raise ChallengeParseError(f"it has no {missing[0]}")
    if params["method"] != METHOD or params["intent"] != INTENT:
        raise ChallengeParseError(f"its method and intent aren't {METHOD} and {INTENT} in lower case")
    header = params.get("header")
    if header is not None and header.lower() != ALTERNATE_HEADER.lower():
        raise ChallengeParseError(f"it wants its credential in a header other than {ALTERNATE_HEADER}")
    token = token_of(params)
    if not is_sendable(token):
        raise ChallengeParseError(
            f"it has a character that can't be sent back, or its credential is above {MAX_CREDENTIAL_CHARS} characters"
        )
    expires_at = None if "expires" not in params else _unix_time(params["expires"])
    body_digest = None if "digest" not in params else _sha256(params["digest"])
    return Challenge(
        scheme=SCHEME,
        rail=MPP_LIGHTNING,
        token=token,
        invoice=invoice_of(params["request"]),
        expires_at=expires_at,
        body_digest=body_digest,
        credential_header=DEFAULT_HEADER if header is None else ALTERNATE_HEADER,
        reusable=False,
    )


def _as_sent(value: str) -> str:
    """Return the text that the server meant by the bytes of ``value``.

    A header's bytes reach Python as Latin-1. Servers in Go and Python send UTF-8, those on Node Latin-1: bytes that are UTF-8 are
    taken for that, since a text in Latin-1 hardly ever looks like it.
    """
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except ValueError:
        return value


def _unix_time(text: str) -> float:
    """Return the unix time in seconds of an RFC 3339 text. Raises: ChallengeParseError."""
    matched = _TIME.fullmatch(text)
    if matched is None:
        raise ChallengeParseError("its expires isn't a time of RFC 3339")
    *parts, fraction, sign, hours, minutes = matched.groups()
    year, month, day, hour, minute, second = map(int, parts)
    leap = second == 60
    try:
        moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=timezone.utc)
        offset = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
        if offset >= timedelta(days=1) or (sign and int(minutes) > 59):
            raise ValueError
        moment = moment + offset if sign == "-" else moment - offset
        return moment.timestamp() + leap + (float(f"0.{fraction}") if fraction else 0.0)
    except (ValueError, OverflowError):
        raise ChallengeParseError("its expires isn't a time of RFC 3339") from None


def _sha256(text: str) -> str:
    """Return the SHA-256 of ``digest`` as standard base64. Raises: ChallengeParseError if it has none, or several."""
    found = {match[2].translate(_URL_SAFE_TO_STANDARD) for match in _DIGEST.finditer(text)}
    digits = found.pop() + "=" if len(found) == 1 else ""
    if not digits or base64.b64encode(base64.b64decode(digits)).decode() != digits:
        raise ChallengeParseError("its digest isn't one SHA-256")
    return digits
