"""Has `requests` pay from the moment it is imported, and not before: what a program imports, and in which order, stays its own.

(gevent, for one, must patch ssl before anybody imports it, and `requests` does.)
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing is imported by the program, if at all
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_REQUESTS, _OURS = "requests", "routeweiler_sync"
#: The folder that has the package: it may have been found by the folder it was started from, which isn't on the program's path.
_HOME = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))


class _Loader:
    """A module's loader, to which something is done when the module has been executed. Then it is gone without a trace."""

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
    """Finds `requests` and this package as the other finders do."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_REQUESTS, _OURS):
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target)) is not None), None)
        if spec is None and name == _OURS:
            spec = PathFinder.find_spec(name, [_HOME])
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


def _executed(module: ModuleType) -> None:
    if module.__name__ == _OURS:
        module.install()
    elif hasattr(module, "adapters") and hasattr(module, "Session"):  # else it is one of the program's own that has the name
        import routeweiler_sync  # noqa: F401 - which comes here, too


def begin() -> None:
    """Watch for `requests`."""
    sys.meta_path.insert(0, _Watch())
    for name in (_OURS, _REQUESTS):
        if name in sys.modules:  # a .pth file needed it
            _executed(sys.modules[name])
            break
