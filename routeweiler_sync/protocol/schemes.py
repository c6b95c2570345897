"""The schemes that can be paid. Code outside `protocol` reaches a scheme only through this module.

A scheme is a folder beside `l402` and one entry of `SCHEMES`. The functions that find secrets (`redact`, `is_credential`) ask every
entry, so none of them can miss a scheme that is in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .._core.rails import L402, MPP_LIGHTNING
from ..errors import ChallengeMismatchError, ChallengeParseError
from .challenge import Challenge
from .http_auth import schemes_offered
from .l402 import challenge as l402_challenge, credential as l402_credential
from .mpp import challenge as mpp_challenge, credential as mpp_credential, receipt as mpp_receipt
from .mpp.receipt import Receipt as Receipt


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
    - ``is_named``: returns whether a challenge under the scheme's name may be meant for this package. Without it, each may.
    - ``names_others``: `names_others` for the challenges under this scheme's name. Without it, all of them can be paid.
    - ``credential_header``: returns the header that the credential for a token goes into.
    - ``receipt_of``: `receipt_of` for this scheme alone. Without it, the scheme knows no receipts.
    - ``secrets_of``: `secrets_of` for this scheme alone. Without it, the token is the secret.
    - ``secrets_in``: `secrets_in` for this scheme alone.
    - ``sent_as``: ``names`` as challenges and rows of the ledger write them, if not in upper case.
    - ``reusable``: whether a credential opens more than one request.
    """

    names: tuple[str, ...]
    rail: str
    parse: Callable[[Sequence[str]], Challenge | None]
    authorization: Callable[[str, str, bytes], str]
    is_credential: Callable[[str], bool]
    redact: Callable[[str], str]
    is_named_alone: Callable[[Sequence[str]], bool] = lambda lines: False
    is_named: Callable[[Sequence[str]], bool] = lambda lines: True
    names_others: Callable[[Sequence[str]], bool] = lambda lines: False
    credential_header: Callable[[str], str] = lambda token: "Authorization"
    receipt_of: Callable[[Mapping[str, str] | None], Receipt | None] = lambda headers: None
    secrets_of: Callable[[str, bytes | None], frozenset[str]] = lambda token, preimage: frozenset((token,))
    secrets_in: Callable[[str], frozenset[str]] = lambda value: frozenset()
    sent_as: tuple[str, ...] = ()
    reusable: bool = True


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
    PaidScheme(
        names=mpp_credential.NAMES,
        sent_as=(mpp_credential.SCHEME,),
        rail=MPP_LIGHTNING,
        parse=mpp_challenge.parse_challenge,
        is_named=mpp_challenge.is_named,
        is_named_alone=mpp_challenge.is_named_alone,
        names_others=mpp_challenge.names_others,
        authorization=mpp_credential.authorization,
        credential_header=mpp_credential.credential_header,
        secrets_of=mpp_credential.secrets_of,
        secrets_in=mpp_credential.secrets_in,
        is_credential=mpp_credential.is_credential,
        redact=mpp_credential.redact,
        receipt_of=mpp_receipt.receipt_of,
        reusable=False,
    ),
)

#: The names of all schemes that can be paid, in upper case.
NAMES = tuple(name for scheme in SCHEMES for name in scheme.names)


def offers(lines: str | Sequence[str], prefer: str | Sequence[str] | None = None) -> Iterator[Challenge]:
    """Yield the challenges that can be paid, one of each scheme at most, out of the lines of ``WWW-Authenticate``.

    They come in the order of `SCHEMES`, but those of the rails ``prefer`` (one, or several, the best first) before the others. Each
    is read when it is asked for.

    Raises: when nothing was yielded, ChallengeParseError if a scheme of `SCHEMES` is named but none of its challenges can be used;
    ChallengeMismatchError if one contradicts itself. The text never holds a token.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    rails = (prefer,) if isinstance(prefer, str) else tuple(prefer or ())
    order = sorted(SCHEMES, key=lambda scheme: rails.index(scheme.rail) if scheme.rail in rails else len(rails))
    error: ChallengeParseError | ChallengeMismatchError | None = None
    found = False
    for scheme in order:
        try:
            challenge = scheme.parse(lines)
        except (ChallengeParseError, ChallengeMismatchError) as exc:
            error = error or exc
        else:
            if challenge is not None:
                found = True
                yield challenge
    if error is not None and not found:
        raise error


def parse_challenge(lines: str | Sequence[str], prefer: str | Sequence[str] | None = None) -> Challenge | None:
    """Return the first of the challenges that `offers` yields; None if no scheme in ``lines`` can be paid.

    Raises: as `offers`.
    """
    return next(offers(lines, prefer), None)


def is_named_alone(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` name a scheme that can be paid, and none of the named ones offers anything to pay."""
    offered = {name.upper() for name in schemes_offered(lines)}
    named = [scheme for scheme in SCHEMES if offered & set(scheme.names) and scheme.is_named(lines)]
    return bool(named) and all(scheme.is_named_alone(lines) for scheme in named)


def names_others(lines: Sequence[str]) -> bool:
    """Return whether ``lines`` name a scheme that can't be paid, or hold a challenge that can't under the name of one that can."""
    offered = {name.upper() for name in schemes_offered(lines)}
    return bool(offered - set(NAMES)) or any(scheme.names_others(lines) for scheme in SCHEMES if offered & set(scheme.names))


def authorization(name: str, token: str, preimage: bytes) -> str:
    """Return the credential for a paid token of the scheme ``name``, the value of `credential_header`; ``preimage`` is 32 bytes.

    Raises: ValueError for an unknown scheme or a token that can't be sent. The text holds neither token nor preimage.
    """
    return _scheme(name).authorization(name, token, preimage)


def credential_header(name: str, token: str) -> str:
    """Return the header that the credential for a token of the scheme ``name`` goes into.

    Raises: ValueError for an unknown scheme or a token that isn't of it.
    """
    return _scheme(name).credential_header(token)


def secrets_of(name: str, token: str, preimage: bytes | None = None) -> frozenset[str]:
    """Return the texts that mustn't be in any text of ours, of a token of the scheme ``name`` that is offered, or paid for.

    ``preimage`` is None while the token isn't paid for. Raises: ValueError for an unknown scheme.
    """
    return _scheme(name).secrets_of(token, preimage)


def secrets_in(value: str) -> frozenset[str]:
    """Return what is secret in ``value`` beside the whole of it, if it is a credential that is more than a token and a preimage."""
    return frozenset().union(*(scheme.secrets_in(value) for scheme in SCHEMES))


def is_reusable(name: str) -> bool:
    """Return whether a credential of the scheme ``name`` opens more than one request. Raises: ValueError for an unknown scheme."""
    return _scheme(name).reusable


def rail_of(name: str) -> str:
    """Return the rail of the scheme ``name``. Raises: ValueError for an unknown scheme."""
    return _scheme(name).rail


def receipt_of(headers: Mapping[str, str] | None) -> Receipt | None:
    """Return the receipt in the headers of an answer, or None if there is none that can be read. It proves nothing."""
    return next((found for scheme in SCHEMES if (found := scheme.receipt_of(headers)) is not None), None)


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


def _scheme(name: str) -> PaidScheme:
    for scheme in SCHEMES:
        if name in (scheme.sent_as or scheme.names):
            return scheme
    raise ValueError("no scheme of this name can be paid")
