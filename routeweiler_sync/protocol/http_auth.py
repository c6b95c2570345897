"""Read ``WWW-Authenticate`` as the list of challenges that RFC 9110 section 11.6.1 says it is, whatever their schemes.

Knows the grammar: schemes mixed, parameters or token68, quoted strings, lines apart or folded into one. What a parameter means is
for the scheme's own room.

aperture sends two lines with the same values, LSAT first, and ``Payment …`` lines where its MPP option is on. requests folds them
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

#: All lines together. Python's http.client takes no line above it.
MAX_HEADER_CHARS = 64 * 1024
MAX_CHALLENGES = 64
MAX_PARAMS = 64
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


@dataclass(slots=True)
class ListedChallenge:
    """One challenge of the list, any scheme. Parameter names in lower case, in order, doubles included."""

    scheme: str
    params: list[tuple[str, str]] = field(default_factory=list, repr=False)
    spoiled: bool = False


class OversizedHeaderError(Exception):
    """The header is beyond `MAX_HEADER_CHARS` or `MAX_CHALLENGES`, and wasn't read to its end."""


def schemes_offered(lines: str | Sequence[str]) -> tuple[str, ...]:
    """The names of all schemes in ``WWW-Authenticate``, as written, each once, for a log line on a 402 that isn't ours.

    Never raises; empty where the header is oversized.
    """
    try:
        listed = read_challenges([lines] if isinstance(lines, str) else list(lines))
    except OversizedHeaderError:
        return ()
    return tuple(dict.fromkeys(each.scheme for each in listed if len(each.scheme) <= MAX_SCHEME_CHARS))


def read_challenges(lines: Iterable[str]) -> list[ListedChallenge]:
    """Return all challenges, of any scheme, in order. Each character is looked at a bounded number of times.

    Raises: OversizedHeaderError.
    """
    found: list[ListedChallenge] = []
    room = MAX_HEADER_CHARS
    for line in lines:
        room -= len(line)
        if room < 0:
            raise OversizedHeaderError
        closed = _read_line(line.translate(_CONTROLS_TO_BLANK), found)
        if not closed and found:
            found[-1].spoiled = True
    return found


def _read_line(line: str, found: list[ListedChallenge]) -> bool:
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


def _add(text: str, found: list[ListedChallenge]) -> None:
    param = _PARAM.fullmatch(text)
    if param is None and (start := _START.fullmatch(text)):
        if len(found) == MAX_CHALLENGES:
            raise OversizedHeaderError
        found.append(ListedChallenge(start[1]))
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
