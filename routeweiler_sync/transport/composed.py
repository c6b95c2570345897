"""Classes of a session that pays and is of another kind besides: what that kind does is done below, unchanged."""

from __future__ import annotations

from typing import Any

import requests

from .session import Routeweiler

_made: dict[tuple[type, type], type[Routeweiler]] = {}


def composed(paying: type[Routeweiler], kind: type[requests.Session]) -> type[Routeweiler]:
    """A class that is a ``paying`` one and a ``kind`` too; ``paying`` itself where that is one already. Its objects pickle."""
    if issubclass(paying, kind):
        return paying
    made = _made.get((paying, kind))
    if made is None:
        name, parts = f"{paying.__name__}{kind.__name__}", (paying, kind)
        made = type(name, parts, {"__reduce_ex__": _reduce, "__doc__": kind.__doc__, "_parts": parts})
        made = _made.setdefault(parts, made)
    return made


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _blank, self._parts, self.__getstate__()


def _blank(paying: type[Routeweiler], kind: type[requests.Session]) -> Routeweiler:
    cls = composed(paying, kind)
    return cls.__new__(cls)
