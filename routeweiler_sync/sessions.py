"""`requests.sessions` under this package's name, with a `Session` that pays as the environment says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import requests.sessions

from ._core.module_alias import alias_module
from ._core.preload import prepare_session
from .settings import SETTINGS
from .transport.session import Routeweiler

if TYPE_CHECKING:  # the names of requests.sessions that one version or other of its types tells
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
    from requests.sessions import (  # type: ignore[attr-defined]  # its own imports, to some checkers
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
    """`Routeweiler`, configured by the environment: node, ``ROUTEWEILER_BUDGET``, ``ROUTEWEILER_LEDGER``, ``ROUTEWEILER_TRACE``.

    All sessions of a process share the connection to the node, the ledger with its tokens, and the trace. What is given by name, of
    Routeweiler's arguments, holds instead of what the environment says. Where the environment names no node, and none is given, it
    is a `requests.Session` that warns once where something has to be paid for. What is wrong with a variable is told by the error
    of the first call that would have to pay. Unpickled it takes its node from the environment of where it is then.
    """

    def __init__(self, **kwargs: Unpack[Settings]) -> None:
        others: dict[str, Any] = {**kwargs}  # of classes that come after ours
        given: Any = {name: others.pop(name) for name in SETTINGS & others.keys()}
        super(Routeweiler, self).__init__(**others)
        prepare_session()
        self._pays_by(self._payer_for(**given))

    @classmethod
    def _payer_for(cls, **given: Unpack[Settings]) -> Payer:
        from .config import environment

        return environment.payer(**given)


def session() -> Session:
    """A `Session`."""
    return Session()


alias_module(sys.modules[__name__], requests.sessions)
