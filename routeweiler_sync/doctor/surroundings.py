"""What the environment says beside wallet, ledger and budget: proxies, certificate bundles, the trace and the agent's name."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .._core import env_vars
from .._core.files import printable
from .._core.secret_text import problem_of_path
from ..config import env_settings
from ..config.wallets import class_of
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


def trace() -> Iterator[Finding]:
    """Yield whether the trace that the environment names can be written, if it names one."""
    if not (path := os.environ.get(env_vars.TRACE)):
        return
    if problem_of_path(env_vars.TRACE, path) is not None:
        yield warning("trace", f"{env_vars.TRACE} isn't the path of a file: no trace is written", f"Correct {env_vars.TRACE}.")
        return
    file = Path(path).absolute()
    folder = next((each for each in file.parents if each.exists()), file.parent)
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        what = f"the trace {printable(file)} can't be written; calls are made and paid without it"
        yield warning("trace", what, f"Let this user write it, or correct {env_vars.TRACE}.")
    else:
        yield ok("trace", printable(file))


def agent() -> Iterator[Finding]:
    """Yield what is wrong with the agent's name in the environment, if anything is."""
    try:
        env_settings.agent_id()
    except env_settings.VariableError as error:
        yield wrong("budget", str(error).rstrip("."), f"Correct {error.name}.")


def _of_node(sources: Sequence[LightningFundingSource]) -> tuple[str, str | None]:
    """Return how gRPC reaches the node, and the variable of a proxy that it can't use, if one is set for it."""
    from ..funding.lnd.client import LndClient
    from ..funding.lnd.route import PROXY_VARIABLES, is_local, proxy_for

    client: Any = sources[0].client if sources else None
    if not isinstance(client, LndClient):
        if class_of(client) is not None:
            return "none, since it is always reached directly", None
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
