"""`requests.sessions` under this package's name, with a `Session` that pays as the environment says.

What the environment says is left to `config.environment`, paying to `transport.session`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import requests.sessions

from ._core.module_alias import alias_module
from ._core.preload import prepare_session
from .settings import SETTINGS
from .transport.session import Routeweiler

if TYPE_CHECKING:  # the names of requests.sessions that any version of its type stubs lists
    from collections import OrderedDict as OrderedDict

    from requests.adapters import HTTPAdapter as HTTPAdapter
    from requests.cookies import (
        RequestsCookieJar as RequestsCookieJar,
        cookiejar_from_dict as cookiejar_from_dict,
        extract_cookies_to_jar as extract_cookies_to_jar,
        merge_cookies as merge_cookies,
    )
    from requests.exceptions import (
        ChunkedEncodingError as ChunkedEncodingError,
        ContentDecodingError as ContentDecodingError,
        InvalidSchema as InvalidSchema,
        TooManyRedirects as TooManyRedirects,
    )
    from requests.hooks import default_hooks as default_hooks, dispatch_hook as dispatch_hook
    from requests.models import (
        DEFAULT_REDIRECT_LIMIT as DEFAULT_REDIRECT_LIMIT,
        REDIRECT_STATI as REDIRECT_STATI,
        PreparedRequest as PreparedRequest,
        Request as Request,
        Response as Response,
    )
    from requests.sessions import (  # type: ignore[attr-defined]  # to some checkers these aren't exported
        SessionRedirectMixin as SessionRedirectMixin,
        cookielib as cookielib,
        merge_hooks as merge_hooks,
        merge_setting as merge_setting,
        preferred_clock as preferred_clock,
        to_native_string as to_native_string,
    )
    from requests.status_codes import codes as codes
    from requests.structures import CaseInsensitiveDict as CaseInsensitiveDict
    from requests.utils import (
        default_headers as default_headers,
        get_auth_from_url as get_auth_from_url,
        get_environ_proxies as get_environ_proxies,
        get_netrc_auth as get_netrc_auth,
        requote_uri as requote_uri,
        should_bypass_proxies as should_bypass_proxies,
        to_key_val_list as to_key_val_list,
    )
    from typing_extensions import Unpack

    from .config.payer import Payer
    from .settings import Settings


class Session(Routeweiler):
    """A `Routeweiler` configured by the environment: node, ``ROUTEWEILER_BUDGET``, ``ROUTEWEILER_LEDGER``, ``ROUTEWEILER_TRACE``.

    All sessions of a process share the connection to the node, the ledger with its tokens, and the trace. An argument of
    Routeweiler's that is given takes the place of what the environment says. If no node is named or given, the session is a plain
    `requests.Session`, with one warning when a server first asks for a payment. A variable that can't be used is reported by the
    first call that would have to pay. An unpickled session takes its node from the environment of the unpickling process.

    Raises: ValueError for an argument that can't be used.
    Money: none moves here. Calls may pay.
    """

    def __init__(self, **kwargs: Unpack[Settings]) -> None:
        others: dict[str, Any] = {**kwargs}  # in the end those of classes after Routeweiler in the MRO
        given: Any = {name: others.pop(name) for name in SETTINGS & others.keys()}
        super(Routeweiler, self).__init__(**others)
        prepare_session()
        self._pays_by(self._payer_for(**given))

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        from .config import environment

        return environment.payer(**given)


def session() -> Session:
    """Return a new `Session`, as `requests.session` does."""
    return Session()


alias_module(sys.modules[__name__], requests.sessions)
