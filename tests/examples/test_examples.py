"""The programs of `examples/` run as they stand, and print what they say that they print."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.cli_process import TIMEOUT_S, bare_environ

EXAMPLES = Path(__file__).parents[2] / "examples"
REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_COMPAT") == "1"
#: What the others import; it does nothing by itself.
SHARED = "world"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != SHARED)
#: The libraries that an example needs besides.
NEEDS = {"cached_scraper": "requests_cache", "flask_app": "flask", "pandas_rain": "pandas"}
#: A short program. Longer ones are read by nobody.
LINES_MAX = 110


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, where no wallet is named, and where the user's own ledger would be seen."""
    environ = bare_environ(HOME=str(folder / "home"), ROUTEWEILER_LEDGER=str(folder / "mine.db"), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environ, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
    )


def test_every_example_is_in_the_list() -> None:
    """One that isn't listed is found by nobody; one that is listed and gone misleads."""
    text = (EXAMPLES / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", text, re.MULTILINE)
    assert sorted(listed) == sorted([*(f"{name}.py" for name in PROGRAMS), "notebook.ipynb", "test_suite/test_diary.py"])
    assert len(listed) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path) -> None:
    """Whoever runs an example would see an error, or something else than its text promises; or find its payments in his ledger."""
    if name in NEEDS and not REQUIRED:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} isn't installed: pip install 'routeweiler-sync[examples]'")
    elif name in NEEDS:
        importlib.import_module(NEEDS[name])
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    said = re.search(r"[Ii]t prints:\n\n(.*)\Z", ast.get_docstring(ast.parse(text)) or "", re.DOTALL)
    assert said is not None, "the docstring ends with what the program prints"
    done = run(str(EXAMPLES / f"{name}.py"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == textwrap.dedent(said[1]).splitlines()
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [], "an example leaves nothing behind"


@pytest.mark.slow
def test_the_example_of_a_test_suite_passes_and_can_fail(tmp_path: Path) -> None:
    """It is copied as a beginning. It would pass with a program that ignores its limit."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(tmp_path), "-c", os.devnull)
    copied = tmp_path / "copied"
    shutil.copytree(EXAMPLES / "test_suite", copied)
    done = run(*command, str(copied), folder=tmp_path)
    assert (done.returncode, done.stdout.count(" passed")) == (0, 1), done.stdout
    program = copied / "diary.py"
    program.write_text(program.read_text("utf-8").replace("SATS_MAX = 100", "SATS_MAX = 1000"), "utf-8")
    done = run(*command, "-k", "100_sat", str(copied), folder=tmp_path)
    assert done.returncode == 1, "the limit isn't 100 sat any more"
    assert "1 failed" in done.stdout
