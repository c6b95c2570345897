"""A ban holds however a page is spelt, and an allowance only if it holds for all readings of the spelling."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

import pytest
import requests
from hypothesis import example, given, settings, strategies as st

from routeweiler_sync import Policy, PolicyRule, RuleMatch
from routeweiler_sync.policy.engine import Verdict, evaluate

HOST = "http://shop.example"


def verdict(url: str, *rules: PolicyRule) -> Verdict:
    return evaluate(Policy(rules), url=url, scheme="L402", network="bitcoin")


def ban(pattern: str) -> PolicyRule:
    return PolicyRule(f"no {pattern}", when=RuleMatch(url_matches=pattern), deny=True)


def only(pattern: str, limit: int = 5) -> PolicyRule:
    return PolicyRule(f"only {pattern}", when=RuleMatch(url_matches=pattern), max_per_call_minor_units=limit)


SPELLINGS = [
    "/a/../casino/x",
    "/a/b/../../casino/x",
    "/../casino/x",
    "/./casino/x",
    "//casino/x",
    "///casino//x",
    "/a//../casino/x",
    "/a//../../casino/x",
    "/a/%2e%2e/casino/x",
    "/a/%2E%2e/casino/x",
    "/a/.%2e/casino/x",
    "/a/..%2Fcasino/x",
    "/a%2f..%2fcasino%2Fx",
    "/casino%2Fx",
    "/a/..%5ccasino%5Cx",
    "/a\\..\\casino\\x",
    "/%63asino/x",
    "/%43%41sino/../casino/x",
    "/c%61s%69n%6F/x",
    "/a/%252e%252e/casino/x",
    "/%2563asino/x",
    "/a/..;/casino/x",
    "/a/..;x=1/casino/x",
    "/casino;x=1/x",
    "/casino%3Bx/x",
    "/casino/../casino/./x",
    "/casino/x/../..//casino/",
    "/casino/x#f",
    "/casino/x?y=/../../",
    "/a/../casino/x?y",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("pattern", [f"{HOST}/casino/*", "*://*/casino/*", f"{HOST}/%63asino/*", f"{HOST}/a/../casino/*"])
def test_a_denied_page_is_denied_in_every_spelling(spelling: str, pattern: str) -> None:
    """Else a redirect to a spelling of the page is paid, and the server reads it as the page."""
    assert verdict(HOST + spelling, ban(pattern)).denied
    assert verdict(HOST + spelling, only(f"{HOST}/nothing/*"), ban(pattern)).denied


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_limit_holds_in_every_spelling(spelling: str) -> None:
    """Else the page costs what it likes as soon as it is spelt in another way. A later, higher limit doesn't lift it."""
    assert verdict(HOST + spelling, only(f"{HOST}/casino/*")).max_per_call_minor_units == 5
    assert verdict(HOST + spelling, only(f"{HOST}/casino/*"), only("*", 50)).max_per_call_minor_units == 5


@pytest.mark.parametrize(
    "path",
    [
        "/pub/../secret",
        "/pub/%2e%2e/secret",
        "/pub/..%2fsecret",
        "/pub/..%5Csecret",
        "/pub//../../secret",
        "/pub/..;/secret",
        "/pub/%252e%252e/secret",
        "/pub/..",
    ],
)
def test_an_allowance_isnt_left_by_way_of_its_path(path: str) -> None:
    """Else whoever is allowed one folder sells pages of any other."""
    assert verdict(HOST + path, only(f"{HOST}/pub/*"), ban("*")).denied


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/pub/*", "/pub/a//b"),
        ("/pub/*", "/pub/a%2Fb;v=1?x=%2F..%2F"),
        ("/pub/*", "/pub/x/../y"),
        ("/a%20b/*", "/a%20b/c"),
        ("/a%20b", "/a%20b"),
        ("/a//b/*", "/a//b/c"),
        ("/a/./b", "/a/./b"),
        ("/a;v=1/*", "/a;v=1/b"),
        ("/a%3Fb%2ac", "/a%3Fb%2ac"),
        ("/100%25", "/100%25"),
        ("/a?q=%41", "/a?q=%41"),
        ("/%C3%BC", "/\u00fc"),
    ],
)
def test_a_page_that_is_allowed_as_it_is_spelt_can_be_bought(pattern: str, path: str) -> None:
    """Else the rule would have to name all readings of a page."""
    assert verdict(HOST + path, only(HOST + pattern), ban("*")) == Verdict(
        rule=f"only {HOST}{pattern}", max_per_call_minor_units=5, rail="l402"
    )


def test_a_rail_that_a_rule_demands_is_demanded_in_every_spelling() -> None:
    """Else the page is paid by a rail that was kept from it."""
    rule = PolicyRule("other rail", when=RuleMatch(url_matches=f"{HOST}/casino/*"), prefer="x402")
    assert verdict(f"{HOST}/a/../casino/x", rule).rail == "x402"


def test_a_rule_of_a_network_alone_doesnt_look_at_the_spelling() -> None:
    """Else an odd path would slip from under it."""
    rule = PolicyRule("no tests", when=RuleMatch(any=[RuleMatch(network="Bitcoin", url_matches="*")]), deny=True)
    assert verdict(f"{HOST}/a/../b", rule).denied


# What paths are made of. A server that decodes once, or never, and then removes dot segments, reads them as one page or another.
_PIECES = ["/", "/", "/", ".", "..", "%2e", "%2E", "a", "casino", "%63asino", "c%61sino", "%2F", "%5c", "\\", ";x", "?", "x"]


def pages_of(target: str) -> set[str]:
    """Return the pages that servers may read ``target`` as: plainly written, with the standard library alone."""
    path = target.partition("?")[0]
    found = set()
    for decoded in (path, unquote(path), unquote(unquote(path))):
        for text in (decoded, decoded.replace("\\", "/")):
            for each in (text, re.sub("/+", "/", text)):
                trailing = "/" if re.search(r"/\.{0,2}\Z", each) else ""
                normal = posixpath.normpath("/" + each.lstrip("/")) if each.strip("/") else "/"
                found.add(normal if normal.endswith("/") else normal + trailing)
    return found


@given(st.lists(st.sampled_from(_PIECES), max_size=10))
@settings(max_examples=200, deadline=None)
@example(["/", "a", "/", "%2e", ".", "/", "casino", "/", "x"])
@example(["%63asino", "/", "..", ";x"])
def test_no_spelling_of_a_denied_page_is_paid(pieces: list[str]) -> None:
    """Whatever goes on the wire, from the caller or from a redirect: a page that some server reads as denied is denied."""
    raw = HOST + "/" + "".join(pieces)
    prepared = requests.Request("GET", raw).prepare()
    for url in (raw, prepared.url or "", requests.utils.requote_uri(raw)):
        target = requests.PreparedRequest()
        target.url = url
        if any(page.startswith("/casino/") for page in pages_of(target.path_url)):
            assert verdict(url, ban(f"{HOST}/casino/*")).denied, url
