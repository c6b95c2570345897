"""The documentation says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_the_purchase_is_drawn_from_the_table() -> None:
    """Else a reader would trust rules that the code has left behind."""
    draw = runpy.run_path(str(DOCS / "draw_purchase.py"))
    text = (DOCS / "explanation" / "purchase.md").read_text(encoding="utf-8")
    assert draw["page"](text) == text
    assert "open --> dead" in text
    assert "FAILED in answer to this send" in text
    assert "| ACCEPTED | ask without the token; if the answer is an L402 challenge" in text
