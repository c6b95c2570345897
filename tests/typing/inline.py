"""A program that uses what only a `requests` with types of its own, 2.34 and later, types in full."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import routeweiler_sync as requests
from routeweiler_sync import Routeweiler
from routeweiler_sync.cookies import cookiejar_from_dict
from routeweiler_sync.hooks import default_hooks, dispatch_hook
from routeweiler_sync.sessions import merge_hooks, merge_setting

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        return value


class Careful(Routeweiler):
    """Steps into what `requests` does between hops."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        super().rebuild_auth(prepared_request, response)

    def rebuild_method(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        super().rebuild_method(prepared_request, response)


class Direct(requests.adapters.HTTPAdapter):
    """As an adapter is written against the types of today."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        return super().send(request, stream, timeout, verify, cert, None)


class DirectAndPaying(requests.PaywallAdapter):
    """The same with payments."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        return super().send(request, stream, timeout, verify, cert, None)


def hook(response: requests.Response, *args: Any, **kwargs: Any) -> requests.Response:
    return response


def main(url: str) -> None:
    with Careful(funding=()) as session:
        session.mount(url, Direct(max_retries=1))
        session.mount(url + "/redirect", DirectAndPaying(pool_block=True))
        answer = session.get(url + "/redirect", hooks={"response": hook})
    assert_type(answer.content, bytes)
    assert requests.utils.dict_from_cookiejar(answer.cookies) == {}
    jar = cookiejar_from_dict({"a": "1"})
    assert_type(jar, requests.cookies.RequestsCookieJar)
    assert jar.get("a") == "1"
    assert requests.utils.get_encoding_from_headers(answer.headers) == "utf-8"
    assert dispatch_hook("response", default_hooks(), answer) is answer
    assert merge_setting(1, None) == 1
    assert merge_hooks({"response": [hook]}, default_hooks()) == {"response": [hook]}


if __name__ == "__main__":
    main(sys.argv[1])
