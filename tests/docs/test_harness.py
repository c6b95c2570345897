"""What runs the pages notices what is wrong in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_process import bare_environ

from .compare import difference
from .pages import ROOT, blocks

PAGE = """\
# A page

<!-- setup
import pathlib
pathlib.Path("seen.txt").write_text("by the set-up\\n")
-->

<!-- file: program.py -->
```python
print(open("seen.txt").read(), end="")
```

```console
$ export NAME=value
$ python program.py && echo $NAME
by the set-up
value
$ false
$ echo $?
1
```

```python
import os
import requests

answer = requests.get("https://example.com/weather")
print(answer.status_code, os.environ["NAME"])
```

<!-- output -->
```text
402 value
```

<!-- not run: Docker -->
```sh
exit 1
```

- In a list:

  ```pycon
  >>> answer.status_code
  402
  ```

<!-- raises: ZeroDivisionError -->
```python
1 / 0
```
"""


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("paid 10 sat", "paid 10 sat\n"),
        ("at http://127.0.0.1:4711 in 12 ms", "at http://127.0.0.1:80 in 7.5 ms"),
        ("paid … sat\n", "paid 10 sat"),
        ("first\n...\nlast", "first\na\nb\nlast\n"),
        ("first\n...\nlast", "first\nlast\n"),
        ("a   b", "a b"),
        ("2026-01-02T03:04:05Z 3c4264b1155bf649…", "2030-12-24T00:00:00Z 00112233445566ff…"),
        ("", ""),
    ],
)
def test_what_varies_may_differ(page: str, printed: str) -> None:
    """Else pages would need placeholders for every time and port."""
    assert difference(page, printed) is None


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("paid 10 sat", "paid 11 sat"),
        ("paid … sat", "paid 10 msat"),
        ("paid … sat", "paid 10\nsat"),
        ("first\n...\nlast", "first\na\n"),
        ("a", "a\nb"),
        ("a\nb", "a"),
        ("", "a"),
    ],
)
def test_what_a_page_shows_must_be_what_is_printed(page: str, printed: str) -> None:
    """A comparison that lets anything pass would keep outputs of long ago."""
    assert difference(page, printed) is not None


def run(page: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.md").write_text(page, "utf-8")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environ = bare_environ(HOME=str(folder), PYTHONPATH=str(ROOT), PATH="/usr/bin:/bin", **variables)
    command = [sys.executable, "-m", "tests.docs.runner", str(folder / "page.md")]
    return subprocess.run(command, cwd=work, env=environ, capture_output=True, encoding="utf-8", timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("", "", ""),
        ("value\n$ false", "another\n$ false", "page.md:14"),
        ("402 value", "200 value", "page.md:33"),
        ("  402\n", "  200\n", "page.md:44"),
        ("1 / 0", "1 / 1", "page.md:50"),
        ('print(open("seen.txt")', 'print(open("unseen.txt")', "page.md:14"),
    ],
)
def test_a_page_fails_where_it_is_wrong(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    """Else all pages would pass, whatever they say."""
    done = run(PAGE.replace(right, wrong) if right else PAGE, tmp_path)
    assert done.returncode == (1 if right else 0), done.stderr
    assert told in done.stderr


@pytest.mark.slow
def test_a_page_touches_nothing_of_whoever_runs_it(tmp_path: Path) -> None:
    """A page run by hand would write into the ledger that its author pays from, or pay from the author's own wallet."""
    page = """
```console
$ routeweiler-sync get https://example.com/page/1 > page.txt 2>&1; echo "$ROUTEWEILER_BUDGET$LNBITS_ADMIN_KEY$ROUTEWEILER_LEDGER."
.
```

```python
from pathlib import Path
print(Path("page.txt").exists(), len(list(Path.home().rglob("*.db"))))
```

<!-- output -->
```text
True 1
```
"""
    done = run(
        page,
        tmp_path,
        ROUTEWEILER_BUDGET="default: per_day=1",
        ROUTEWEILER_WALLET="lnbits",
        LNBITS_ADMIN_KEY="ab" * 16,
        ROUTEWEILER_LEDGER=str(tmp_path / "mine.db"),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["page.md", "work"]


def test_blocks_are_found_with_their_marks() -> None:
    """A block that isn't seen isn't run."""
    found = blocks("docs/contributing/pages.md")
    assert [(block.language, block.mark("not run")) for block in found] == [("sh", "an install")]
