"""`requests.sessions` under this package's name, with a `Session` that pays as the environment says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import requests.sessions

from .client import Routeweiler
from .forks import prepare_session
from .settings import SETTINGS
from .stand_in import stand_in

if TYPE_CHECKING:
    from requests.sessions import (
        SessionRedirectMixin as SessionRedirectMixin,
        merge_hooks as merge_hooks,
        merge_setting as merge_setting,
    )
    from typing_extensions import Unpack

    from .payer import Payer
    from .settings import Settings

    def __getattr__(name: str) -> Any: ...


class Session(Routeweiler):
    """`Routeweiler`, configured by the environment: node, ``ROUTEWEILER_BUDGET``, ``ROUTEWEILER_LEDGER``, ``ROUTEWEILER_TRACE``.

    All sessions of a process share the connection to the node, the ledger with its tokens, and the trace. What is given by name, of
    Routeweiler's arguments, holds instead of what the environment says. Where the environment names no node, and none is given, it
    is a `requests.Session` that warns once where something has to be paid for. What is wrong with a variable is told by the error
    of the first call that would have to pay. Unpickled it takes its node from the environment of where it is then.
    """

    def __init__(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in SETTINGS & kwargs.keys()}
        super(Routeweiler, self).__init__(**kwargs)
        prepare_session()
        self._pays_by(self._payer_for(**given))

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        from . import environment

        return environment.payer(**given)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._payer.environmental:
            from . import environment

            self._payer.take_node_of(environment.payer())


def session() -> Session:
    """A `Session`."""
    return Session()


stand_in(sys.modules[__name__], requests.sessions)
