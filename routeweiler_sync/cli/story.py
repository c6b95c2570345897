"""How the demo looks: scenes, steps, facts, checks and tables on a console, in colour or plain.

What is shown and checked is left to `demo`; this module prints it, and counts the checks and those that failed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_MAX = 100
_TIME, _NAME = 10, 13


class Story:
    """Prints the demo on ``console``, at most `WIDTH_MAX` columns wide.

    ``checked`` counts the calls of `check`; ``untrue`` holds the text of each check that failed.
    """

    def __init__(self, console: Console) -> None:
        console.width = min(console.width, WIDTH_MAX)
        self._console = console
        self.checked = 0
        self.untrue: list[str] = []

    def title(self, text: str, below: str) -> None:
        """Print the demo's title, and a text below it."""
        self._line((text, "bold"))
        self._wrapped(below, indent=0, style="dim")

    def scene(self, title: str, request: str) -> None:
        """Print the head of a new scene: its title, and the request that is made in it."""
        self._line()
        rule = ("-" if self._console.options.ascii_only else "─") * max(3, self._console.width - len(title) - 4)
        self._line(("── " if rule[0] == "─" else "-- ", "cyan"), (title, "bold cyan"), (" " + rule[:-1], "cyan"))
        self._line((" " * (_TIME + 2), ""), (request, ""))

    def step(self, at_s: float, title: str, style: str = "bold") -> None:
        """Print an event that happened ``at_s`` seconds after the request was made."""
        at = f"{at_s * 1000:.0f} ms" if at_s >= 0.001 else "<1 ms"
        self._line((f"{at:>{_TIME}}  ", "dim"), (title, style))

    def fact(self, name: str, value: object) -> None:
        """Print one observed value with its name."""
        lines = self._wrap(str(value), _TIME + 2 + _NAME)
        self._line((" " * (_TIME + 2), ""), (f"{name:<{_NAME}}", "dim"), (lines[0], ""))
        for line in lines[1:]:
            self._line((" " * (_TIME + 2 + _NAME) + line, ""))

    def check(self, holds: bool, text: str) -> None:
        """Print ``text``, a statement that must be true, marked ``ok`` or ``NO``, and count it."""
        self.checked += 1
        if not holds:
            self.untrue.append(text)
        lines = self._wrap(text, _TIME + 2 + 4)
        self._line((" " * (_TIME + 2), ""), ("ok  ", "green") if holds else ("NO  ", "bold red"), (lines[0], ""))
        for line in lines[1:]:
            self._line((" " * (_TIME + 2 + 4) + line, ""))

    def said(self, text: str) -> None:
        """Print a text word for word as a program would see it, an error's for instance."""
        self._wrapped(text, indent=_TIME + 2, style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table. A column whose name begins with ``>`` is right-aligned, for numbers."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for column in columns:
            table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self._line()
        self._line((title, "bold"))
        self._console.print(table)

    def gap(self) -> None:
        """Print an empty line."""
        self._line()

    def end(self, text: str, style: str) -> None:
        """Print the demo's last paragraph."""
        self._line()
        self._wrapped(text, indent=0, style=style)

    def _wrap(self, text: str, indent: int) -> list[str]:
        return textwrap.wrap(text, max(20, self._console.width - indent), break_on_hyphens=False) or [""]

    def _wrapped(self, text: str, *, indent: int, style: str) -> None:
        for line in self._wrap(text, indent):
            self._line((" " * indent + line, style))

    def _line(self, *parts: tuple[str, str]) -> None:
        self._console.print(Text.assemble(*parts), soft_wrap=True)
