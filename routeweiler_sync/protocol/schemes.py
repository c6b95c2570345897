"""The schemes that can be paid. Code outside `protocol` reaches a scheme only through this module.

A scheme is a folder beside `l402` and one entry of `SCHEMES`. The functions that find secrets (`redact`, `is_credential`) ask every
entry, so none of them can miss a scheme that is in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._core.rails import L402
from .challenge import Challenge
from .http_auth import schemes_offered
from .l402 import challenge as l402_challenge, credential as l402_credential


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidScheme:
    """One scheme: its names, and the functions that its folder offers.

    - ``names``: the scheme's names in ``WWW-Authenticate`` and ``Authorization``, in upper case.
    - ``rail``: its name in budgets, policies and traces.
    - ``parse``: `parse_challenge` for this scheme alone.
    - ``is_named_alone``: `is_named_alone` for this scheme alone. Without it, each of its challenges offers something.
    - ``authorization``: returns the value of ``Authorization`` for (name, token, preimage).
    - ``is_credential``: returns whether a header's whole value is a credential of this scheme.
    - ``redact``: returns a text with this scheme's credentials and tokens replaced.
    """

    names: tuple[str, ...]
    rail: str
    parse: Callable[[Sequence[str]], Challenge | None]
    authorization: Callable[[str, str, bytes], str]
    is_credential: Callable[[str], bool]
    redact: Callable[[str], str]
    is_named_alone: Callable[[Sequence[str]], bool] = lambda lines: False


#: The schemes in order of preference: of several offers that can be used, the one of the first scheme is answered.
SCHEMES = (
    PaidScheme(
        names=l402_credential.NAMES,
        rail=L402,
        parse=l402_challenge.parse_challenge,
        is_named_alone=l402_challenge.is_named_alone,
        authorization=l402_credential.authorization,
        is_credential=l402_credential.is_credential,
        redact=l402_credential.redact,
    ),
)

#: The names of all schemes that can be paid, in upper case.
NAMES = tuple(name for scheme in SCHEMES for name in scheme.names)


def parse_challenge(lines: str | Sequence[str]) -> Challenge | None:
    """Return the challenge to answer, out of the lines of ``WWW-Authenticate``; None if no scheme in them can be paid.

    Raises: ChallengeParseError if a scheme of `SCHEMES` is named but none of its challenges can be used. The text never holds a
    token.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    for scheme in SCHEMES:
        challenge = scheme.parse(lines)
        if challenge is not None:
            return challenge
    return None


def is_named_alone(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` name a scheme that can be paid, and none of the named ones offers anything to pay."""
    offered = {name.upper() for name in schemes_offered(lines)} & set(NAMES)
    return bool(offered) and all(scheme.is_named_alone(lines) for scheme in SCHEMES if offered & set(scheme.names))


def names_others(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` name a scheme that can't be paid."""
    return any(name.upper() not in NAMES for name in schemes_offered(lines))


def authorization(name: str, token: str, preimage: bytes) -> str:
    """Return the value of ``Authorization`` for a paid token of the scheme ``name``; ``preimage`` is 32 bytes.

    Raises: ValueError for an unknown scheme or a token that can't be sent. The text holds neither token nor preimage.
    """
    for scheme in SCHEMES:
        if name in scheme.names:
            return scheme.authorization(name, token, preimage)
    raise ValueError("no scheme of this name can be paid")


def rail_of(name: str) -> str:
    """Return the rail of the scheme ``name``. Raises: ValueError for an unknown scheme."""
    for scheme in SCHEMES:
        if name in scheme.names:
            return scheme.rail
    raise ValueError("no scheme of this name can be paid")


def mentions_scheme(text: str) -> bool:
    """Return whether ``text`` names a scheme that can be paid, in any case."""
    return any(name in text.upper() for scheme in SCHEMES for name in scheme.names)


def is_credential(value: str) -> bool:
    """Return whether the whole of ``value`` is a credential of a scheme that can be paid."""
    return any(scheme.is_credential(value) for scheme in SCHEMES)


def redact(text: str) -> str:
    """Return ``text`` with every credential and token of every scheme replaced, for logs, traces and pickles."""
    for scheme in SCHEMES:
        text = scheme.redact(text)
    return text
