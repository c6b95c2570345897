"""Compare what a page says is printed with what was printed."""

from __future__ import annotations

import difflib
import re

#: What differs from run to run. It may stand in a page as it was once, and needs no placeholder.
CHANGING = {
    r"127\.0\.0\.1:\d+": "127.0.0.1:PORT",
    r"(?:<1|\b\d+(?:\.\d+)?) ms\b": "TIME",
    r"\b\d+(?:\.\d+)? s\b": "TIME",
    r"in \d+ min\b": "in SOME min",
    r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?": "DATE",
    r"\b\d\d:\d\d(?::\d\d)?\b": "CLOCK",
    r"\b[0-9a-f]{64}\b": "HASH",
    r"\b[0-9a-f]{8,}…": "HASH",
    r"\blnbcrt\w+…?": "INVOICE",
    r"(routeweiler-sync|version) \d+\.\d+\.\d+\S*": r"\1 VERSION",
    r"─+": "─",
    r"[ \t]+": " ",
}


def _plain(text: str) -> list[str]:
    for pattern, name in CHANGING.items():
        text = re.sub(pattern, name, text)
    return [line.rstrip() for line in text.strip().splitlines()]


def difference(expected: str, printed: str) -> str | None:
    """Return how the two differ, or None. ``…`` or ``...`` in a page stands for any text, alone in a line for any lines."""
    told, came = _plain(expected), _plain(printed)
    pattern = ""
    for line in told:
        if line.strip() in ("…", "..."):
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r"[^\n]*?".join(re.escape(part) for part in re.split(r"…|\.\.\.", line)) + r"\n"
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in came)):
        return None
    return "\n".join(difflib.unified_diff(told, came, "the page says", "it prints", lineterm=""))
