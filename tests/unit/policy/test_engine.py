"""What a policy says of one payment."""

from __future__ import annotations

from typing import Any

import pytest

from routeweiler_sync.policy import Policy, PolicyRule, RuleMatch, Verdict, evaluate

CALL: dict[str, Any] = {"url": "https://api.example/paid", "scheme": "L402", "network": "bitcoin"}


def matches(when: RuleMatch, **call: Any) -> bool:
    return evaluate(Policy(rules=[PolicyRule("it", when=when, deny=True)]), **{**CALL, **call}).denied


def test_without_a_rule_that_matches_nothing_is_forbidden():
    """An empty policy would stop all payments."""
    assert evaluate(Policy(), **CALL) == Verdict(rail="l402")
    assert not matches(RuleMatch(network="bitcoin-testnet"))


def test_the_first_rule_that_matches_decides():
    """An exception before a general ban wouldn't count, or a ban before an exception would."""
    allow = PolicyRule("allow", when=RuleMatch(url_matches="https://api.example/*"), max_per_call_minor_units=50)
    deny = PolicyRule("deny", when=RuleMatch(url_matches="*"), deny=True, reason="not here")
    assert evaluate(Policy([allow, deny]), **CALL) == Verdict(rule="allow", max_per_call_minor_units=50, rail="l402")
    assert evaluate(Policy([deny, allow]), **CALL) == Verdict(rule="deny", denied=True, reason="not here", rail="l402")


def test_a_denial_without_a_reason_names_its_rule():
    """The user would read "denied" and not know what to change."""
    assert evaluate(Policy([PolicyRule("my ban", when=RuleMatch(network="bitcoin"), deny=True)]), **CALL).reason == (
        "rule 'my ban' denies it"
    )


@pytest.mark.parametrize(
    ("when", "matched"),
    [
        (RuleMatch(scheme="lsat", network="bitcoin"), False),
        (RuleMatch(scheme="l402", network="bitcoin"), True),
        (RuleMatch(scheme="L402", network="Bitcoin"), True),
        (RuleMatch(any=[RuleMatch(network="BITCOIN")]), True),
        (RuleMatch(scheme="L402", network="Bitcoin-Testnet"), False),
        (RuleMatch(any=[RuleMatch(scheme="LSAT"), RuleMatch(network="bitcoin")]), True),
        (RuleMatch(any=[RuleMatch(scheme="LSAT"), RuleMatch(network="bitcoin-testnet")]), False),
        (RuleMatch(network="bitcoin-testnet", any=[RuleMatch(scheme="L402")]), False),
        (RuleMatch(network="bitcoin", any=[RuleMatch(scheme="LSAT")]), False),
        (RuleMatch(any=[RuleMatch(any=[RuleMatch(scheme="L402")], network="bitcoin")]), True),
        (RuleMatch(any=[RuleMatch(any=[RuleMatch(scheme="L402")], network="bitcoin-testnet")]), False),
    ],
)
def test_all_fields_of_a_condition_must_hold_and_one_of_any(when: RuleMatch, matched: bool):
    """A ban would hit more, or less, than was written."""
    assert matches(when) is matched


@pytest.mark.parametrize(
    ("pattern", "url", "matched"),
    [
        ("https://api.example/*", "https://api.example/paid?x=1", True),
        ("https://api.example/*", "http://api.example/paid", False),
        ("https://api.example/*", "https://api.example.evil/paid", False),
        ("https://api.example/Paid", "https://api.example/paid", False),
        ("https://api.example/paid", "https://api.example/paid?x=1", False),
        ("*/paid?x=*", "https://api.example/paid?x=1", True),
        ("https://api.example/*", "https://API.Example/paid", True),
        ("https://api.example/*", "https://api.example.:443/paid", True),
        ("https://api.example:443/*", "https://api.example/paid", True),
        ("https://api.example/*", "https://api.example:8443/paid", False),
        ("https://api.example:8443/*", "https://api.example:8443/paid", True),
        ("https://api.example/*", "https://api.example:80/paid", False),
        ("https://api.example/*", "https://user:word@api.example/paid", True),
        ("https://good.example*", "https://good.example@evil.example/paid", False),
        ("https://api.example/", "https://api.example", True),
        ("https://api.example/paid", "https://api.example/paid#part", True),
        ("http://[[]::1]:8080/*", "http://[::1]:8080/paid", True),
        ("*", "http://[broken", True),
        ("https://api.example/*", "https://api.example:port/paid", False),
    ],
)
def test_patterns_are_for_the_whole_url_however_it_is_spelt(pattern: str, url: str, matched: bool):
    """A server would slip from under a ban, or into an exception, by spelling its own address differently."""
    assert matches(RuleMatch(url_matches=pattern), url=url) is matched


@pytest.mark.parametrize(
    ("prefer", "default_rail", "rail"),
    [
        (None, None, "l402"),
        (None, "x402", "x402"),
        ("x402", None, "x402"),
        ("l402", "x402", "l402"),
        (["x402", "l402"], None, "l402"),
        (["x402", "mpp"], None, "x402"),
    ],
)
def test_the_rules_rail_goes_before_the_policys(prefer: Any, default_rail: str | None, rail: str):
    """A payment would go over a rail that the policy meant for others."""
    rule = PolicyRule("it", when=RuleMatch(network="bitcoin"), prefer=prefer)
    assert evaluate(Policy([rule], default_rail=default_rail), **CALL).rail == rail


def test_an_unknown_network_matches_no_network():
    """A rule for a network would let through an invoice whose network isn't known."""
    assert not matches(RuleMatch(network="bitcoin"), network=None)
