"""The documentation says what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import routeweiler_sync
from routeweiler_sync.cli import continued

PACKAGE = Path(routeweiler_sync.__file__).parent
DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_the_purchase_is_drawn_from_the_table() -> None:
    """Else a reader would trust rules that the code has left behind."""
    draw = runpy.run_path(str(DOCS / "draw_purchase.py"))
    text = (DOCS / "explanation" / "purchase.md").read_text(encoding="utf-8")
    assert draw["page"](text) == text
    assert "open --> dead" in text
    assert "FAILED in answer to this send" in text
    assert "| ACCEPTED | ask without the token; if the answer is an L402 challenge" in text


def test_the_page_of_what_is_stored_names_each_table_and_file() -> None:
    """Whoever must say where tokens lie would overlook one."""
    page = (DOCS / "explanation" / "what-is-stored-where.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
    # The others aren't a ledger's: the trace's one table, and those in which a report adds up.
    tables = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", code)) - {"trace_events", "entries", "series"}
    folders_and_files = set(re.findall(r"(?:mkstemp|mkdtemp|TemporaryDirectory|TemporaryFile)\([^)]*prefix=\"([\w-]+)\"", code))
    assert len(tables) >= 8
    assert len(folders_and_files) >= 3
    named = tables | folders_and_files | {continued.PART, continued.NOTES}
    assert [name for name in sorted(named) if name not in page] == []
