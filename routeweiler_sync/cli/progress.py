"""The progress bar of a download: on stderr, if that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import requests

from . import tables
from .outcome import printable
from .output import ignore

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

#: The most characters of the file's name that are shown. Narrower terminals show fewer.
NAME_CHARS_MAX = 30
#: A terminal narrower than this gets no speed and no time.
WIDTH_FOR_ALL = 76


@contextlib.contextmanager
def progress_bar(name: str, response: requests.Response, *, done: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar for the download of ``response`` to the file ``name``, of which ``done`` bytes are there already.

    Yield a function that is called with the number of bytes of each part that is written. Without ``shown``, or a terminal that can
    draw, it does nothing.
    """
    console = tables.console(err=True)
    if not shown or not console.is_terminal or console.is_dumb_terminal:
        yield ignore
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn()]
    if console.width >= WIDTH_FOR_ALL:
        columns += [TransferSpeedColumn(), TimeRemainingColumn()]
    given = response.headers.get("Content-Length", "")
    total = done + int(given) if given.isascii() and given.isdigit() and len(given) < 19 else None
    label = printable(name)
    most = min(NAME_CHARS_MAX, max(console.width - 40, 4))
    label = label if len(label) <= most else "…" + label[1 - most :]
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda number: progress.advance(task, number)
        progress.update(task, total=progress.tasks[0].completed)  # without a length, the bar ends full as well
