"""The code blocks of the documentation, and how each is marked.

A mark is an HTML comment on the line above a block, so a reader of the page doesn't see it:

    <!-- not run: Docker -->        the block isn't run, for one of the reasons in `REASONS`
    <!-- run by: tests/x.py -->     that test runs it
    <!-- file: my_script.py -->     the block becomes this file, for the blocks below
    <!-- raises: NameError -->      the Python block ends with this error
    <!-- output -->                 the block is what the block above it prints
    <!-- setup
    lines of Python that run here, but aren't shown
    -->

Other marks are names by which tests and `.ci/run` find a block.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Why a block may be left out, and how many blocks at most are. One more is to be argued for here.
REASONS = {
    "a real node": 6,  # only the user's own lnd can do it
    "an install": 6,  # CI installs the package in other ways already; these would fetch it again
    "another service": 5,  # tor, a proxy, a database server that the page only names
    "a release": 3,  # tags, uploads, and what CI itself is
    "Docker": 2,
    "Windows or macOS": 2,
}
#: Languages that are run, read as data, or only shown.
RUN = ("python", "pycon", "console", "sh")
DATA = ("json", "toml", "ini", "yaml", "sql")
SHOWN = ("text", "mermaid", "dockerfile", "powershell", "diff", "http")

_COMMENT = re.compile(r"\s*<!--\s*(.*?)\s*-->\s*")
_FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*([^`\s]*)[^`]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, or the hidden lines of a set-up, whose language is ``setup``."""

    page: str
    line: int
    language: str
    code: str
    marks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def mark(self, name: str) -> str | None:
        """Return what follows ``name:`` in one of the marks, or an empty text for the bare name. None: there is no such mark."""
        for mark in self.marks:
            if mark == name:
                return ""
            if mark.startswith(f"{name}:"):
                return mark.removeprefix(f"{name}:").strip()
        return None

    @property
    def runs(self) -> bool:
        """Whether `tests.docs.runner` does something with it."""
        if self.mark("not run") is not None or self.mark("run by") is not None:
            return False
        return self.language in (*RUN, "setup") or self.mark("file") is not None or self.mark("output") is not None


def pages() -> list[str]:
    """Return the paths of all pages, relative to the repository."""
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "examples/README.md")]
    found = [path for path in tops if path.exists()]
    found += sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in order. MyST's directives (``{toctree}``) aren't among them."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    found: list[Block] = []
    marks: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        comment, fence = _COMMENT.fullmatch(line), _FENCE.fullmatch(line)
        if comment is not None:
            marks.append(comment[1])
        elif line.strip() == "<!-- setup":
            end = lines.index("-->", number)
            found.append(Block(page, number + 1, "setup", "\n".join(lines[number:end]) + "\n"))
            number = end + 1
        elif fence is not None:
            indent, ticks, language = fence[1], fence[2], fence[3]
            end = next(at for at in range(number, len(lines)) if lines[at].strip() == ticks)
            code = "\n".join(each.removeprefix(indent) for each in lines[number:end]) + "\n"
            if not language.startswith("{"):
                found.append(Block(page, number + 1, language, code, tuple(marks)))
            number, marks = end + 1, []
        elif line.strip():
            marks = []
    return found
