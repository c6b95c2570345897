"""Read ``WWW-Authenticate`` as a list of challenges of any scheme (RFC 9110 section 11.6.1).

Knows the grammar: mixed schemes, parameters or token68, quoted strings, lines that are separate or folded into one. What a
parameter means is left to the scheme's own folder.

aperture sends two lines with the same values, LSAT first, and ``Payment …`` lines too if its MPP option is on. requests folds the
lines into one, joined with ``", "``. So a comma may end a parameter or a challenge, and only the grammar shows which:

    WWW-Authenticate = [ element *( "," element ) ]
    element          = scheme | scheme SP param | scheme SP token68 | param        ; a param belongs to the scheme before it

Some servers part the parameters by blanks instead of commas (``L402 macaroon=… invoice=…``). That breaks the grammar, but it can be
read in one way only, so it is read.

An element that breaks the grammar spoils the challenge that it is in. Reading goes on safely at the next comma outside quotes. A
quote that never closes spoils the rest of its line, which may be the inside of a string that somebody else wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: The most characters in all lines together. Python's http.client accepts no line longer than this.
MAX_HEADER_CHARS = 64 * 1024
MAX_CHALLENGES = 64
MAX_PARAMS = 64
#: A longer "scheme" is more likely a stray token, and a token mustn't be logged.
MAX_SCHEME_CHARS = 32

_BLANKS = " \t"
# RFC 9110 section 5.5: a recipient replaces these with a space. (Obsolete line folding leaves them in a value.)
_CONTROLS_TO_BLANK = str.maketrans("\r\n\0", "   ")

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_ELEMENT = re.compile(rf'(?:[^",]+|{_QUOTED})*')
# A value without quotes may hold all characters of base64, though RFC 9110 demands quotes around some of them.
_PARAM = re.compile(rf'({_NAME})[ \t]*=[ \t]*(?:({_QUOTED})|([^\s",]*))')
_START = re.compile(rf"({_NAME})(?:[ \t]+(.+))?")
_BLANK = re.compile(r"[ \t]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_ESCAPED = re.compile(r"\\(.)")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,19}")


@dataclass(slots=True)
class ListedChallenge:
    """One challenge of the list, of any scheme.

    ``params`` are (name, value) in their order, repeated names included; names are in lower case. ``spoiled``: the challenge breaks
    the grammar or a bound, so it can't be used. ``token68``: it has a single value without a name in place of parameters.
    """

    scheme: str
    params: list[tuple[str, str]] = field(default_factory=list, repr=False)
    spoiled: bool = False
    token68: bool = False


class OversizedHeaderError(Exception):
    """The header exceeds `MAX_HEADER_CHARS` or `MAX_CHALLENGES`, and wasn't read to its end."""


def is_name(text: str) -> bool:
    """Return whether ``text`` can be a method, or the name of a header (a token of RFC 9110, section 5.6.2)."""
    return re.fullmatch(_NAME, text) is not None


def schemes_offered(lines: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of all schemes in ``WWW-Authenticate``, as written, each once.

    Meant for the log line about a 402 that can't be paid. Never raises; returns an empty tuple if the header is oversized.
    """
    try:
        listed = read_challenges([lines] if isinstance(lines, str) else list(lines))
    except OversizedHeaderError:
        return ()
    return tuple(dict.fromkeys(each.scheme for each in listed if len(each.scheme) <= MAX_SCHEME_CHARS))


def described(lines: Sequence[str]) -> str:
    """Return what ``WWW-Authenticate`` asks for, as the log line about a 402 has it: ``Basic, Payment lightning/session``.

    Never raises. It holds no value but a method and an intent of the Payment scheme, if they are short words.
    """
    try:
        listed = read_challenges(lines)
    except OversizedHeaderError:
        return "too many to read"
    found: dict[str, None] = {}
    for each in listed:
        if len(each.scheme) <= MAX_SCHEME_CHARS:
            named = dict(each.params)
            words = [named[name] for name in ("method", "intent") if _WORD.fullmatch(named.get(name, ""))]
            found[f"{each.scheme} {'/'.join(words)}".strip()] = None
    return ", ".join(found) or "none"


def read_challenges(lines: Iterable[str]) -> list[ListedChallenge]:
    """Return all challenges, of any scheme, in order. Each character is examined a bounded number of times.

    Raises: OversizedHeaderError if the header exceeds a bound.
    """
    found: list[ListedChallenge] = []
    chars_left = MAX_HEADER_CHARS
    for line in lines:
        chars_left -= len(line)
        if chars_left < 0:
            raise OversizedHeaderError
        closed = _read_line(line.translate(_CONTROLS_TO_BLANK), found)
        if not closed and found:
            found[-1].spoiled = True
    return found


def _read_line(line: str, found: list[ListedChallenge]) -> bool:
    """Append the line's challenges to ``found``. Return False if a quote doesn't close and the rest of the line wasn't read.

    A parameter at the beginning of the line belongs to the last challenge of the line before: the lines are one list, which may be
    cut into lines at any comma.
    """
    at = 0
    while at < len(line):
        element = _ELEMENT.match(line, at)
        assert element is not None  # the pattern matches the empty text too
        text = element.group().strip(_BLANKS)
        if text:
            _add(text, found)
        at = element.end()
        if line[at : at + 1] == '"':
            return False
        at += 1
    return True


def _add(text: str, found: list[ListedChallenge]) -> None:
    params = _params(text)
    if params is None and (start := _START.fullmatch(text)):
        if len(found) == MAX_CHALLENGES:
            raise OversizedHeaderError
        found.append(ListedChallenge(start[1]))
        if start[2] is None:
            return
        params = _params(start[2])
        found[-1].token68 = _TOKEN68.fullmatch(start[2]) is not None
    if not found:
        return  # a parameter before the first scheme belongs to none
    last = found[-1]
    if params is None or len(last.params) + len(params) > MAX_PARAMS:
        last.spoiled = True
        return
    last.params += params


def _params(text: str) -> list[tuple[str, str]] | None:
    """Return the parameters that ``text`` consists of, parted by blanks if there are several. None if it holds anything else."""
    found, at = [], 0
    while at < len(text):
        param = _PARAM.match(text, at)
        if param is None:
            return None
        name, quoted, bare = param.groups()
        found.append((name.lower(), bare if quoted is None else _ESCAPED.sub(r"\1", quoted[1:-1])))
        blank = _BLANK.match(text, param.end())
        at = len(text) if param.end() == len(text) else -1 if blank is None else blank.end()
        if at < 0:
            return None
    return found or None
