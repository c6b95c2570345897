"""Makes `requests` pay as soon as the program imports it, and imports nothing earlier than the program does.

The order of imports matters: gevent, for instance, must patch ssl before anything imports ssl, and `requests` imports it.
What paying means is left to `routeweiler_sync.patching`.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # not from typing: only the program decides whether that is imported
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_REQUESTS, _PACKAGE, _LIMIT, _BILL = "requests", "routeweiler_sync", "ROUTEWEILER_RUN_LIMIT", "ROUTEWEILER_RUN_BILL"
#: The folder that contains the package. It may not be on the program's path: ``python -m`` finds a package in the current folder.
_HOME = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))


class _Loader:
    """Wraps a module's loader, to call `_executed` after the module has run. The module itself refers to the real loader only."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _executed(module)


class _Watch:
    """A finder that finds `requests` and this package as the other finders do, but with a `_Loader`."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_REQUESTS, _PACKAGE):
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target)) is not None), None)
        if spec is None and name == _PACKAGE:
            spec = PathFinder.find_spec(name, [_HOME])
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


def _executed(module: ModuleType) -> None:
    """Make `requests` pay, now that ``module`` (`requests` or this package) has run."""
    if module.__name__ == _PACKAGE:
        if os.environ.get(_LIMIT):
            from routeweiler_sync.payments import command_limit

            command_limit.set_from(os.environ[_LIMIT])  # first: whatever pays, the limit holds
        if os.environ.get(_BILL):
            _begin_bill(os.environ[_BILL])
        module.install()
    elif hasattr(module, "adapters") and hasattr(module, "Session"):  # else a module of the program's own is named requests
        import routeweiler_sync  # noqa: F401 - its loader calls this function again, with the package


def _remove(pid: str, limit: str) -> None:
    """Remove the file with the sums of ``limit``, at the end of the program. Whatever is still running buys nothing more."""
    path = limit.partition(" ")[2]  # the number comes first
    if pid == str(os.getpid()) and os.path.exists(path):  # not in a forked child
        os.remove(path)


def _begin_bill(variable: str) -> None:
    """Note what this process pays, and show on a terminal that a payment takes long."""
    from routeweiler_sync.payments import bill, run_bill, slow_payments  # noqa: F401  (`bill`: the end may open no more files)

    run_bill.set_from(variable)
    slow_payments.listeners.append(_show)


def _show(text: str) -> None:
    """Write ``text`` to stderr if that is a terminal."""
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        sys.__stderr__.write(f"routeweiler-sync: {text}\n")
        sys.__stderr__.flush()


def _present(pid: str, path: str) -> None:
    """Present the bill, at the end of the program, if it has paid something."""
    if pid == str(os.getpid()) and os.path.exists(path):  # not in a forked child
        from routeweiler_sync.payments import bill

        bill.present(path)


def _at_exit(function: Callable[..., object], variable: str) -> None:
    """Register ``function`` for the end of the program, with each pid and path in ``variable`` that are this process's own.

    Done before the program begins, so that it is called after all that the program registers. The module `atexit` is forgotten
    again: a program finds only the modules that it imports itself.
    """
    for line in os.environ.get(variable, "").split("\n"):
        pid, _, rest = line.partition(" ")
        if pid == str(os.getpid()):  # the program itself, not an interpreter that it has started
            known = "atexit" in sys.modules
            import atexit

            atexit.register(function, pid, rest)
            if not known:
                del sys.modules["atexit"]


def begin() -> None:
    """Wait for the import of `requests`. If it is imported already, make it pay at once."""
    _at_exit(_present, _BILL)
    _at_exit(_remove, _LIMIT)
    sys.meta_path.insert(0, _Watch())
    for name in (_PACKAGE, _REQUESTS):
        if name in sys.modules:  # imported by a .pth file
            _executed(sys.modules[name])
            break
