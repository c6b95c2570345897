"""How commands print lists and facts: for people on a terminal, for ``grep`` and ``awk`` in a pipe, or as JSON.

- `print_table` prints rows: on a terminal as a table, or one block a row if that is too narrow; elsewhere as aligned text.
- `print_facts` prints the properties of one thing, one a line.
- `print_line` prints a sentence, `print_unbroken` a line that is to be copied.
- `print_json` prints objects as a JSON list, the one form of ``--json`` for everything that is a list.

What is printed is up to the commands. Every cell, value and sentence goes through `outcome.printable` here, so that no text of a
server can command a terminal.

The form of aligned text is meant for programs, and stays: a first line of headings in capitals, without blanks in them; then one
line a row. Columns are separated by two blanks or more, and no cell has two in a row (``awk -F '  +'``). An empty cell is ``-``.
Nothing is cut off or broken, and no escape codes are written. Times are UTC, ``2026-11-29T10:00:00Z``. A terminal is what
``isatty`` says: FORCE_COLOR doesn't turn a pipe into one.
"""

from __future__ import annotations

import errno
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

import click

from .outcome import printable

if TYPE_CHECKING:
    from rich.console import Console

#: Rows rendered at a time. The widths of columns are those of the first page; a wider cell of a later one is printed whole as well.
PAGE_ROWS = 500
#: The least width of a column that folds. Where that doesn't fit, the terminal gets a block for each row. The date of a time fits.
FOLDED_WIDTH_MIN, TIME_WIDTH_MIN = 12, 10
#: The least room for a value beside its name. Where there is less, the value is printed below its name.
VALUE_WIDTH_MIN = 16
#: What an empty cell looks like.
EMPTY = "-"
_GAP = 2

T = TypeVar("T")


class Styled(NamedTuple):
    """A cell or value with a style of rich, for example ``bold red``. Only a terminal shows the style."""

    text: object
    style: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    ``number``: aligned to the right. ``folds``: the least width to which a terminal may narrow the column, breaking its cells over
    several lines; None if it may not. ``digits``: a terminal shows only so many characters, with dots after them: for payment
    hashes, of which the first digits are enough for every command. The heading of a number names the unit.
    """

    heading: str
    number: bool = False
    folds: int | None = None
    digits: int | None = None


def payment_columns(time: str, state: str) -> tuple[Column, ...]:
    """Return the columns of a list with a payment in each row. ``time`` and ``state`` are the headings of the first two."""
    return (
        Column(time, folds=TIME_WIDTH_MIN),
        Column(state),
        Column("sat", number=True),
        Column("fee sat", number=True),
        Column("payment hash", digits=12),
        Column("origin", folds=FOLDED_WIDTH_MIN),
        Column("scope", folds=FOLDED_WIDTH_MIN),
    )


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return _on_terminal(sys.stdout)


def console(*, err: bool = False) -> Console:
    """Return rich's console for stdout, or stderr. NO_COLOR, TERM and COLUMNS hold, as rich reads them.

    Without a terminal it writes no escape codes, whatever the environment says.
    """
    from rich.console import Console

    from .palette import THEME

    stream = sys.stderr if err else sys.stdout
    terminal = None if _on_terminal(stream) else False
    return Console(file=stream, theme=THEME, highlight=False, markup=False, emoji=False, force_terminal=terminal)


def print_json(objects: Iterable[Mapping[str, Any]]) -> None:
    """Print ``objects`` as a JSON list, one object a line. They are printed as they come, and may be many."""
    between = "[\n"
    for page in _pages(objects):
        _write(between + ",\n".join(json.dumps(each) for each in page))
        between = ",\n"
    _write("[]\n" if between == "[\n" else "\n]\n")


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table of ``rows``, each with a cell for each column. ``empty`` is the sentence that is printed if there are none."""
    pages = _pages(rows)
    first = next(pages, None)
    if first is None:
        print_line(empty)
    elif is_terminal():
        _print_rich(columns, chain([first], pages), first)
    else:
        _print_plain(columns, chain([first], pages), first)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names with their values. A value may be a sequence of lines; an empty one and None are left out."""
    shown = [(name, lines) for name, value in facts if (lines := _lines(value, zone=" UTC"))]
    width = max((len(name) for name, _ in shown), default=0) + _GAP
    if not is_terminal():
        _write("".join(f"{name:<{width}}{printable(text)}\n" for name, lines in shown for text, _ in lines))
        return
    out = console()
    for name, lines in shown:
        _print_fact(out, name, width, lines)


def print_line(text: object, style: str = "", *, err: bool = False) -> None:
    """Print a sentence: on a terminal in a style of rich, broken between words; elsewhere on one line."""
    stream = sys.stderr if err else sys.stdout
    if not _on_terminal(stream):
        _write(printable(text) + "\n", err=err)
        return
    from rich.text import Text

    out = console(err=err)
    for line in _wrapped(printable(text), out.width):
        out.print(Text(line, style), soft_wrap=True)


def time_text(time: datetime) -> str:
    """Return a time as aligned text and JSON write it: in UTC, to the second."""
    return f"{time.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def print_unbroken(text: str) -> None:
    """Print a line that is to be copied or run, such as a command, as it is, whatever the terminal's width."""
    _write(text + "\n")


# Text for programs


def _print_plain(columns: Sequence[Column], pages: Iterable[Sequence[Sequence[object]]], first: Sequence[Sequence[object]]) -> None:
    headings = [column.heading.upper().replace(" ", "_") for column in columns]
    widths = _widths([headings, *([_one_line(cell) for cell in row] for row in first)])
    _write(_plain_line(columns, headings, widths))
    for page in pages:
        _write("".join(_plain_line(columns, [_one_line(cell) for cell in row], widths) for row in page))


def _plain_line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    padded = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        blanks = " " * max(0, width - cell_len(cell))
        padded.append(blanks + cell if column.number else cell + blanks)
    return (" " * _GAP).join(padded).rstrip() + "\n"


def _one_line(cell: object) -> str:
    """Return a cell as a text without two blanks in a row, and never empty."""
    if isinstance(cell, datetime):
        return time_text(cell)
    lines = _lines(cell)
    return " ".join(", ".join(printable(text) for text, _ in lines).split()) or EMPTY


# Text for people


def _print_rich(columns: Sequence[Column], pages: Iterable[Sequence[Sequence[object]]], first: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    dots = "..." if out.options.ascii_only else "…"
    headings = [max(column.heading.split(), key=len) for column in columns]  # rich breaks headings between words
    natural = _widths([headings, *([_natural(c, cell, dots) for c, cell in zip(columns, row, strict=True)] for row in first)])
    widths = _folded(columns, natural, out.width)
    if sum(widths) + _GAP * (len(columns) - 1) > out.width:
        _print_blocks(out, columns, chain.from_iterable(pages))
        return
    for at, page in enumerate(pages):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="dim")
        table.show_header = at == 0
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column.heading, width=width, overflow="fold", justify="right" if column.number else "left")
        for row in page:
            cells = []
            for column, cell in zip(columns, row, strict=True):
                lines = _lines(cell) or [Styled(EMPTY, "dim")]
                texts = [Text(_cut(column, printable(text), dots), style) for text, style in lines]
                cells.append(Text("\n").join(texts))
            table.add_row(*cells)
        out.print(table)


def _print_blocks(out: Console, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    width = max(len(column.heading) for column in columns) + _GAP
    for at, row in enumerate(rows):
        if at:
            out.print()
        for column, cell in zip(columns, row, strict=True):
            _print_fact(out, column.heading, width, _lines(cell) or [Styled(EMPTY, "dim")])


def _print_fact(out: Console, name: str, width: int, lines: Sequence[Styled]) -> None:
    """Print a name and its value, broken at the terminal's width; below the name if there is no room beside it."""
    from rich.text import Text

    beside = out.width - width >= VALUE_WIDTH_MIN
    indent = width if beside else _GAP
    broken = [(piece, style) for text, style in lines for piece in _wrapped(printable(text), out.width - indent)]
    if not beside:
        out.print(Text(name, "dim"), soft_wrap=True)
    for at, (piece, style) in enumerate(broken):
        margin = f"{name:<{width}}" if beside and at == 0 else " " * indent
        out.print(Text.assemble((margin, "dim"), (piece, style)), soft_wrap=True)


def _folded(columns: Sequence[Column], widths: Sequence[int], available: int) -> list[int]:
    """Return ``widths``, with the columns that fold made narrower where the table is wider than ``available``; the widest first."""
    widths = list(widths)
    over = sum(widths) + _GAP * (len(widths) - 1) - available
    while over > 0:
        wide = [at for at, column in enumerate(columns) if column.folds is not None and widths[at] > column.folds]
        if not wide:
            break
        widths[max(wide, key=lambda at: widths[at])] -= 1
        over -= 1
    return widths


def _natural(column: Column, cell: object, dots: str) -> str:
    """Return the longest line of a cell, as a terminal shows it."""
    return max((_cut(column, printable(text), dots) for text, _ in _lines(cell)), key=len, default=EMPTY)


def _cut(column: Column, text: str, dots: str) -> str:
    return text if column.digits is None or len(text) <= column.digits else text[: column.digits] + dots


def _wrapped(text: str, width: int) -> list[str]:
    """Return ``text`` broken between words; a word that is longer than the line, such as a hash, is broken too."""
    return textwrap.wrap(text, max(1, width), break_on_hyphens=False) or [""]


# Both


def _lines(value: object, *, zone: str = "Z") -> list[Styled]:
    """Return the lines of a cell or value: none for None, an empty text or an empty sequence. ``zone`` is put behind a time."""
    if value is None or value == "":
        return []
    if isinstance(value, Styled):
        return [value]
    if isinstance(value, datetime):
        return [Styled(f"{value.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}{zone}", "")]
    if isinstance(value, (list, tuple)):
        return [line for each in value for line in _lines(each, zone=zone)]
    return [Styled(value, "")]


def _on_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # None: Python was started with the stream closed


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while page := list(islice(iterator, PAGE_ROWS)):
        yield page


def _write(text: str, *, err: bool = False) -> None:
    """Write to stdout, or stderr, at once.

    Raises: BrokenPipeError if nobody reads it any more, which click ends quietly; click.ClickException if it can't be written.
    """
    try:
        click.echo(text, nl=False, err=err)
    except OSError as error:
        if error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL):  # Windows' word for it
            raise BrokenPipeError(errno.EPIPE, "broken pipe") from error
        raise click.ClickException(f"The output can't be written: {error.strerror or error}.") from None
