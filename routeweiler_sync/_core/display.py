"""How values show themselves: texts of one line for ``repr``, and tables in HTML for notebooks (``_repr_html_``).

Everything in a table is escaped, and what servers or programs wrote is searched for secrets. Which facts of a value are shown is
left to its class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

from .secret_text import without_secrets

#: A longer text is cut.
TEXT_CHARS_MAX = 300
#: How many hex digits of a payment hash a text of one line shows.
HASH_CHARS = 16
#: A table shows at most this many rows, and says how many there are besides.
ROWS_MAX = 50

#: A cell that is flushed right: an amount or a number.
_NUMBER = re.compile(r"-?[0-9][0-9 .,]*(?: (?:sat|msat|usd|eur|gbp|jpy|cent|¢))?\Z")

_LIGHT = "--rw-text:#1f2328;--rw-back:#ffffff;--rw-dim:#59636e;--rw-line:#d1d9e0;--rw-head:#f6f8fa;color-scheme:light"
_DARK = "--rw-text:#e6edf3;--rw-back:#161b22;--rw-dim:#9198a1;--rw-line:#3d444d;--rw-head:#21262d;color-scheme:dark"
#: The page's own theme wins over the preference of the system: JupyterLab and Notebook 7 (data-jp-theme-light), VS Code
#: (vscode-light, vscode-dark), Colab (theme), Sphinx and others (data-theme).
_STYLE = (
    f".routeweiler{{{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{.routeweiler{{{_DARK}}}}}"
    "[data-jp-theme-light=true] .routeweiler,body.vscode-light .routeweiler,html[theme=light] .routeweiler,"
    f"[data-theme=light] .routeweiler{{{_LIGHT}}}"
    "[data-jp-theme-light=false] .routeweiler,body.vscode-dark .routeweiler,html[theme=dark] .routeweiler,"
    f"[data-theme=dark] .routeweiler{{{_DARK}}}"
    ".routeweiler{display:inline-block;max-width:100%;overflow-x:auto;color:var(--rw-text);background:var(--rw-back);"
    "border:1px solid var(--rw-line);border-radius:6px;font:13px/1.45 system-ui,sans-serif}"
    ".routeweiler table{border-collapse:collapse;margin:0;border:0;color:inherit;background:transparent;font:inherit}"
    ".routeweiler caption{caption-side:top;text-align:left;padding:6px 10px;font-weight:600;color:inherit;white-space:nowrap}"
    ".routeweiler tr,.routeweiler tr:nth-child(n),.routeweiler tr:hover{background:transparent}"
    ".routeweiler th,.routeweiler td{padding:3px 10px;border:0;border-top:1px solid var(--rw-line);text-align:left;"
    "vertical-align:top;max-width:44em;overflow-wrap:anywhere;white-space:normal;color:inherit}"
    ".routeweiler th{font-weight:500;color:var(--rw-dim);white-space:nowrap}"
    ".routeweiler thead th{background:var(--rw-head)}"
    ".routeweiler .rw-number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".routeweiler p{margin:0;padding:4px 10px;border-top:1px solid var(--rw-line);color:var(--rw-dim)}"
)


def line(text: object, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return ``text`` in one line, without control and format characters, cut to ``chars_max`` characters."""
    shown = str(text)
    if len(shown) > chars_max:
        shown = shown[:chars_max] + "…"
    return shown if shown.isprintable() else "".join(each if each.isprintable() else " " for each in shown)


def foreign(text: object, keep: Iterable[str] = ()) -> str:
    """Return ``text``, which a server or a program wrote, as `line` does, with a remark for what may be a secret."""
    return line(without_secrets(str(text), keep))


def short_hash(payment_hash: str) -> str:
    """Return the beginning of a payment hash, for a text of one line."""
    return f"{payment_hash[:HASH_CHARS]}…" if len(payment_hash) > HASH_CHARS else payment_hash


def counted(number: int, noun: str) -> str:
    """Return ``number`` with ``noun``, in the plural where that is due: ``2 calls``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def moment_text(moment: datetime | None) -> str:
    """Return a time as a text for people, in UTC; a dash for None."""
    return "–" if moment is None else f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def facts_table(title: object, facts: Iterable[tuple[str, object]], note: str = "") -> str:
    """Return a table of names and values in HTML."""
    return table(title, [[name, value] for name, value in facts], note=note)


def table(title: object, rows: Sequence[Sequence[object]], *, header: Sequence[str] = (), note: str = "") -> str:
    """Return a table in HTML, with its style. The first cell of each row names the row. Everything is escaped.

    Rows after the first `ROWS_MAX` are left out, and the table says how many they are. ``note`` goes below.
    """
    left_out = len(rows) - ROWS_MAX
    notes = [f"… and {left_out} more"] if left_out > 0 else []
    notes += [note] if note else []
    head = "".join(f"<th{_kind(_column(rows, at))}>{_escaped(name)}</th>" for at, name in enumerate(header))
    body = "".join(f"<tr>{''.join(_cells(row, flush=bool(header)))}</tr>" for row in rows[:ROWS_MAX])
    return (
        f'<div class="routeweiler"><style>{_STYLE}</style><table><caption>{_escaped(title)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if header else ''}<tbody>{body}</tbody></table>"
        f"{''.join(f'<p>{_escaped(each)}</p>' for each in notes)}</div>"
    )


def _column(rows: Sequence[Sequence[object]], at: int) -> object:
    return rows[0][at] if rows and at < len(rows[0]) else ""


def _cells(row: Sequence[object], *, flush: bool) -> Iterator[str]:
    """Yield the cells of a row. ``flush``: numbers are flushed right, since they stand below each other."""
    for at, cell in enumerate(row):
        tag = "th" if at == 0 else "td"
        yield f"<{tag}{_kind(cell) if flush else ''}>{_escaped(cell)}</{tag}>"


def _kind(cell: object) -> str:
    return ' class="rw-number"' if _NUMBER.match(str(cell)) else ""


def _escaped(text: object) -> str:
    import html  # here, because only a notebook needs it

    return html.escape(line(text, 2 * TEXT_CHARS_MAX))


class AsMapping:
    """Lets ``dict(value)`` and ``{**value}`` have the fields of a dataclass."""

    __slots__ = ()

    def keys(self) -> list[str]:
        """Return the names of the fields."""
        return [each.name for each in fields(self)]  # type: ignore[arg-type]

    #: With `__getitem__` alone it could be iterated over; and pandas takes what can be for a list of cells, not for a row.
    __iter__ = None

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)
