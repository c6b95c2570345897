"""The bill of a run: what its notes come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from routeweiler_sync.payments import bill, run_bill
from routeweiler_sync.payments.bill import Bill

A, B, C = ("a" * 64, "b" * 64, "c" * 64)

NOTES = {
    "nothing": ("", ""),
    "a page that was bought": (f"sent {A} 10000 .\npaid {A} 10000 0 .\npage {A} .\n", "paid 10 sat for 1 page"),
    "more pages for its token": (f"paid {A} 10000 0 .\npage {A} .\n+\npage {A} .\n", "paid 10 sat for 1 page; 2 came from tokens"),
    "a page that another process has before the payment is noted": (
        f"page {A} .\npaid {A} 10000 0 .\n",
        "paid 10 sat for 1 page",
    ),
    "two payments for one page": (
        f"paid {A} 10000 500 .\npaid {B} 10000 0 .\npage {A} {B} .\n",
        "paid 20 sat + 0.500 sat fees for 1 page",
    ),
    "a payment that is noted by two processes": (f"paid {A} 10000 0 .\npaid {A} 10000 0 .\npage {A} .\n", "paid 10 sat for 1 page"),
    "tokens alone": (f"page {A} .\n+\n+\n", ""),
    "a payment that failed": (f"sent {A} 10000 .\ndead {A} .\n", ""),
    "payments without a page": (
        f"paid {A} 10000 0 .\npaid {B} 5000 0 .\n",
        "paid 15 sat; 2 payments of 15 sat brought no page yet: the token is kept, and the next call uses it",
    ),
    "a charge that the server has taken for an error": (
        f"paid {A} 10000 0 .\nlost {A} .\npaid {B} 5000 0 .\npage {B} .\n",
        "paid 15 sat for 1 page; 1 payment of 10 sat brought no page, and the server won't take it again: the next call pays anew",
    ),
    "payments whose end isn't known": (
        f"sent {A} 10000 .\nsent {B} 5000 .\nsent {C} 1000 .\npaid {C} 1000 0 .\npage {C} .\n",
        "paid 1 sat for 1 page; 2 payments of 15 sat aren't finished, the node may still pay: run the program again, and nothing "
        "is paid twice; or run routeweiler-sync payments recover",
    ),
    "notes that were cut short": (f"paid {A} 10000 0 .\npage {A} .\npaid {B} 50\npage {C[:9]}", "paid 10 sat for 1 page"),
    "a note that was cut short in front of another": (
        f"sent {B} 50sent {A} 10000 .\npaid .\npaid {C}paid {C} 7 .\npaid {A} 10000 0 .\npage {A} .\n",
        "paid 10 sat for 1 page",
    ),
    "what is no note": ("\nhello\npaid\n. .\n\x00\n", ""),
}


@pytest.mark.parametrize("what", NOTES)
def test_notes_come_to_a_bill(tmp_path: Path, what: str) -> None:
    """A bill that says more or less than was paid sends its reader looking for a fault in the ledger."""
    notes, text = NOTES[what]
    (tmp_path / "bill").write_text(notes)
    assert bill.read(str(tmp_path / "bill")).text == text


def test_without_a_file_nothing_was_paid(tmp_path: Path) -> None:
    """The file is made by the first note."""
    assert bill.read(str(tmp_path / "bill")) == Bill()
    assert Bill().text == ""


def test_pages_of_many_tokens_are_noted_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that buys a million pages must not keep a million hashes in memory."""
    monkeypatch.setattr(run_bill, "files", [str(tmp_path / "bill")])
    monkeypatch.setattr(run_bill, "MAX_NOTED", 3)
    monkeypatch.setattr(run_bill, "_noted", set())
    for number in [*range(10), *range(10)]:
        run_bill.note_page([f"{number:064x}"])
        assert len(run_bill._noted) <= 3
    assert bill.read(str(tmp_path / "bill")).token_pages == 20


def test_a_note_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk for temporary files may be full, or gone: the payment matters more."""
    monkeypatch.setattr(run_bill, "files", [str(tmp_path / "none" / "bill")])
    run_bill.note_page([A])
    bill.present(str(tmp_path / "none" / "bill"))


def test_a_variable_that_no_run_has_set_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program would fail at its import of requests, because of its bill."""
    monkeypatch.setattr(run_bill, "files", [])
    run_bill.set_from("nonsense\n1 /tmp/a b\n")
    assert run_bill.files == ["/tmp/a b"]


def test_a_note_that_a_full_disk_cut_short_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bill would be missing, and its file would stay."""
    path = tmp_path / "bill"
    path.write_text(f"paid {A} 10000 0 .\nsent {B}")
    monkeypatch.setattr(run_bill, "files", [str(path)])
    monkeypatch.setattr(run_bill, "_noted", set())
    run_bill.note_page([A])
    assert bill.read(str(path)).text == "paid 10 sat for 1 page"
    path.write_text(f"paid {A} 10000 0 .\npaid {C}paid {B} 5000 0 .\n")
    bill.present(str(path))
    assert not path.exists()
