"""`requests.api` under this package's name; its functions pay as the environment says (see `sessions.Session`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import requests.api
from requests import Response

from . import sessions
from ._core.module_alias import alias_module

_Verb = TypeVar("_Verb", bound=Callable[..., Response])


def _called_as(theirs: _Verb) -> Callable[[Callable[..., Response]], _Verb]:
    """For type checkers: what may be given to ours, and to those of the `requests` that is installed, is the same."""
    return lambda ours: cast("_Verb", ours)


@_called_as(requests.api.request)
def request(method: str, url: str | bytes, **kwargs: Any) -> Response:
    """`requests.request`, by a `Session`: may move money. Raises what `Routeweiler` raises."""
    with sessions.Session() as session:
        return session.request(method=method, url=url, **kwargs)


@_called_as(requests.api.get)
def get(url: str | bytes, params: Any = None, **kwargs: Any) -> Response:
    """`requests.get`, by a `Session`: may move money."""
    return request("get", url, params=params, **kwargs)


@_called_as(requests.api.options)
def options(url: str | bytes, **kwargs: Any) -> Response:
    """`requests.options`, by a `Session`: may move money."""
    return request("options", url, **kwargs)


@_called_as(requests.api.head)
def head(url: str | bytes, **kwargs: Any) -> Response:
    """`requests.head`, by a `Session`: may move money."""
    kwargs.setdefault("allow_redirects", False)
    return request("head", url, **kwargs)


@_called_as(requests.api.post)
def post(url: str | bytes, data: Any = None, json: Any = None, **kwargs: Any) -> Response:
    """`requests.post`, by a `Session`: may move money."""
    return request("post", url, data=data, json=json, **kwargs)


@_called_as(requests.api.put)
def put(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """`requests.put`, by a `Session`: may move money."""
    return request("put", url, data=data, **kwargs)


@_called_as(requests.api.patch)
def patch(url: str | bytes, data: Any = None, **kwargs: Any) -> Response:
    """`requests.patch`, by a `Session`: may move money."""
    return request("patch", url, data=data, **kwargs)


@_called_as(requests.api.delete)
def delete(url: str | bytes, **kwargs: Any) -> Response:
    """`requests.delete`, by a `Session`: may move money."""
    return request("delete", url, **kwargs)


alias_module(sys.modules[__name__], requests.api)
