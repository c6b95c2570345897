"""How the demo looks: scenes, steps, facts, checks, tables and code on a console, wide or narrow, in colour or plain.

What is shown and checked is left to `demo`; this module prints it, and counts the checks and those that failed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_MAX = 100
#: With fewer columns, texts aren't indented so far, and a name and its value don't share columns.
WIDE_MIN = 64
_WRAPPED_MIN = 20


class Story:
    """Prints the demo on ``console``, at most `WIDTH_MAX` columns wide.

    ``checked`` counts the calls of `check`; ``untrue`` holds the text of each check that failed. ``between`` is called before each
    line: it may raise what ends the story.
    """

    def __init__(self, console: Console, between: Callable[[], object] = lambda: None) -> None:
        console.width = min(console.width, WIDTH_MAX)
        self._console = console
        self._between = between
        self._wide = console.width >= WIDE_MIN
        #: The columns for a time, and for the name of a fact; where the text of a scene begins.
        self._time, self._name, self._indent = (10, 13, 12) if self._wide else (7, 0, 2)
        self.checked = 0
        self.untrue: list[str] = []

    def title(self, text: str, below: str) -> None:
        """Print the demo's title, and a text below it."""
        self._line((text, "bold"))
        self._wrapped(below, indent=0, style="dim")

    def scene(self, title: str, request: str = "") -> None:
        """Print the head of a new scene: its title, and the request that is made in it."""
        dash = "-" if self._console.options.ascii_only else "─"
        self._line()
        width = self._console.width - 1  # in the last column, some terminals begin a new line
        rest = width - len(title) - 4
        if rest >= 0:
            self._line((f"{dash}{dash} ", "cyan"), (title, "bold cyan"), (" " + dash * rest, "cyan"))
        else:
            self._line((dash * width, "cyan"))
            self._wrapped(title, indent=0, style="bold cyan")
        if request:
            self._wrapped(request, indent=self._indent, style="")

    def step(self, at_s: float, title: str, style: str = "bold") -> None:
        """Print an event that happened ``at_s`` seconds after the request was made."""
        at = f"{at_s * 1000:.0f} ms" if at_s >= 0.001 else "<1 ms"
        lines = self._wrap(title, self._time + 2)
        self._line((f"{at:>{self._time}}  ", "dim"), (lines[0], style))
        for line in lines[1:]:
            self._line((" " * (self._time + 2) + line, style))

    def fact(self, name: str, value: object) -> None:
        """Print one observed value with its name."""
        if self._wide:
            self._hanging((f"{name:<{self._name}}", "dim"), str(value))
        else:
            self._hanging((f"{name}: ", "dim"), str(value), hang=2)

    def check(self, holds: bool, text: str) -> None:
        """Print ``text``, a statement that must be true, marked ``ok`` or ``NO``, and count it."""
        self.checked += 1
        if not holds:
            self.untrue.append(text)
        self._hanging(("ok  ", "green") if holds else ("NO  ", "bold red"), text)

    def said(self, text: str) -> None:
        """Print a text word for word as a program would see it, an error's for instance."""
        self._wrapped(text, indent=self._indent, style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; where it doesn't fit, a block a row. A column whose name begins with ``>`` is aligned to the right."""
        names = [column.lstrip(">") for column in columns]
        cells = [[str(cell) for cell in row] for row in rows]
        self._line()
        self._line((title, "bold"))
        width = sum(max(len(row[at]) for row in [names, *cells]) for at in range(len(names))) + 3 * (len(names) - 1)
        if width > self._console.width:
            for row in cells:
                self._wrapped(row[0], indent=2, style="")
                for name, cell in zip(names[1:], row[1:], strict=True):
                    self._line((f"    {name}: ", "dim"), (cell, ""))
            return
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for name, column in zip(names, columns, strict=True):
            table.add_column(name, justify="right" if column.startswith(">") else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        self._between()
        self._console.print(table)

    def code(self, text: str) -> None:
        """Print lines of Python without an indent, to be copied. A line that is too long continues in the next, as in Python."""
        for line in text.splitlines():
            for part in continued(line, self._console.width):
                self._line((part, ""))

    def choices(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print commands to be typed, each with what it is good for."""
        width = max(len(command) for command, _ in pairs) + 2
        for command, purpose in pairs:
            if width + _WRAPPED_MIN <= self._console.width and self._wide:
                lines = self._wrap(purpose, width)
                self._line((f"{command:<{width}}", "bold"), (lines[0], ""))
                for line in lines[1:]:
                    self._line((" " * width + line, ""))
            else:
                self._line((command, "bold"))
                self._wrapped(purpose, indent=4, style="")

    def gap(self) -> None:
        """Print an empty line."""
        self._line()

    def paragraph(self, text: str, style: str = "") -> None:
        """Print a paragraph, with an empty line before it."""
        self._line()
        self._wrapped(text, indent=0, style=style)

    def _hanging(self, first: tuple[str, str], text: str, hang: int | None = None) -> None:
        """Print ``first``, and ``text`` beside it. Further lines of ``text`` are indented as its first, or by ``hang``."""
        beside = self._indent + len(first[0])
        further = beside if hang is None else self._indent + hang
        lines = textwrap.wrap(
            text,
            max(_WRAPPED_MIN, self._console.width - further),
            initial_indent=" " * (beside - further),
            break_on_hyphens=False,
        ) or [""]
        self._line((" " * self._indent, ""), first, (lines[0].lstrip(" ") if beside > further else lines[0], ""))
        for line in lines[1:]:
            self._line((" " * further + line, ""))

    def _wrap(self, text: str, indent: int) -> list[str]:
        return textwrap.wrap(text, max(_WRAPPED_MIN, self._console.width - indent), break_on_hyphens=False) or [""]

    def _wrapped(self, text: str, *, indent: int, style: str) -> None:
        for line in self._wrap(text, indent):
            self._line((" " * indent + line, style))

    def _line(self, *parts: tuple[str, str]) -> None:
        self._between()
        line = Text()
        for text, style in parts:
            line.append(text, self._console.get_style(style, default="") if style else None)
        self._console.print(line, soft_wrap=True)


def continued(line: str, width: int) -> Iterator[str]:
    """Yield a line of Python in parts of at most ``width`` columns, where it has places at which Python lets it be broken.

    It is broken inside brackets, or at a blank with a backslash; best after a comma. Brackets in strings aren't recognized.
    """
    indent, depth = len(line) - len(line.lstrip(" ")), 0
    while len(line) > width:
        #: Each place with its rank: after a comma, without a backslash, outside of inner brackets, far to the right.
        places: list[tuple[bool, bool, int, int]] = []
        inside = depth
        for at, char in enumerate(line[:width]):
            inside += (char in "([") - (char in ")]")
            if char in "([" and line[at + 1 :][:1] not in (")", "]"):
                places.append((False, True, -inside, at + 1))
            elif char == " " and line[:at].strip() and at + (0 if inside else 2) <= width:
                places.append((line[at - 1] == ",", inside > 0, -inside, at))
        if not places:
            break
        _, in_brackets, _, cut = max(places)
        yield line[:cut].rstrip(" ") + ("" if in_brackets else " \\")
        depth += sum((char in "([") - (char in ")]") for char in line[:cut])
        line = " " * (indent + 8) + line[cut:].lstrip(" ")
    yield line
