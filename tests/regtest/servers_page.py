"""The tables of `docs/how-to/servers.md`: written by the tests, and compared with what the tests see.

The page is prose with marked sections. A test module makes the text of its own section from what came out and calls
`check_section`, which compares. With ROUTEWEILER_WRITE_SERVERS_PAGE=1 it writes the section instead:

    ROUTEWEILER_WRITE_SERVERS_PAGE=1 pytest tests/regtest/test_real_servers.py

What goes into a section is the same in every run: no ports, hashes, times or tokens.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "servers.md"
WRITE = "ROUTEWEILER_WRITE_SERVERS_PAGE"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. A bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    for line in lines:
        assert len(line) == len(header), f"{line} doesn't fit under {header}"
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def check_section(name: str, text: str) -> None:
    """Compare the section `name` of the page with `text`, or write it there where the environment says so.

    The section is what stands between the lines `<!-- tests: NAME -->` and `<!-- end: NAME -->`. Raises AssertionError with the
    difference, or where the page has no such section.
    """
    page = PAGE.read_text(encoding="utf-8")
    head, found, rest = page.partition(f"<!-- tests: {name} -->\n")
    old, closed, tail = rest.partition(f"<!-- end: {name} -->")
    assert found, f"{PAGE.name} has no section {name}"
    assert closed, f"{PAGE.name}: the section {name} has no end"
    new = text.strip("\n") + "\n"
    if os.environ.get(WRITE) == "1":
        PAGE.write_text(head + found + new + closed + tail, encoding="utf-8")
        return
    changes = difflib.unified_diff(old.splitlines(), new.splitlines(), "the page", "what came out", lineterm="")
    assert old == new, f"{PAGE.name}, section {name} (write it with {WRITE}=1):\n" + "\n".join(changes)
