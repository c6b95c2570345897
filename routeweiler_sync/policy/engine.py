"""What a policy says of one payment. Pure: no clock, no rate, no I/O, and it raises nothing.

Whether a price is above the verdict's limit, and refusing, is the checkout's part: it knows the rate, and what the call has paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from .._core.rails import L402
from .._core.urls import DEFAULT_PORTS
from . import patterns
from .dsl import Policy, PolicyRule, RuleMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the policy says: ``rule`` is the deciding rule's name, None where none matched.

    ``max_per_call_minor_units`` is in the policy's currency, and for amounts without fees. ``rail`` is the one to pay over: the
    one on offer where the policy prefers it or has no preference, else the one that it prefers.
    """

    rule: str | None = None
    denied: bool = False
    reason: str | None = None
    max_per_call_minor_units: int | None = None
    rail: str


def evaluate(policy: Policy, *, url: str, scheme: str, network: str | None, rail: str = L402) -> Verdict:
    """The verdict of ``policy`` on paying for ``url``.

    ``url`` is the one that answered 402, ``scheme`` the challenge's, ``network`` the invoice's, ``rail`` the one on offer.
    """
    urls = _spellings(url)
    for rule in policy.rules:
        if _matches(rule.when, urls, scheme, network):
            return _verdict(policy, rule, rail)
    return Verdict(rail=policy.default_rail or rail)


def _verdict(policy: Policy, rule: PolicyRule, rail: str) -> Verdict:
    wanted = rule.rails or ((policy.default_rail,) if policy.default_rail else (rail,))
    return Verdict(
        rule=rule.name,
        denied=rule.deny,
        reason=rule.reason or (f"rule {rule.name!r} denies it" if rule.deny else None),
        max_per_call_minor_units=rule.max_per_call_minor_units,
        rail=rail if rail in wanted else wanted[0],
    )


def _matches(when: RuleMatch, urls: tuple[str, ...], scheme: str, network: str | None) -> bool:
    if when.url_matches is not None and not any(patterns.matches(url, when.url_matches) for url in urls):
        return False
    if when.scheme is not None and when.scheme.lower() != scheme.lower():
        return False
    if when.network is not None and when.network != network:
        return False
    return when.any is None or any(_matches(each, urls, scheme, network) for each in when.any)


def _spellings(url: str) -> tuple[str, ...]:
    """``url`` as patterns mean it, with and without a default port.

    Spellings that lead to the same server mustn't dodge a rule: user:password@, upper case, a host's final dot and the fragment
    are taken out, an empty path is ``/``, and an IPv6 address is written shortest too.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return (url,)
    hosts = (host,) if ":" not in host else (f"[{host}]", f"[{patterns.shortest(host) or host}]")
    default = DEFAULT_PORTS.get(parts.scheme)
    tail = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    ports = ("", f":{default}") if port in (None, default) and default else (f":{port}" if port is not None else "",)
    return tuple(f"{parts.scheme}://{host}{port}{tail}" for port in ports for host in hosts)
