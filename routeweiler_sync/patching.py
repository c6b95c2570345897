"""``install()`` and ``uninstall()`` make the sessions of `requests` itself pay, for programs of which no line can be changed.

What such a session pays with is left to `config.environment`, paying to `transport.session`.
"""

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
    """The class that ``requests.Session`` is while installed. All its sessions share one payer."""

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        if _payer is None:  # after `uninstall` a class that is still bound somewhere makes plain sessions
            return Payer(**given, idle=True)
        return super()._payer_for(**given) if given else _payer.twin()

    _environment_payer_for = _payer_for


_payer: Payer | None = None
#: The class that `install` has replaced, and the class that it has put in its place.
_replaced: tuple[type[requests.Session], type[requests.Session]] | None = None


def install(**settings: Unpack[Settings]) -> None:
    """Make ``requests.get`` and the other verbs pay from now on, and all sessions that ``requests.Session()`` makes.

    ``settings`` are Routeweiler's arguments; a setting that isn't given is as the environment says. A second call changes the
    settings. Sessions of classes that are derived from ``requests.Session`` from now on pay too. What was bound to the old class
    before isn't reached: ``from requests import Session`` in a module that was imported earlier, classes derived earlier, and
    sessions that exist already (see `wrap`).

    Raises: ValueError for an argument that can't be used; then nothing has changed.
    Money: none moves here. Calls of `requests` may pay.
    """
    global _payer, _replaced
    _payer = environment.made(**settings)
    current = requests.sessions.Session
    if not issubclass(current, InstalledSession):
        paying = combined_class(InstalledSession, current)
        _replaced = (current, paying)
        _put(current, paying)


def uninstall() -> None:
    """Put `requests` back as it was before `install`. Sessions that were made in between go on paying."""
    global _payer, _replaced
    if _replaced is not None:
        original, paying = _replaced
        _put(paying, original)
        _replaced = None
    if _payer is not None:
        _payer.close()
        _payer = None


def _put(old: type[requests.Session], new: type[requests.Session]) -> None:
    for module in (requests, requests.sessions):
        if vars(module)["Session"] is old:  # another library may have put a third class there: that one stays
            vars(module)["Session"] = new
