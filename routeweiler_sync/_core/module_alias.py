"""A module of ours in the place of one of requests': what is set in it is set there.

For tests that patch what `requests` works with (``requests.sessions.get_netrc_auth = …``): in a program that imports our names
they'd patch a name that nobody reads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class _AliasModule(ModuleType):
    _theirs: ModuleType
    #: The names that aren't ours, for good: mock takes one away and puts it back.
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
    """Have ``ours`` stand for ``theirs``: names that ``ours`` doesn't have by now are read, set and deleted in ``theirs``."""
    names = frozenset(name for name in vars(theirs) if name not in vars(ours) and not name.startswith("__"))
    public = sorted(name for name in {*vars(theirs), *vars(ours)} if not name.startswith("_"))
    vars(ours).update(_theirs=theirs, _names=names, __all__=public)
    ours.__class__ = _AliasModule
