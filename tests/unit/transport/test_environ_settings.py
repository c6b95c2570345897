"""A paying session takes the same proxies and certificates from the environment as `requests`, also where it doesn't search."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import requests

from routeweiler_sync import Routeweiler, wrap
from routeweiler_sync.transport import environ_settings

PROXY = "http://proxy.example:3128"
VARIABLES: list[dict[str, str]] = [
    {},
    {"http_proxy": PROXY},
    {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"},
    {"Https_Proxy": PROXY, "https_proxy": ""},
    {"ALL_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8,api.example,127.0.0.1"},
    {"all_proxy": PROXY, "no_proxy": "*"},
    {"No_Proxy": "api.example"},
    {"_proxy": PROXY},
    {"REQUESTS_CA_BUNDLE": "/one.pem", "CURL_CA_BUNDLE": "/two.pem"},
    {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "/two.pem"},
    {"requests_ca_bundle": "/one.pem", "REQUESTS_CA_BUNDLE": "\udcff.pem"},
    {"http_proxy": PROXY, "CURL_CA_BUNDLE": "/two.pem"},
]
GIVEN: list[tuple[Any, ...]] = [
    ("http://127.0.0.1:8080/x", {}, None, None, None),
    ("https://api.example/x?a[]=1", None, True, True, "/cert.pem"),
    ("http://10.1.2.3/", {}, False, False, None),
    ("http://[::1]:80/", {}, None, "/own.pem", ("/cert.pem", "/key.pem")),
    ("http://[::1/", {}, None, None, None),
    ("http://ex\u2100mple/", {}, None, None, None),
    ("file:///x", {}, None, None, None),
    (b"http://api.example/", {}, None, None, None),
    ("http://api.example/", {"no_proxy": "api.example"}, None, None, None),
    ("http://api.example/", {"http": "http://own.example", "https": None}, None, None, None),
    ("http://api.example/", [], None, None, None),
]
ATTRIBUTES: list[dict[str, Any]] = [
    {},
    {"trust_env": False},
    {"trust_env": 1},
    {"proxies": {"http": "http://of.session", "no_proxy": "127.0.0.1"}, "verify": "/session.pem", "cert": "/session.crt"},
    {"verify": False, "stream": True},
]
ENVIRON: Any = type(os.environ)
KNOWN = sys.platform not in ("darwin", "win32")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test with an environment that names neither proxies nor certificates."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUEST_METHOD"):
            monkeypatch.delenv(name)


@pytest.fixture
def ours() -> Routeweiler:
    return Routeweiler(ledger="unused.db")


def outcome(session: requests.Session, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what ``session`` merges, or its error, and what became of the arguments."""
    given = copy.deepcopy(given)
    try:
        merged: Any = session.merge_environment_settings(*given)
        return list(merged.items()), [type(each) for each in merged.values()], given
    except Exception as error:
        return type(error), str(error), given


def check_like_requests(ours: requests.Session, given: tuple[Any, ...] = GIVEN[0]) -> None:
    theirs = requests.Session()
    vars(theirs).update({name: value for name, value in vars(ours).items() if name in theirs.__attrs__})
    assert outcome(ours, given) == outcome(theirs, given)


@pytest.mark.parametrize("variables", VARIABLES, ids=lambda variables: ",".join(variables) or "none")
def test_settings_are_those_of_requests(ours: Routeweiler, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a call would go past a proxy, or trust other certificates than with `requests`."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for attributes in ATTRIBUTES:
        vars(ours).update(vars(requests.Session()) | {"adapters": ours.adapters} | attributes)
        for given in GIVEN:
            check_like_requests(ours, given)


def test_each_change_of_the_environment_counts_at_once(ours: Routeweiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a call would use a proxy that the program has taken away, or not the one that it has just set."""
    chance = random.Random(1)
    names = ["http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "UNRELATED"]
    for _ in range(300):
        name = chance.choice(names)
        if name in os.environ and chance.random() < 0.6:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, chance.choice([PROXY, "127.0.0.1", "", "/other.pem"]))
        check_like_requests(ours)


def _to_proxy(*args: Any, **kwargs: Any) -> dict[str, str]:
    return {"http": PROXY}


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (requests.sessions, "get_environ_proxies", _to_proxy),
        (requests.utils, "getproxies", _to_proxy),
        (urllib.request, "getproxies_environment", _to_proxy),
        (requests.utils, "should_bypass_proxies", _always),
        (requests.utils, "proxy_bypass", _always),
        (os, "environ", {"http_proxy": PROXY, "CURL_CA_BUNDLE": "/two.pem"}),
        (os.environ, "get", lambda name, default=None: "/every/variable"),
        (os.environ, "items", lambda: [("http_proxy", PROXY)]),
        (os, "environ", ENVIRON({"HTTP_PROXY": PROXY}, str, str, str, str)),
        (os, "environ", copy.copy(os.environ)),
        (ENVIRON, "__getitem__", lambda self, name: "/every/variable"),
        (ENVIRON, "__iter__", lambda self: iter(("http_proxy",))),
        (ENVIRON, "__contains__", lambda self, name: True),
        (ENVIRON, "get", lambda self, name, default=None: "/every/variable"),
        (ENVIRON, "items", lambda self: [("http_proxy", PROXY)]),
        (requests.Session, "merge_environment_settings", lambda self, *args: {"verify": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_program_puts_in_the_place_of_a_function_is_used(
    ours: Routeweiler, owner: Any, name: str, replacement: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests and libraries set the proxies so. They would see real traffic go elsewhere."""
    check_like_requests(ours)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement, raising=False)
        check_like_requests(ours)
    check_like_requests(ours)


REPLACED_FIRST = """
import functools, sys, unittest.mock
import requests
{}
import routeweiler_sync
url = ("http://api.example/x", {{}}, None, None, None)
merged = [each.merge_environment_settings(*url) for each in (routeweiler_sync.Routeweiler(ledger="x.db"), requests.Session())]
assert merged[0] == merged[1], merged
"""


@pytest.mark.parametrize(
    "replaced",
    [
        "requests.utils.should_bypass_proxies = functools.lru_cache(requests.utils.should_bypass_proxies)",
        "requests.utils.should_bypass_proxies = unittest.mock.Mock(return_value=False)",
        "requests.utils.getproxies = lambda: {'http': 'http://proxy.example:1'}",
        "requests.utils.os.environ.get = lambda name, default=None: '/every.pem'",
        "sys.modules['requests.__version__'].__version__ = '3.0rc1'",
        "requests.Session.merge_environment_settings = lambda self, *given: {'verify': False}",
    ],
)
def test_what_was_replaced_before_the_import_is_used(replaced: str) -> None:
    """Programs put a cache before `should_bypass_proxies`, which is slow, before they import anything else."""
    subprocess.run([sys.executable, "-c", REPLACED_FIRST.format(replaced)], check=True)


def test_what_is_kept_of_the_environment_shows_no_values(ours: Routeweiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reporters of errors write the local variables of each frame down, and an environment holds passwords."""
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    monkeypatch.setattr(requests.sessions, "merge_setting", _fails)
    with pytest.raises(RuntimeError) as caught:
        ours.merge_environment_settings(*GIVEN[0])
    kept = [entry.frame.f_locals for entry in caught.traceback[1:]]
    assert "hunter2" not in repr(kept)
    assert not [value for frame in kept for value in frame.values() if isinstance(value, tuple) and "hunter2" in str(value)]


def _fails(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError


class Unverified(requests.Session):
    """A session that changes what is merged, and takes one argument more."""

    def merge_environment_settings(self, *args: Any, extra: object = None, **kwargs: Any) -> Any:
        return {**super().merge_environment_settings(*args, **kwargs), "verify": False, "extra": extra}


def test_sessions_with_a_method_of_their_own_keep_it(ours: Routeweiler) -> None:
    """A session is wrapped whose class turns verification off: the wrapped one must do the same."""
    wrapped: Any = wrap(Unverified(), funding=(), ledger="unused.db")
    for extra in (None, "extra"):
        merged = wrapped.merge_environment_settings(*GIVEN[0], **({} if extra is None else {"extra": extra}))
        assert (merged["verify"], merged["extra"]) == (False, extra)
    names = ("url", "proxies", "stream", "verify", "cert")
    by_name: Any = ours.merge_environment_settings(**dict(zip(names, GIVEN[0], strict=True)))
    assert by_name == requests.Session().merge_environment_settings(*GIVEN[0])


@pytest.mark.skipif(not KNOWN, reason="macOS and Windows have settings of proxies outside the environment")
def test_nothing_is_searched_where_nothing_changed(ours: Routeweiler) -> None:
    """The search costs more than all else that a paying session adds to a call.

    If this fails with a new version of `requests`: compare its `Session.merge_environment_settings` and `get_environ_proxies` with
    `settings_of`, then raise `READ_UP_TO`.
    """
    inherited = super(Routeweiler, ours).merge_environment_settings
    assert environ_settings.settings_of(ours, inherited, GIVEN[0]) == inherited(*GIVEN[0])
