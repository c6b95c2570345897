"""A program that takes names from each module of `requests`, by this package's name."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import requests as theirs
import requests.certs

import routeweiler_sync
import routeweiler_sync.adapters
import routeweiler_sync.certs
import routeweiler_sync.exceptions as exceptions
import routeweiler_sync.sessions
from routeweiler_sync import PaidResponse, Payment, api, packages, sessions, utils
from routeweiler_sync.adapters import BaseAdapter, HTTPAdapter
from routeweiler_sync.api import delete, get, head, options, patch, post, put, request
from routeweiler_sync.auth import AuthBase, HTTPBasicAuth, HTTPDigestAuth, HTTPProxyAuth, _basic_auth_str  # pyright: ignore[reportPrivateUsage]
from routeweiler_sync.compat import builtin_str
from routeweiler_sync.cookies import RequestsCookieJar
from routeweiler_sync.errors import BudgetExceededError, RouteweilerError
from routeweiler_sync.exceptions import ConnectionError, HTTPError, RequestException, Timeout
from routeweiler_sync.help import info
from routeweiler_sync.hooks import HOOKS
from routeweiler_sync.models import PreparedRequest, Request, Response
from routeweiler_sync.sessions import Session, SessionRedirectMixin, session
from routeweiler_sync.status_codes import codes
from routeweiler_sync.structures import CaseInsensitiveDict, LookupDict
from routeweiler_sync.utils import default_headers, get_netrc_auth, parse_header_links, requote_uri

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        return value


class Timed(HTTPAdapter):
    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        return super().send(request, stream, timeout or 30, verify, cert, proxies)


def fetch(url: str, by: theirs.Session) -> theirs.Response:
    """One that knows only of `requests`."""
    by.mount("http://", Timed())
    return by.get(url)


def main(url: str) -> None:
    try:
        response = get(url + "/json", timeout=30)
    except Timeout:
        raise
    except (ConnectionError, HTTPError, RequestException):
        raise
    assert_type(response, PaidResponse)
    assert_type(response.payment, Payment | None)
    assert_type(fetch(url + "/json", Session()), Response)
    assert_type(session(), sessions.Session)
    assert_type(Session().request("GET", url + "/json"), theirs.Response)
    for verb in (delete, get, head, options, patch, post, put):
        assert verb(url + "/json").ok
    assert request("GET", url + "/json").status_code == codes.ok
    assert api.get is get
    assert routeweiler_sync.sessions.Session is Session
    assert routeweiler_sync.adapters.HTTPAdapter is HTTPAdapter
    assert issubclass(HTTPAdapter, BaseAdapter)
    assert issubclass(Session, SessionRedirectMixin)
    assert issubclass(HTTPBasicAuth, AuthBase)
    assert issubclass(HTTPDigestAuth, AuthBase)
    assert issubclass(HTTPProxyAuth, HTTPBasicAuth)
    assert issubclass(BudgetExceededError, RouteweilerError)
    assert issubclass(RouteweilerError, RequestException)
    assert issubclass(exceptions.Timeout, theirs.exceptions.RequestException)
    assert builtin_str is str
    assert len(RequestsCookieJar()) == 0
    headers: CaseInsensitiveDict[str] = CaseInsensitiveDict({"A": "1"})
    assert headers["a"] == "1"
    assert isinstance(codes, LookupDict)
    assert default_headers()["User-Agent"] == utils.default_user_agent()
    assert get_netrc_auth("http://localhost.invalid") is None
    assert requote_uri("http://localhost/a b") == "http://localhost/a%20b"
    assert parse_header_links("<http://localhost/a>; rel=next")[0]["rel"] == "next"
    assert _basic_auth_str("user", "secret").startswith("Basic ")
    assert HOOKS == ["response"]
    assert Request("GET", url).prepare().method == "GET"
    packages.urllib3.disable_warnings()
    assert routeweiler_sync.certs is requests.certs
    assert info()["platform"]


if __name__ == "__main__":
    main(sys.argv[1])
