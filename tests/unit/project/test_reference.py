"""The reference pages say what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import routeweiler_sync
from routeweiler_sync import audit, errors, policy, testing, trace
from routeweiler_sync._core import env_vars
from routeweiler_sync.cli.outcome import Exit
from routeweiler_sync.doctor.surroundings import _BUNDLES
from routeweiler_sync.funding.lnd.route import PROXY_VARIABLES
from tests.unit.test_public_paths import PATHS

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "reference"
DRAW: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "draw_reference.py"))
#: By module, the names that it exports and that programs may use.
EXPORTED = {
    **PATHS,
    "audit": audit.__all__,
    "policy": policy.__all__,
    "testing": testing.__all__,
    "trace": trace.__all__,
}


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading."""
    section = re.split(r"(?m)^## ", text.partition(f"## {heading}\n")[2])[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", DRAW["DRAWN"])
def test_a_page_is_drawn_from_the_code(name: str) -> None:
    """Else it tells of options that are gone, or keeps new ones to itself. ``python docs/draw_reference.py`` draws it."""
    assert DRAW["page"](name, page(name)) == page(name)


def test_each_exit_code_has_its_row() -> None:
    """A script that reads the code by the page would take a payment that is pending for an error."""
    told = [row[0] for row in rows("\n## All\n" + page("exit-codes.md").partition("\n## ")[0], "All")]
    assert told == ["exit code", *(str(int(each)) for each in Exit)]


def test_each_variable_is_told_of() -> None:
    """One that nobody knows of is set by accident, or never."""
    names: set[str] = set()
    for value in vars(env_vars).values():
        names |= {value} if isinstance(value, str) and re.fullmatch("[A-Z][A-Z_]+", value) else set()
    assert len(names) > 20
    text = page("environment.md")
    headings = ["What is spent, and where it is written", "Which wallet pays", "Set by `run`"]
    tables = [row for heading in headings for row in rows(text, heading)]
    told = {name for row in tables for name in re.findall(r"`([A-Z][A-Z_]+)`", row[0])}
    assert told == names
    others = {name for row in rows(text, "Of other programs") for name in re.findall(r"`(\w+)`", row[0])}
    assert {*PROXY_VARIABLES, *_BUNDLES} <= others
    written = {
        name
        for path in (ROOT / "routeweiler_sync").rglob("*.py")
        for name in re.findall(r"ROUTEWEILER_[A-Z_]+", path.read_text("utf-8"))
    }
    assert {name for name in written if not name.endswith("_")} - {"ROUTEWEILER_SYNC_COMPLETE"} <= names


def test_each_public_name_is_listed_and_documented() -> None:
    """A name that isn't there is one that the next version may take away without a word."""
    documented = {
        name
        for path in (PAGES / "api").glob("*.md")
        for name in re.findall(r"auto\w+:: routeweiler_sync\.([\w.]+)", path.read_text("utf-8"))
    }
    last = {name.rpartition(".")[2] for name in documented}
    own = {name for name in routeweiler_sync.__all__ if _is_own(getattr(routeweiler_sync, name))}
    assert own - last == set()
    listed = page("public.md")
    for module, names in EXPORTED.items():
        shown = module if f"`routeweiler_sync.{module}`" in listed else f".{module}"
        assert f"`routeweiler_sync.{module}`" in listed or f"`{shown}`" in listed, module
        if module != "errors":
            assert [name for name in names if f"`{name}`" not in listed] == [], module
        assert set(names) - last <= {"SETTINGS", "Unpayable", "PaywallLogic"}, module
    for name in documented:
        module, _, last_part = name.rpartition(".")
        assert hasattr(importlib.import_module(f"routeweiler_sync.{module}".rstrip(".")), last_part), name


def _is_own(value: object) -> bool:
    return getattr(value, "__module__", "").startswith("routeweiler_sync")


def test_each_error_says_what_to_do() -> None:
    """Whoever meets it is told what happened, and left alone with it."""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.RouteweilerError) and kind is not errors.RouteweilerError:
            assert "\nWhat to do: " in (inspect.getdoc(kind) or ""), name
            assert f"\n### {name}\n" in page("errors.md")


def test_docstrings_become_pages() -> None:
    """Names would stand there in quotes, examples as prose, and two sections in one paragraph."""
    converted = runpy.run_path(str(ROOT / "docs" / "_ext" / "docstrings.py"))["converted"]
    lines = [
        "Return a `Quote`, as `quote` does; of `Quote`s the first.",
        "",
        "    session.quote(url)",
        "",
        "Raises: LedgerError.",
        "Money: ``no``.",
    ]
    assert converted(lines, {"Quote": "routeweiler_sync.Quote", "LedgerError": "routeweiler_sync.LedgerError"}) == [
        "Return a :py:obj:`~routeweiler_sync.Quote`, as ``quote`` does; of :py:obj:`~routeweiler_sync.Quote`\\ s the first.",
        "",
        ".. code-block:: text",
        "",
        "    session.quote(url)",
        "",
        "**Raises:** :py:obj:`~routeweiler_sync.LedgerError`.",
        "",
        "**Money:** ``no``.",
    ]
