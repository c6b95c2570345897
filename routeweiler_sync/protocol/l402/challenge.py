"""What a 402 offers: the ``WWW-Authenticate`` field, read as the list of challenges that RFC 9110 section 11.6.1 says it is.

Knows the grammar (schemes mixed, parameters or token68, quoted strings, lines apart or folded into one) and which of several
challenges to answer. Leaves to checkout whether it may and should be paid, and whether token and invoice belong together.

aperture sends two lines with the same values, LSAT first, and ``Payment …`` lines where its MPP option is on; requests folds them
into one, joined with ``", "``. So a comma may end a parameter or a challenge, and only the grammar tells which:

    WWW-Authenticate = [ element *( "," element ) ]
    element          = scheme | scheme SP param | scheme SP token68 | param        ; a param belongs to the scheme before it

What breaks the grammar spoils the challenge that it stands in; the next comma outside quotes is a safe place to go on. A quote that
never closes spoils the rest of its line: what follows may be the inside of a string that somebody else wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from ...errors import ChallengeParseError
from ..invoice import Invoice, decode_invoice
from .credential import MAX_TOKEN_CHARS, Scheme, is_sendable
from .macaroon import Macaroon, parse_macaroon

#: All lines together. Python's http.client takes no line above it.
MAX_HEADER_CHARS = 64 * 1024
MAX_CHALLENGES = 64
MAX_PARAMS = 64
#: L402 and LSAT challenges that are tried. Each may cost a signature check, some 80 ms for the longest invoice.
MAX_CANDIDATES = 4
#: A longer "scheme" is more likely a stray token, which has no place in a log.
MAX_SCHEME_CHARS = 32

_BLANKS = " \t"
# RFC 9110 section 5.5: a recipient replaces these by a space (obsolete line folding leaves them).
_CONTROLS_TO_BLANK = str.maketrans("\r\n\0", "   ")

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_ELEMENT = re.compile(rf'(?:[^",]+|{_QUOTED})*')
# A bare value may hold what base64 does, which RFC 9110 would have quoted.
_PARAM = re.compile(rf'({_NAME})[ \t]*=[ \t]*(?:({_QUOTED})|([^\s",]*))')
_START = re.compile(rf"({_NAME})(?:[ \t]+(.+))?")
_ESCAPED = re.compile(r"\\(.)")
_NAMES_OURS = re.compile(r"(?<![^\s,])(?:L402|LSAT)(?![^\s,])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A payable offer: this token, once that invoice is paid.

    ``token`` is verbatim as it came (unquoted) and can be sent back. ``macaroon`` is None where the token is opaque. Nothing here
    says that token and invoice belong together: compare ``macaroon.payment_hash`` with ``payment_hash`` before paying.
    """

    scheme: Scheme
    token: str = field(repr=False)
    invoice: Invoice
    macaroon: Macaroon | None

    @property
    def payment_hash(self) -> bytes:
        """The invoice's: 32 bytes. It names the purchase in the ledger."""
        return self.invoice.payment_hash

    @property
    def services(self) -> str | None:
        """The value of the macaroon's ``services`` caveat; see `Macaroon.services`."""
        return self.macaroon.services if self.macaroon else None

    @property
    def valid_until(self) -> int | None:
        """Unix seconds after which the token, paid or not, is refused; None where it doesn't say. See `Macaroon.valid_until`."""
        return self.macaroon.valid_until if self.macaroon else None


@dataclass(slots=True)
class _Listed:
    """One challenge of the list, any scheme. Parameter names in lower case, in order, doubles included."""

    scheme: str
    params: list[tuple[str, str]] = field(default_factory=list, repr=False)
    spoiled: bool = False

    @property
    def ours(self) -> Scheme | None:
        upper = self.scheme.upper()
        return cast(Scheme, upper) if upper in ("L402", "LSAT") else None


class _OversizedError(Exception):
    """The header is beyond `MAX_HEADER_CHARS` or `MAX_CHALLENGES`, and wasn't read to its end."""


def parse_challenge(lines: str | Sequence[str]) -> Challenge | None:
    """The offer to answer in the value or values of ``WWW-Authenticate``, lines apart or folded; None where none is L402 or LSAT.

    The first usable L402 challenge, else the first usable LSAT one. Raises ChallengeParseError where L402 or LSAT is named but none
    can be used; its text tells why for each, and never holds the token. No money moves.
    """
    lines = [lines] if isinstance(lines, str) else list(lines)
    try:
        ours = [listed for listed in _read(lines) if listed.ours]
    except _OversizedError:
        if not any(_NAMES_OURS.search(line) for line in lines):
            return None
        reasons = [f"the header is above {MAX_HEADER_CHARS} characters or {MAX_CHALLENGES} challenges"]
    else:
        if not ours:
            return None
        ours.sort(key=lambda listed: listed.ours != "L402")
        reasons = []
        for listed in ours[:MAX_CANDIDATES]:
            try:
                return _challenge(listed)
            except ChallengeParseError as exc:
                reasons.append(f"{listed.ours}: {exc}")
    raise ChallengeParseError(
        f"The server wants to be paid by L402, but its challenge can't be used ({'; '.join(dict.fromkeys(reasons))}). "
        "Nothing was spent. The server has to mend its WWW-Authenticate header."
    )


def schemes_offered(lines: str | Sequence[str]) -> tuple[str, ...]:
    """The names of all schemes in ``WWW-Authenticate``, as written, each once, for a log line on a 402 that isn't ours.

    Never raises; empty where the header is oversized.
    """
    try:
        listed = _read([lines] if isinstance(lines, str) else list(lines))
    except _OversizedError:
        return ()
    return tuple(dict.fromkeys(each.scheme for each in listed if len(each.scheme) <= MAX_SCHEME_CHARS))


def _read(lines: Iterable[str]) -> list[_Listed]:
    """All challenges, of any scheme, in order. Each character is looked at a bounded number of times."""
    found: list[_Listed] = []
    room = MAX_HEADER_CHARS
    for line in lines:
        room -= len(line)
        if room < 0:
            raise _OversizedError
        closed = _read_line(line.translate(_CONTROLS_TO_BLANK), found)
        if not closed and found:
            found[-1].spoiled = True
    return found


def _read_line(line: str, found: list[_Listed]) -> bool:
    """Adds the line's challenges to ``found``. A parameter that leads it goes to the last one: lines are one list, cut anywhere.

    Returns False where a quote doesn't close; the rest of the line wasn't read.
    """
    at = 0
    while at < len(line):
        element = _ELEMENT.match(line, at)
        assert element is not None  # it matches the empty text
        text = element.group().strip(_BLANKS)
        if text:
            _add(text, found)
        at = element.end()
        if line[at : at + 1] == '"':
            return False
        at += 1
    return True


def _add(text: str, found: list[_Listed]) -> None:
    param = _PARAM.fullmatch(text)
    if param is None and (start := _START.fullmatch(text)):
        if len(found) == MAX_CHALLENGES:
            raise _OversizedError
        found.append(_Listed(start[1]))
        if start[2] is None:
            return
        param = _PARAM.fullmatch(start[2])  # else a token68, which L402 has no use for
    if not found:
        return  # belongs to no scheme
    last = found[-1]
    if param is None or len(last.params) == MAX_PARAMS:
        last.spoiled = True
        return
    name, quoted, bare = param.groups()
    last.params.append((name.lower(), bare if quoted is None else _ESCAPED.sub(r"\1", quoted[1:-1])))


def _challenge(listed: _Listed) -> Challenge:
    """The usable challenge in ``listed``, an L402 or LSAT one. Raises ChallengeParseError with the reason alone."""
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
    return Challenge(scheme=cast(Scheme, listed.ours), token=token, invoice=decode_invoice(invoice), macaroon=parse_macaroon(token))
