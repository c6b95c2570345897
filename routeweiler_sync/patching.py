"""``install()`` and ``uninstall()``: `requests` itself pays, for programs of which no line can be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests
import requests.sessions

from .config import environment
from .config.payer import Payer
from .sessions import Session
from .transport.session import combined_class

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings import Settings


class InstalledSession(Session):
    """What ``requests.Session`` is while installed: all of a process share what they pay with."""

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        if _payer is None:  # what is left of it after `uninstall` is one of `requests`
            return Payer(**given, idle=True)
        return super()._payer_for(**given) if given else _payer.twin()


_payer: Payer | None = None
#: What stood where ours stands now, and ours.
_replaced: tuple[type[requests.Session], type[requests.Session]] | None = None


def install(**settings: Unpack[Settings]) -> None:
    """From now on ``requests.get`` and its like pay, and so do the sessions that ``requests.Session()`` makes. May be called again.

    ``settings`` are Routeweiler's arguments; what isn't given is as the environment says. Sessions of other kinds pay that are
    made of classes derived from ``requests.Session`` from now on. What was bound to the old class before isn't reached:
    ``from requests import Session`` in a module that was imported earlier, classes that were derived from it, and sessions that
    are there already (see `wrap`). Raises ValueError for arguments that can't be; then nothing has changed.
    """
    global _payer, _replaced
    _payer = environment.made(**settings)
    current = requests.sessions.Session
    if not issubclass(current, InstalledSession):
        ours = combined_class(InstalledSession, current)
        _replaced = (current, ours)
        _put(current, ours)


def uninstall() -> None:
    """`requests` is as it was before `install`. Sessions that were made meanwhile go on paying."""
    global _payer, _replaced
    if _replaced is not None:
        was, ours = _replaced
        _put(ours, was)
        _replaced = None
    if _payer is not None:
        _payer.close()
        _payer = None


def _put(old: type[requests.Session], new: type[requests.Session]) -> None:
    for module in (requests, requests.sessions):
        if vars(module)["Session"] is old:  # else somebody has put a third one there, and that one stays
            vars(module)["Session"] = new
