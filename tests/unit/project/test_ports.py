"""Nothing that only POSIX has is used without a way for Windows. What runs as on Windows: `component/test_other_systems.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pretend_windows import NO_MODULES, NO_NAMES

PACKAGE = Path(__file__).parents[3] / "routeweiler_sync"
#: A condition that contains one of these asks which system this is.
_ASKS = ("os.name", "sys.platform", "hasattr(")
#: Who expects one of these expects the use to fail.
_EXCUSES = {"ImportError", "ModuleNotFoundError", "AttributeError", "Exception"}


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for what Windows lacks and is used without asking first.

    A use has asked if it is in an ``if``, ``and``, ``or`` or conditional expression whose condition asks, if a statement before it
    in the same function asks and leaves, or if it is in a ``try`` or ``suppress`` that expects it to fail.
    """
    modules = {module: module for module in NO_NAMES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update({alias.asname: alias.name for alias in node.names if alias.asname and alias.name in NO_NAMES})
    yield from _uses_in(tree, modules, asked=False)


def _uses_in(node: ast.AST, modules: dict[str, str], *, asked: bool) -> Iterator[tuple[int, str]]:
    if not asked:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] in NO_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.partition(".")[0] in NO_MODULES:
                yield node.lineno, node.module
            missing = NO_NAMES.get(node.module, frozenset())
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if alias.name in missing)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and node.attr in NO_NAMES[module]:
                yield node.lineno, f"{module}.{node.attr}"
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield from _uses_in(node.test, modules, asked=asked)
        asked = asked or _asks(node.test)
        rest = [child for child in ast.iter_child_nodes(node) if child is not node.test]
    elif isinstance(node, ast.Try):
        expects = any(_excuses(handler.type) for handler in node.handlers if handler.type)
        for statement in node.body:
            yield from _uses_in(statement, modules, asked=asked or expects)
        rest = [*node.handlers, *node.orelse, *node.finalbody]
    elif isinstance(node, ast.BoolOp):
        rest = []
        for value in node.values:
            yield from _uses_in(value, modules, asked=asked)
            asked = asked or _asks(value)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        rest = []
        for child in ast.iter_child_nodes(node):
            yield from _uses_in(child, modules, asked=asked)
            asked = asked or (
                isinstance(child, ast.If) and _asks(child.test) and isinstance(child.body[-1], (ast.Return, ast.Raise))
            )
    else:
        asked = asked or (isinstance(node, ast.With) and any(_excuses(item.context_expr) for item in node.items))
        rest = list(ast.iter_child_nodes(node))
    for child in rest:
        yield from _uses_in(child, modules, asked=asked)


def _excuses(node: ast.AST) -> bool:
    return any(isinstance(name, ast.Name) and name.id in _EXCUSES for name in ast.walk(node))


def _asks(condition: ast.expr) -> bool:
    text = ast.unparse(condition)
    return any(each in text for each in _ASKS)


def test_what_only_posix_has_is_asked_for_first() -> None:
    """On Windows the import would fail, or a call in the middle of a payment."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 150
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in files
        for line, name in uses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("from fcntl import flock", ["fcntl"]),
        ("import os\nos.fork()", ["os.fork"]),
        ("from os import getuid", ["os.getuid"]),
        ("import signal as signals\nsignals.SIGKILL", ["signal.SIGKILL"]),
        ("def f():\n import pwd", ["pwd"]),
        ("def f():\n os.kill(1, signal.SIGKILL)", ["signal.SIGKILL"]),
        ("def f():\n if quick: return\n os.getuid()", ["os.getuid"]),
        ("def f():\n os.getuid()\n if os.name == 'nt': return", ["os.getuid"]),
        ("try:\n import resource\nexcept OSError: pass", ["resource"]),
        ("os.geteuid() if os.getuid() else 0", ["os.geteuid", "os.getuid"]),
        ("try:\n import resource\nexcept ImportError: resource = None", []),
        ("with suppress(ImportError):\n import pwd", []),
        ("with suppress(OSError):\n import pwd", ["pwd"]),
        ("if sys.platform != 'win32':\n import fcntl", []),
        ("if hasattr(os, 'fork'):\n os.fork()", []),
        ("def f():\n if os.name == 'nt': return 1\n return os.getuid()", []),
        ("os.name == 'nt' or os.getuid()", []),
        ("os.getuid() or os.name == 'nt'", ["os.getuid"]),
        ("getattr(os, 'O_NOFOLLOW', 0)", []),
        ("from ._core.time import clock_gettime\nmine.fork()", []),
    ],
)
def test_it_finds_uses_and_knows_ways_to_ask(program: str, found: list[str]) -> None:
    """A linter that finds nothing would promise much."""
    assert sorted(name for _, name in uses(ast.parse(program))) == found
