"""Docstrings as reStructuredText: they are written to be read in an editor, with few marks.

A name in single backquotes becomes a link if the reference has that name, else code. An indented block becomes code. ``Raises:``,
``Money:`` and ``What to do:`` stand out.
"""

from __future__ import annotations

import re
from enum import EnumMeta
from pathlib import Path
from typing import Any

#: A name in single backquotes, or the name of an error, which is often written without them.
_NAME = re.compile(r"(?<![`:])`([^`\n]+)`(?![`_])|(?<![\w.`])(\w+Error)(?![\w`])")
_HEAD = re.compile(r"^(\s*)(Raises|Money|What to do|Returns|Yields):(?=\s|$)")
_DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|py:class):: (?:routeweiler_sync\.)?([\w.]+)", re.MULTILINE)
#: Classes whose objects a program gets, and doesn't make.
_MADE_ELSEWHERE = {f"routeweiler_sync.{name}" for name in ("Ledger", "testing.PaidRequests")}


def known(folder: Path) -> dict[str, str]:
    """Return the full names of the objects that the pages in ``folder`` document, by their last part."""
    names = [name for page in sorted(folder.glob("*.md")) for name in _DIRECTIVE.findall(page.read_text("utf-8"))]
    return {name.rpartition(".")[2]: f"routeweiler_sync.{name}" for name in names}


def converted(lines: list[str], names: dict[str, str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText. ``names`` are those that can be linked to."""

    def linked(found: re.Match[str]) -> str:
        name = (found[1] or found[2]).rstrip("()")
        ends = "\\ " if found.string[found.end() : found.end() + 1].isalnum() else ""  # as in `WalletAnswer`s
        if name in names:
            return f":py:obj:`~{names[name]}`{ends}"
        return f"``{found[1]}``{ends}" if found[1] else found[2]

    done: list[str] = []
    is_code = False
    for line in lines:
        is_indented = line.startswith("    ") and not line.lstrip().startswith((">>>", "...", "- ", "* "))
        if not is_code and is_indented and (not done or not done[-1].strip()):
            done += [".. code-block:: text", ""]
            is_code = True
        elif is_code and line.strip() and not line.startswith("    "):
            is_code = False
        if not is_code and _HEAD.match(line) and done and done[-1].strip():
            done.append("")
        if not is_code:
            parts = _HEAD.sub(r"\1**\2:**", line).split("``")  # every other part is code
            parts[::2] = [_NAME.sub(linked, each) for each in parts[::2]]
            line = "``".join(parts)
        done.append(line)
    return done


def _process(app: Any, what: str, name: str, subject: object, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines, app.config.docstring_names)


def _signature(
    app: Any, what: str, name: str, subject: object, options: Any, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave out the arguments of classes that programs don't call, and the ``repr`` of defaults, which Sphinx couldn't read."""
    is_kind = isinstance(subject, EnumMeta) or getattr(subject, "_is_protocol", False)
    if what == "class" and (is_kind or name in _MADE_ELSEWHERE):
        return "", None
    if what == "exception" and not name.endswith(".RouteweilerError"):  # all have its arguments
        return "", None
    arguments = (arguments or "").replace("<the safe default>", "Default.ENVELOPE")
    return re.sub(r"<(?:[^<>]|<[^<>]*>)+>", "...", arguments) or None, returns


def _read_names(app: Any, config: Any) -> None:
    config.docstring_names = known(Path(app.srcdir) / "reference" / "api")


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("docstring_names", {}, "env")
    app.connect("config-inited", _read_names)
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
