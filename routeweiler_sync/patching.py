"""``install()`` and ``uninstall()`` make the sessions of `requests` itself pay, for programs of which no line can be changed.

What such a session pays with is left to `config.environment`, paying to `transport.session`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import requests
import requests.sessions

from ._core.display import facts_table
from ._core.money import sats
from .config import environment
from .config.payer import Payer
from .sessions import Session
from .transport.session import combined_class

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .ledger.spending import Spending
    from .settings import Settings


class InstalledSession(Session):
    """The class that ``requests.Session`` is while installed. All its sessions share the payer of the newest `Installation`."""

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        if not _installations:  # after `uninstall` a class that is still bound somewhere makes plain sessions
            return Payer(**given, idle=True)
        return super()._payer_for(**given) if given else _installations[-1]._payer.twin()

    _environment_payer_for = _payer_for


class Installation(AbstractContextManager["Installation"]):
    """What `install` has put in place. As a context manager it is undone at the end of the block. Made by `install`."""

    def __init__(self, payer: Payer) -> None:
        self._payer = payer
        self._entered = False

    @property
    def spent_msat(self) -> int:
        """What the sessions that this installation made have paid so far, routing fees included, in msat."""
        return self._payer.tally.spent_msat

    def spending(self) -> Spending:
        """Return what the sessions that this installation made have paid so far. See `Routeweiler.spending`."""
        return self._payer.tally.spending()

    def __enter__(self) -> Installation:
        if self._entered or self not in _installations:
            raise RuntimeError("this installation was used for a block, or undone, already. Call install() again for another.")
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        if self in _installations:  # else `uninstall` was called in the block
            _installations.remove(self)
            self._payer.close()
            _put_in_place()

    def __repr__(self) -> str:
        state = "in force" if _installations[-1:] == [self] else "not in force" if self in _installations else "undone"
        return f"<Installation of routeweiler_sync in requests: {state}, {sats(self._payer.tally.known_msat)} spent>"

    def _repr_html_(self) -> str:
        return facts_table("routeweiler_sync in requests", [("spent", sats(self._payer.tally.known_msat))])


#: What was installed and not undone yet, the newest last. That one is in force.
_installations: list[Installation] = []
#: The class that `install` has replaced, and the class that it has put in its place.
_replaced: tuple[type[requests.Session], type[requests.Session]] | None = None


def install(**settings: Unpack[Settings]) -> Installation:
    """Make ``requests.get`` and the other verbs pay from now on, and all sessions that ``requests.Session()`` makes.

    ``settings`` are Routeweiler's arguments; a setting that isn't given is as the environment says. A second call changes the
    settings. Sessions of classes that are derived from ``requests.Session`` from now on pay too. What was bound to the old class
    before isn't reached: ``from requests import Session`` in a module that was imported earlier, classes derived earlier, and
    sessions that exist already (see `wrap`).

    It holds until `uninstall`, or, with a ``with``, until the end of the block, which puts back what was there before, an earlier
    ``install()`` too:

        with install(ledger="ledger.db") as installed:
            requests.get(url)
        print(installed.spent_msat)

    Raises: ValueError for an argument that can't be used; then nothing has changed.
    Money: none moves here. Calls of `requests` may pay.
    """
    installation = Installation(environment.made(**settings))
    # Of the installations without a block, the last may get one only now, or come back after a block of the new one. Those before
    # it have been replaced for good.
    while len(_installations) > 1 and not _installations[-1]._entered and not _installations[-2]._entered:
        del _installations[-2]
    _installations.append(installation)
    _put_in_place()
    return installation


def uninstall() -> None:
    """Put `requests` back as it was before the first `install`. Sessions that were made in between go on paying."""
    undone = _installations[::-1]
    _installations.clear()
    _put_in_place()
    for installation in undone:
        installation._payer.close()


def _put_in_place() -> None:
    """Make ``requests.Session`` pay if anything is installed; else put back the class that was there."""
    global _replaced
    current: type[requests.Session] = requests.sessions.Session
    if _installations and not issubclass(current, InstalledSession):
        paying = combined_class(InstalledSession, current)
        _replaced = (current, paying)
        _put(current, paying)
    elif not _installations and _replaced is not None:
        original, installed = _replaced
        _put(installed, original)
        _replaced = None


def _put(old: type[requests.Session], new: type[requests.Session]) -> None:
    for module in (requests, requests.sessions):
        if vars(module)["Session"] is old:  # another library may have put a third class there: that one stays
            vars(module)["Session"] = new
