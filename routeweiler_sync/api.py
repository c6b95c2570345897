"""`requests.api` under this package's name. Its functions pay as the environment says, each through a `sessions.Session`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import requests.api
from requests import Response

from . import sessions
from ._core.module_alias import alias_module
from .transport.response import function_as

_Verb = TypeVar("_Verb", bound=Callable[..., Response])


def _called_as(theirs: _Verb) -> Callable[[Callable[..., Response]], _Verb]:
    """Give a function the signature of ``theirs`` for type checkers: it takes what the installed `requests` takes."""
    return lambda ours: cast("_Verb", ours)


@_called_as(requests.api.request)
def request(method: str, url: str | bytes, **kwargs: Any) -> Response:
    """Send a request as `requests.request` does, through a new `Session`.

    Raises: what `Routeweiler.send` raises.
    Money: moves if the answer is a 402 that can be paid. This holds for all functions of this module.
    """
    with sessions.Session() as session:
        return session.request(method=method, url=url, **kwargs)


@function_as(requests.api.get)
def get(url: str | bytes, params: Any = None, **kwargs: Any) -> Response:
    """Send a GET request as `requests.get` does, through a new `Session`. May move money."""
    return request("get", url, params=params, **kwargs)


@function_as(requests.api.options)
def options(url: str | bytes, **kwargs: Any) -> Response:
    """Send an OPTIONS request as `requests.options` does, through a new `Session`. May move money."""
    return request("options", url, **kwargs)


@function_as(requests.api.head)
def head(url: str | bytes, **kwargs: Any) -> Response:
    """Send a HEAD request as `requests.head` does, through a new `Session`. May move money."""
    kwargs.setdefault("allow_redirects", False)
    return request("head", url, **kwargs)


@function_as(requests.api.post)
def post(url: str | bytes, data: Any = None, json: Any = None, **kwargs: Any) -> Response:
    """Send a POST request as `requests.post` does, through a new `Session`. May move money."""
    return request("post", url, data=data, json=json, **kwargs)


@function_as(requests.api.put)
def put(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """Send a PUT request as `requests.put` does, through a new `Session`. May move money."""
    return request("put", url, data=data, **kwargs)


@function_as(requests.api.patch)
def patch(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """Send a PATCH request as `requests.patch` does, through a new `Session`. May move money."""
    return request("patch", url, data=data, **kwargs)


@function_as(requests.api.delete)
def delete(url: str | bytes, **kwargs: Any) -> Response:
    """Send a DELETE request as `requests.delete` does, through a new `Session`. May move money."""
    return request("delete", url, **kwargs)


alias_module(sys.modules[__name__], requests.api)
