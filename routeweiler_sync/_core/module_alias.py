"""Make a module of this package stand for one of `requests`: a name that is set in the one is set in the other.

It is for tests that patch what `requests` works with, such as ``requests.sessions.get_netrc_auth = …``. In a program that runs
``import routeweiler_sync as requests`` such a test sets the name in this package's module, where nothing would read it. Which names
pay, and so stay in this package's module, is left to `api` and `sessions`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class _AliasModule(ModuleType):
    #: The module of `requests`.
    _theirs: ModuleType
    #: The names that are read, set and deleted there. Fixed once: `mock.patch` deletes a name for a while and sets it again.
    _names: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *dir(self._theirs)})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._names:
            setattr(self._theirs, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._names:
            delattr(self._theirs, name)
        else:
            super().__delattr__(name)


def alias_module(ours: ModuleType, theirs: ModuleType) -> None:
    """Make ``ours`` stand for ``theirs``: names that ``ours`` doesn't have by now are read, set and deleted in ``theirs``."""
    names = frozenset(name for name in vars(theirs) if name not in vars(ours) and not name.startswith("__"))
    public = sorted(name for name in {*vars(theirs), *vars(ours)} if not name.startswith("_"))
    vars(ours).update(_theirs=theirs, _names=names, __all__=public)
    ours.__class__ = _AliasModule
