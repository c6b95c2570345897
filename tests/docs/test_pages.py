"""Every code block of README and docs does what the page says."""

from __future__ import annotations

import configparser
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli_process import bare_environ

from .pages import DATA, REASONS, ROOT, RUN, SHOWN, Block, blocks, pages

PAGE_S_MAX = 500
ALL = {page: blocks(page) for page in pages()}
EVERY = [block for page in ALL.values() for block in page]
RUN_HERE = [page for page, found in ALL.items() if any(block.runs for block in found)]

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_HERE)
def test_its_blocks_run_and_print_what_it_shows(page: str, tmp_path: Path) -> None:
    """The first thing that anybody does with a page is to copy from it."""
    command = [sys.executable, "-m", "tests.docs.runner", page]
    done = subprocess.run(command, cwd=tmp_path, env=bare_environ(), capture_output=True, encoding="utf-8", timeout=PAGE_S_MAX)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in EVERY if block.language in DATA], ids=str)
def test_data_can_be_read(block: Block) -> None:
    """Whoever copies a settings file with a mistake gets an error that the page doesn't explain."""
    if block.language == "json":
        json.loads(block.code)
    elif block.language == "ini":
        configparser.ConfigParser().read_string(block.code)
    elif block.language == "sql":
        assert sqlite3.complete_statement(block.code)
    elif block.language == "yaml":
        pytest.importorskip("yaml").safe_load(block.code)
    elif sys.version_info >= (3, 11):
        import tomllib

        tomllib.loads(block.code)


def test_each_block_has_a_language_that_is_run_or_known() -> None:
    """A block without a language, or with a misspelt one, would be run by nobody."""
    assert [f"{block}: {block.language!r}" for block in EVERY if block.language not in (*RUN, *DATA, *SHOWN, "setup")] == []


def test_what_is_not_run_has_a_reason_and_stays_little() -> None:
    """Else the marks would become the way to silence a block that is wrong."""
    counts = Counter(reason for block in EVERY if (reason := block.mark("not run")) is not None)
    assert {reason: count for reason, count in counts.items() if count > REASONS.get(reason, 0)} == {}


def test_what_others_run_is_run_by_them() -> None:
    """Else a block would be run by nobody after that test has gone."""
    for block in EVERY:
        if (test := block.mark("run by")) is not None:
            text = (ROOT / test).read_text("utf-8")
            names = [Path(block.page).name, *(mark.rpartition(" ")[2] for mark in block.marks)]
            assert any(name in text for name in names if "/" not in name), f"{test} says nothing of {block}"
