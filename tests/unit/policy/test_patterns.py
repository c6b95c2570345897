"""Patterns for URLs and origins: what a ban or an allowance names is what it meets, or it is refused when it is made."""

from __future__ import annotations

import pytest

from routeweiler_sync import BudgetEnvelope, Policy, PolicyRule, RuleMatch
from routeweiler_sync.policy.engine import evaluate


def bans(pattern: str, url: str) -> bool:
    policy = Policy([PolicyRule("ban", when=RuleMatch(url_matches=pattern), deny=True)])
    return evaluate(policy, url=url, scheme="L402", network="bitcoin").denied


@pytest.mark.parametrize(
    ("pattern", "url", "banned"),
    [
        ("http://[::1]/*", "http://[::1]/x", True),
        ("http://[::1]/*", "http://[0:0:0:0:0:0:0:1]:80/x", True),
        ("http://[0::0:1]:8080/*", "http://[::1]:8080/x", True),
        ("*://[2001:DB8::1]/*", "https://[2001:db8::1]/x", True),
        ("http://[::1]/*", "http://1/x", False),
        ("http://[[]::1]/*", "http://[::1]/x", True),
        ("https://Evil.com/*", "https://evil.com/x", True),
        ("HTTPS://*.Evil.COM/A*", "https://www.evil.com/A", True),
        ("https://Evil.com/A*", "https://evil.com/a", False),
        ("https://good.example*Paid", "https://good.example/Paid", True),
        ("https://x[ab]y/*", "https://xay/", True),
        ("https://evil.com:443/*", "https://evil.com/x", True),
        ("https://evil.com*", "https://evil.com?x", True),
        ("https://*", "https://evil.com/x", True),
        ("h*evil*", "http://evil.com/x", True),
        ("*", "https://evil.com/x", True),
        ("*?u=http://U@x.", "https://evil.com/x?u=http://U@x.", True),
        ("*?at=12:60", "https://evil.com/x?at=12:60", True),
        ("http://[[]::1]/*", "http://[::1]:80/x", True),
        ("http://evil.com:80[0-9][0-9]/*", "http://evil.com:8080/x", True),
    ],
)
def test_a_ban_bans_what_it_names(pattern: str, url: str, banned: bool) -> None:
    """Else money goes where the user has forbidden it, and nothing tells."""
    assert bans(pattern, url) is banned


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("https://evil.com", r"write https://evil.com/\*"),
        ("*://*.evil.com", r"write \*://\*.evil.com/\*"),
        ("http://[::1]", r"write http://\[::1\]/\*"),
        ("https://evil.com./*", "final dot"),
        ("https://evil.com.:8443/*", "final dot"),
        ("https://me@evil.com/*", "before the @"),
        ("https://bücher.example/*", "xn--"),
        ("https://evil.com/ä*", "%XX"),
        ("https://evil.com/a b", "%XX"),
        ("https://evil.com/x#f", "Leave it out"),
        ("http://[fe80::*]/*", r"\[\[\]"),
        ("http://[a/b]x/*", "out of the brackets"),
        ("https://evil.com*?x=*", "write the slash"),
        ("evil.com/*", "https://host/"),
        ("ftp://evil.com/*", "https://host/"),
        ("https://evil.com:https/*", "a port that no URL has"),
        ("https://evil.com:65536/*", "a port that no URL has"),
        ("https://*.evil.com:0443/*", "a port that no URL has"),
        ("http://[::1]:/*", "a port that no URL has"),
        ("http://::1/*", r"write \[::1\]"),
        ("https:///*", "no host"),
    ],
)
def test_a_ban_that_could_ban_nothing_is_refused(pattern: str, advice: str) -> None:
    """Else the user believes in a ban that isn't there. Within ``any`` as well."""
    for when in (RuleMatch(url_matches=pattern), RuleMatch(any=[RuleMatch(url_matches=pattern)])):
        with pytest.raises(ValueError, match=advice):
            PolicyRule("ban", when=when, deny=True)


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("https://good.example*Paid", r"Write https://good.example\*Paid/\*"),
        ("*good.example", r"Write \*good.example/\*"),
        ("*@good.example/*", "write the slash"),
        ("*?u=http://good.example/*", "write the slash"),
    ],
)
def test_an_allowance_whose_star_would_have_to_leave_the_host_is_refused(pattern: str, advice: str) -> None:
    """Else it allows nobody, or everybody who puts the right words into a path. A ban of that form stays as strong as it was."""
    with pytest.raises(ValueError, match=advice):
        PolicyRule("only these", when=RuleMatch(any=[RuleMatch(url_matches=pattern)]), max_per_call_minor_units=1)
    PolicyRule("ban", when=RuleMatch(url_matches=pattern), deny=True)


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("http://*.example.com/*", "http://a.example.com/x", True),
        ("http://*.example.com/*", "http://127.0.0.1/a.example.com/", False),
        ("http://*.example.com/*", "http://evil.example?.example.com/", False),
        ("http://*.example.com/*", "http://evil.example/?x=.example.com/", False),
        ("http://*.example.com*", "http://evil.example/.example.com", False),
        ("http://*.example.com*", "http://a.example.com/x?y", True),
        ("http://a?b.example/*", "http://a/b.example/", False),
        ("http://a[!x]b.example/*", "http://a/b.example/", False),
        ("http://a[./]b.example:*/*", "http://a/b.example:1/", None),
        ("*://good.example/*", "http://evil.example/?x=://good.example/", False),
        ("*//good.example/*", "http://evil.example//good.example/", False),
        ("*//good.example/*", "https://good.example/x", True),
        ("[hH]ttps://good.example/*", "https://good.example/x", True),
        ("http*good.example/*", "http://evil.example/good.example/", False),
        ("*.example.com/*", "http://evil.example/.example.com/", False),
        ("*.example.com/*", "http://a.example.com/", True),
        ("*example.com*", "http://evil.example/example.com", False),
        ("*example.com*", "https://example.com/x", True),
        ("h*example.com*", "https://evil.example/example.com", False),
        ("*", "https://example.com/x", True),
        ("https://*", "https://example.com/x", True),
        ("*/free/*", "https://example.com/a/free/x", True),
        ("*/paid?x=*", "https://example.com/paid?x=1", True),
        ("http://127.0.0.1/*", "http://2130706433/", False),
        ("http://2130706433/*", "http://2130706433/", True),
    ],
)
def test_a_wildcard_of_a_host_stays_within_the_host(pattern: str, url: str, allowed: bool | None) -> None:
    """Else a server is paid for having a trusted name in its path."""
    rest = PolicyRule("nobody else", when=RuleMatch(url_matches="*"), deny=True)
    try:
        only = PolicyRule("only these", when=RuleMatch(url_matches=pattern), max_per_call_minor_units=1)
    except ValueError:
        assert allowed is None
        return
    assert evaluate(Policy([only, rest]), url=url, scheme="L402", network="bitcoin").denied is not allowed


@pytest.mark.parametrize(
    ("pattern", "url", "banned"),
    [
        ("http://*.example.com/*", "http://127.0.0.1/a.example.com/", False),
        ("*example.com*", "http://evil.example/example.com", True),
        ("*.example.com/*", "http://evil.example/.example.com/", True),
        ("*example.com", "http://example.com/", True),
        ("*/casino/*", "http://a.example/b/casino/", True),
        ("http://127.0.0.1/*", "http://127.1/", True),
        ("http://127.0.0.1/*", "http://2130706433/", True),
        ("http://127.0.0.1:8080/*", "http://0x7f.0.0.01:8080/", True),
        ("http://127.0.0.1/*", "http://[::ffff:127.0.0.1]/", True),
        ("http://127.1/*", "http://127.0.0.1/", True),
        ("http://[::ffff:127.0.0.1]:*/*", "http://127.0.0.1:8080/", True),
        ("http://[::1]:*/*", "http://[::1%25lo]:8080/", True),
        ("http://[fe80::1]/*", "http://[FE80::1%eth0]/", True),
        ("http://[fe80::1]/*", "http://[fe80::2%25eth0]/", False),
        ("http://127.0.0.1/*", "http://127.0.0.2/", False),
        ("http://evil.example/*", "http://%65vil.example/", True),
        ("http://xn--bcher-kva.example/*", "http://b%C3%BCcher.example/", True),
        ("http://xn--bcher-kva.example/*", "http://BÜCHER.example:80/", True),
        ("http://evil.example/*", "http://evil.example:0080/", True),
        ("http://evil.example/*", "http://user:word@EVIL.example.:80/", True),
        ("http://evil.example/*", "http://evil.example", True),
    ],
)
def test_a_ban_holds_for_every_spelling_of_its_host(pattern: str, url: str, banned: bool) -> None:
    """Else a redirect to the same machine under another spelling is paid."""
    assert bans(pattern, url) is banned


def test_a_policys_hash_is_that_of_what_was_written() -> None:
    """Else traces written before would seem to come from another policy."""
    policy = Policy([PolicyRule("v6", when=RuleMatch(url_matches="HTTP://[0::1]/*"), deny=True)])
    assert policy.rules[0].when.url_matches == "HTTP://[0::1]/*"
    assert policy.policy_hash == "sha256:7ecb44ea982899c83357002932e223d2bfec15c8bcc5ab70e2da8c6140d94d5b"


@pytest.mark.parametrize(
    ("glob", "origin", "allowed"),
    [
        ("http://[::1]:8080", "http://[::1]:8080", True),
        ("http://[::1]:8080", "http://1:8080", False),
        ("[2001:DB8::1]", "https://[2001:db8::1]", True),
        ("https://api.example:443", "https://api.example", True),
        ("http://*.example:80", "http://a.example", True),
        ("https://api.example:443", "https://api.example:8443", False),
        ("https://*:443", "https://api.example:8443", False),
        ("https://*1:443", "https://api.example:8441", False),
        ("API.example", "https://api.example", True),
        ("api.example", "https://api.example:8443", False),
        ("*.example:*", "http://a.example:81", True),
        ("https://*", "http://api.example", False),
        ("*", "http://api.example", True),
    ],
)
def test_an_allowance_allows_what_it_names_and_nothing_else(glob: str, origin: str, allowed: bool) -> None:
    """Else a budget pays somebody that it wasn't made for, or refuses whom it was made for."""
    assert BudgetEnvelope("e", allowed_origins_glob=[glob]).allows_origin(origin) is allowed


@pytest.mark.parametrize(
    ("glob", "advice"),
    [
        ("https://api.example/*", "write https://api.example$"),
        ("api.example/", "write api.example$"),
        ("me@api.example", "before the @"),
        ("ftp://api.example", "neither"),
        ("bücher.example", "xn--"),
        ("[fe80::*]", r"\[\[\]"),
        ("::1", r"write \[::1\]"),
        ("api.example:https", "a port that no URL has"),
        ("https://api.example:65536", "a port that no URL has"),
    ],
)
def test_an_allowance_that_could_allow_nothing_is_refused(glob: str, advice: str) -> None:
    """Else every purchase is refused, and the user looks for the reason elsewhere."""
    with pytest.raises(ValueError, match=advice):
        BudgetEnvelope("e", allowed_origins_glob=["*", glob])
