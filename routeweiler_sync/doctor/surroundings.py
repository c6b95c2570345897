"""What the environment puts in between: the proxies that requests and gRPC would use, and certificate bundles."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .findings import Finding, ok, warning, wrong

if TYPE_CHECKING:
    from ..funding.lightning import LightningFundingSource

#: Variables by which requests finds the authorities that it trusts, in its order.
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def proxies(sources: Sequence[LightningFundingSource]) -> Iterator[Finding]:
    """Yield what is found about proxies: first that of pages, then that of the node."""
    found = urllib.request.getproxies()
    pages = ", ".join(
        f"{scheme} through {_without_login(found[scheme])}" for scheme in ("https", "http", "all") if found.get(scheme)
    )
    exceptions = f" (not for {found['no']})" if pages and found.get("no") else ""
    said = f"pages: {pages}{exceptions}" if pages else "pages: none"
    node, ignored = _of_node(sources)
    if ignored:
        what = f"{said}; the node: none, since gRPC can't use {ignored}"
        yield warning("proxies", what, "If the node is reached by a proxy only, name one that begins with http:// in grpc_proxy.")
    else:
        yield ok("proxies", f"{said}; the node: {node}")
    for name in _BUNDLES:
        if path := os.environ.get(name):
            if not os.path.exists(path):
                yield wrong("authorities", f"{name} names no file, so no https page can be loaded", f"Correct {name}, or unset it.")
            break


def _of_node(sources: Sequence[LightningFundingSource]) -> tuple[str, str | None]:
    """Return how gRPC reaches the node, and the variable of a proxy that it can't use, if one is set for it."""
    from ..funding.lnd.client import LndClient
    from ..funding.lnd.route import PROXY_VARIABLES, is_local, proxy_for

    client: Any = sources[0].client if sources else None
    if not isinstance(client, LndClient):
        return "as its own client says" if sources else "none", None
    host, port = client.grpc_host, client.grpc_port
    if is_local(host):
        return "none, since it is on this network", None
    if (proxy := proxy_for(host, port)) is not None:
        return f"through {proxy.shown} of {proxy.variable}, unless its name leads into this network", None
    variable = next((name for name in PROXY_VARIABLES if os.environ.get(name, "").strip()), None)
    if variable is not None:
        url = os.environ[variable].strip()
        scheme = url.partition("://")[0].lower() if "://" in url else "http"
        if scheme != "http":
            return "none", f"a proxy that begins with {scheme}:// ({variable})"
    return "none", None


def _without_login(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname or "?", parts.port
    except ValueError:
        return "an address that can't be read"
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
