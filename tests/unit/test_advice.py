"""What the package's texts tell users to call and to run: each must work when it is copied."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import click
import pytest

import routeweiler_sync
from routeweiler_sync import Ledger, Routeweiler
from routeweiler_sync.cli import main

PACKAGE = Path(routeweiler_sync.__file__).parent
#: What stands in a text in place of a value that is put into it.
VALUE = " VALUE "
CALL = re.compile(r"(?<![\w.])((?:\w+\.)*(?:session|ledger|Ledger|Routeweiler|Session))\.(\w+)\(([^()]*)\)")
COMMAND = re.compile(r"routeweiler-sync((?: [a-z][a-z-]*)+)([^.;:,()]*)")
#: Words that follow a command's name in a sentence.
PROSE = {"prints", "then", "lists", "to", "and", "says", "with", "does", "is", "for", "shows", "books", "ends"}

#: Texts that begin like a command, and are none: the name of a thread.
NO_COMMANDS = {"routeweiler-sync price of bitcoin"}


def text_of(node: ast.AST) -> str | None:
    """The text that an expression makes; None if it makes none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or VALUE for part in node.values)
    return None


@lru_cache
def texts() -> list[tuple[str, str]]:
    """All texts in the package's code, each with its place. Docstrings aren't for users, but those of errors are shown to them."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node
        }
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            shown = file.name == "errors.py" or id(node) not in docs
            if id(node) not in inner and shown and (text := text_of(node)) is not None:
                found.append((f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}", text))
    return found


def calls() -> Iterator[tuple[str, str, str, str]]:
    for place, text in texts():
        for owner, method, arguments in CALL.findall(text):
            yield place, owner, method, arguments


def test_each_call_that_a_text_names_can_be_made() -> None:
    """``Ledger.thaw('team')`` is a TypeError about ``self``: the user is told to do what can't be done, while nothing is paid."""
    checked = []
    for place, owner, method, arguments in calls():
        call = f"{owner}.{method}({arguments})"
        where = f"{place}: {call}"
        if owner in ("Ledger", "Routeweiler", "Session"):
            kind = Ledger if owner == "Ledger" else Routeweiler
            assert isinstance(inspect.getattr_static(kind, method), classmethod), f"{where} is called on no object"
        else:
            assert owner in ("session", "session.ledger"), f"{where}: which object is that?"
            kind = Ledger if owner == "session.ledger" else Routeweiler
        function = inspect.getattr_static(kind, method)
        parsed = ast.parse(call.replace("…", "..."), mode="eval").body
        assert isinstance(parsed, ast.Call), where
        bound = inspect.signature(getattr(function, "__func__", function))
        try:
            bound.bind(None, *parsed.args, **{str(each.arg): None for each in parsed.keywords})
        except TypeError as error:
            pytest.fail(f"{where}: {error}")
        checked.append(method)
    assert {"thaw", "forget", "recover", "payments"} <= set(checked)


def test_each_command_that_a_text_names_is_there() -> None:
    """A command or an option that doesn't exist is worse than none."""
    checked = []
    for place, text in texts():
        for words, rest in COMMAND.findall(text if text not in NO_COMMANDS else ""):
            command: click.Command = main
            for word in words.split():
                if not isinstance(command, click.Group):
                    break
                if word in PROSE and command is not main:
                    break
                assert word in command.commands, f"{place}: routeweiler-sync{words} isn't a command, in {text!r}"
                command = command.commands[word]
                checked.append(word)
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
                assert option in known, f"{place}: routeweiler-sync{words} has no {option}, in {text!r}"
    assert {"thaw", "recover", "abandon", "doctor", "audit"} <= set(checked)
