"""Draw what the reference pages say of errors, exit codes, commands and the trace from the code, so that they can't differ from it.

python docs/draw_reference.py        writes it into the pages of docs/reference, between ``<!-- name -->`` and ``<!-- end -->``
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from routeweiler_sync import errors
from routeweiler_sync.cli import main
from routeweiler_sync.cli.outcome import exit_for

PAGES = Path(__file__).parent / "reference"
#: The JSON Schema of a trace event. It is written by hand: what it says of a field, the page says too.
SCHEMA = PAGES / "trace.schema.json"


def _tree() -> Iterator[type[errors.RouteweilerError]]:
    """Yield the classes of errors as errors.py has them: each after the class that it is derived from."""
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if kind is errors.RouteweilerError:
            yield from _below(kind)


def _below(kind: type[errors.RouteweilerError]) -> Iterator[type[errors.RouteweilerError]]:
    for each in (each for each in vars(errors).values() if inspect.isclass(each) and each.__base__ is kind):
        yield each
        yield from _below(each)


def _markdown(text: str) -> str:
    """Return a docstring's text as Markdown: the names in it are reStructuredText's, in two backquotes."""
    return text.replace("``", "`")


def error_table() -> str:
    """Return a table of all errors, and a section for each."""
    table = ["| error | `spent` | exit code | `code` |", "|---|---|---|---|"]
    sections = []
    for kind in _tree():
        depth = len([each for each in kind.__mro__ if issubclass(each, errors.RouteweilerError)]) - 2
        code = int(exit_for(kind("It."), paid=False))
        name = kind.__name__
        dots = "&nbsp;" * 4 * depth
        table.append(f"| {dots}[{name}](#{name.lower()}) | `{kind('').spent}` | {code} | `{kind.code}` |")
        happened, _, todo = _markdown(inspect.getdoc(kind) or "").partition("What to do: ")
        assert todo, f"{name}: its docstring doesn't say what to do"
        base = kind.__base__.__name__ if kind.__base__ is not None else ""
        paragraphs = [f"### {name}", happened.strip(), f"**What to do.** {todo.strip()}"]
        if base != "RouteweilerError":
            paragraphs.insert(2, f"It is a [{base}](#{base.lower()}).")
        sections.append("\n\n".join(paragraphs))
    return "\n".join(table) + "\n\n" + "\n\n".join(sections)


def exit_table() -> str:
    """Return the table of exit codes by error."""
    by_code: dict[int, list[str]] = {}
    for kind in _tree():
        by_code.setdefault(int(exit_for(kind("It."), paid=False)), []).append(
            f"[{kind.__name__}](errors.md#{kind.__name__.lower()})"
        )
    lines = ["| exit code | errors |", "|---|---|"]
    return "\n".join([*lines, *(f"| {code} | {', '.join(names)} |" for code, names in sorted(by_code.items()))])


def _commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*words, name))


def _value(parameter: click.Parameter) -> str:
    """Return how the value of a parameter is written in its place: the name that it was given, or what its type allows."""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    return (parameter.name if isinstance(parameter, click.Argument) else parameter.type.name).upper()


def _usage(words: tuple[str, ...], command: click.Command) -> str:
    parts = ["routeweiler-sync", *words, "[OPTIONS]"]
    for each in (each for each in command.params if isinstance(each, click.Argument)):
        name = f"{_value(each)}{'...' if each.nargs != 1 else ''}"
        parts.append(name if each.required else f"[{name}]")
    return " ".join([*parts, *(["COMMAND [ARGS]..."] if isinstance(command, click.Group) else [])])


def _prose(text: str) -> str:
    """Return a sentence of a help text as Markdown: options and names with an underscore are code, all else is as it is."""
    parts = re.split(r"(\w+_\w+(?:=\"\w+\")?|(?<![\w'-])--?[a-zA-Z][\w-]*)", " ".join(text.split()))
    return "".join(f"`{each}`" if at % 2 else re.sub(r"([*<>|])", r"\\\1", each) for at, each in enumerate(parts))


def _option(option: click.Option) -> str:
    """Return the row of an option."""
    names = [f"`{each}`" for each in (*option.opts, *option.secondary_opts)]
    value = "" if option.is_flag else " `" + _value(option).replace("|", "\\|") + "`"
    text = re.sub(r" +\[default: (.*)\]$", r" Default: \1.", option.help or "")
    said = [_prose(text)]
    if option.show_default and option.default not in (None, False) and not callable(option.default) and text == option.help:
        said.append(f"Default: {option.default}.")
    if option.multiple and not re.search("repeat|Several", text):
        said.append("May be repeated.")
    return f"| {', '.join(names)}{value} | {' '.join(said)} |"


def _help(command: click.Command) -> str:
    """Return what a command's help says. What its author has laid out by hand stays as it is laid out."""
    parts = []
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        if not block.startswith("\b\n"):
            parts.append(_prose(block))
            continue
        title, *lines = block.removeprefix("\b\n").split("\n")
        if title.endswith(":"):
            parts.append(f"{title}\n\n```text\n{inspect.cleandoc(chr(10).join(['', *lines]))}\n```")
        else:
            parts.append("\n".join(["```text", title, *lines, "```"]))
    return "\n\n".join(parts)


def commands() -> str:
    """Return a section for each command: how it is called, what its help says, and its options."""
    parts = []
    for words in _commands(main, ()):
        command: click.Command = main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        parts += [f"### {' '.join(words)}", f"```text\n{_usage(words, command)}\n```", _help(command)] if words else []
        options = [_option(each) for each in command.params if isinstance(each, click.Option) and not each.hidden]
        if words and options:
            parts.append("\n".join(["| option | what it does |", "|---|---|", *options]))
    return "\n\n".join(parts)


def _kind(field: dict[str, Any]) -> str:
    """Return how a field's values look, in words for a table."""
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(each)}`" for each in field["enum"])
    if "$ref" in field:
        return f"an object, [`{field['$ref'].rpartition('/')[2]}`](#{field['$ref'].rpartition('/')[2].lower()})"
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    return " or ".join("null" if each == "null" else each for each in kinds)


def trace_tables() -> str:
    """Return a table for each object of a trace event."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = []
    for name, part in {"event": schema, **schema["$defs"]}.items():
        lines = [f"### `{name}`", "", part["description"], "", "| field | value | what it says |", "|---|---|---|"]
        for field, said in part["properties"].items():
            always = "" if field in part["required"] else " (may be absent)"
            lines.append(f"| `{field}`{always} | {_kind(said)} | {said['description']} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


#: What is drawn: by page, the marks and what stands below them.
DRAWN: dict[str, dict[str, Callable[[], str]]] = {
    "errors.md": {"errors": error_table},
    "exit-codes.md": {"exits": exit_table},
    "command-line.md": {"commands": commands},
    "trace.md": {"fields": trace_tables},
}


def page(name: str, text: str) -> str:
    """Return ``text``, that of the page ``name``, with what stands between its marks drawn anew."""
    for mark, draw in DRAWN[name].items():
        drawn = draw()
        text, count = re.subn(
            rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m, new=drawn: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL
        )
        assert count == 1, f"{name} has no mark {mark}"
    return text


if __name__ == "__main__":
    for name in DRAWN:
        path = PAGES / name
        path.write_text(page(name, path.read_text(encoding="utf-8")), encoding="utf-8")
