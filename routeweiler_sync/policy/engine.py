"""Apply a policy to one payment. Pure: no clock, no exchange rate, no I/O, and nothing is raised.

Comparing the price with the verdict's limit, and refusing, is left to `payments.checks`, which knows the exchange rate and what the
call has already paid.
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
    """A policy's decision about one payment.

    - ``rule``: the name of the rule that decided; None if no rule matched.
    - ``denied``: the payment is forbidden. ``reason`` says why.
    - ``max_per_call_minor_units``: the most that the call may cost without routing fees, in minor units of the policy's currency.
    - ``rail``: the rail to pay over. It is the offered rail if the policy prefers that or has no preference. Otherwise it is the
      rail that the policy prefers.
    """

    rule: str | None = None
    denied: bool = False
    reason: str | None = None
    max_per_call_minor_units: int | None = None
    rail: str


def evaluate(policy: Policy, *, url: str, scheme: str, network: str | None, rail: str = L402) -> Verdict:
    """Return the verdict of ``policy`` on paying for ``url``.

    ``url`` is the URL that answered 402, ``scheme`` the challenge's scheme, ``network`` the invoice's network, ``rail`` the offered
    rail.
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
    """Return the spellings of ``url`` that a pattern may match: normalised, with and without a default port.

    Another spelling that leads to the same server mustn't evade a rule. So user:password@, upper case, a host's final dot and the
    fragment are removed, an empty path becomes ``/``, and an IPv6 address is also written in its shortest form.
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
