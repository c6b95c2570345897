"""README.md tells no lies: its pictures show what comes out, and its recipe finds what it is for.

`tests/docs` runs its other blocks. ``python docs/pictures.py`` makes the pictures anew.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routeweiler_sync.cli.demo import SIX_LINES
from tests.support.cli_process import TIMEOUT_S, bare_environ

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")

#: How long the lines that need no node may take, twice, on a machine with much else to do.
PASTED_S_MAX = 60
#: What a picture may weigh.
PICTURE_BYTES_MAX = 60_000
LINES_MAX = 155


def block(mark: str) -> str:
    """The fenced block that follows ``<!-- mark -->``."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```\n", README, re.DOTALL)
    assert found is not None, f"README.md has no block {mark!r}"
    return found[1]


def test_six_lines_pay_without_a_node(tmp_path: Path) -> None:
    """Who pastes them into an empty folder wouldn't get a page, or would find the test's payments in his own ledger."""
    program = block("first")
    assert [line for line in program.splitlines() if line] == SIX_LINES.splitlines(), "the demo shows the same ones"
    environ = bare_environ(ROUTEWEILER_LEDGER=str(tmp_path / "mine.db"), HOME=str(tmp_path / "home"))
    begun = time.monotonic()
    for _ in range(2):  # it may be pasted again
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("paid content\n Payment(")
        assert "amount_msat=10000" in done.stdout
    assert time.monotonic() - begun < PASTED_S_MAX
    assert {path.name for path in tmp_path.iterdir()} <= {"first.db", "first.db-wal", "first.db-shm", "first.db.lock"}


def test_the_recipe_tests_a_script(tmp_path: Path) -> None:
    """The question that everybody has before a script may pay; the recipe would pass with a script that doesn't stop."""
    recipe = block("recipe")
    assert len(recipe.splitlines()) <= 12
    (tmp_path / "test_recipe.py").write_text(recipe, "utf-8")
    alone = bare_environ(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "routeweiler_sync.testing.pytest_plugin", "-p", "no:cacheprovider", "."]
    for after, code in {"": 0, "\n        if number == 2: break": 1}.items():
        script = f"def main(session, url):\n    for number in range(50):\n        session.get(url + f'/page/{{number}}'){after}\n"
        (tmp_path / "my_script.py").write_text(script, "utf-8")
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S)
        assert done.returncode == code, done.stdout


@pytest.mark.slow
def test_the_picture_of_the_demo_shows_what_the_demo_prints() -> None:
    """A picture of another time shows what isn't there."""
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    svg = (ROOT / "docs" / "images" / "demo.svg").read_text("utf-8")
    printed = [line.strip() for line in pictures["demo"]().splitlines()]
    assert pictures["text_of"](svg).splitlines() == printed, "python docs/pictures.py demo"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\b|127\.0\.0\.1:8081/)", svg), "a picture fetches nothing"


def test_pictures_are_there_small_and_described() -> None:
    """A page that shows a broken picture, or one of a megabyte, or says nothing to who can't see it."""
    shown = dict(re.findall(r"!\[(.+)\]\((docs/images/[\w.]+)\)", README))
    assert set(shown.values()) == {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "images").iterdir()}
    assert all(len(text) > 40 for text in shown)
    assert all((ROOT / path).stat().st_size < PICTURE_BYTES_MAX for path in shown.values())


def test_the_readme_is_read_in_five_minutes() -> None:
    """What is long is read by nobody. The rest is in docs."""
    assert len(README.splitlines()) <= LINES_MAX


@pytest.mark.parametrize("command_line", ["demo", "tests"])
def test_the_set_up_is_one_line_each(command_line: str) -> None:
    """What CI runs from the README, and newcomers copy, is one command."""
    assert len(block(f"command: {command_line}").splitlines()) == 1
