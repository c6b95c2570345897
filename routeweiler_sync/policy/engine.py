"""Apply a policy to one payment. Pure: no clock, no exchange rate, no I/O, and nothing is raised.

Comparing the price with the verdict's limit, and refusing, is left to `payments.checks`, which knows the exchange rate and what the
call has already paid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from .._core.rails import L402
from .._core.secret_text import shown
from .._core.urls import DEFAULT_PORTS
from . import patterns
from .dsl import Policy, PolicyRule, RuleMatch
from .readings import PATH_READINGS, READINGS_TO_ALLOW, decoded_host, dotted_quad


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A policy's decision about one payment.

    - ``rule``: the name of the rule that decided; None if no rule matched.
    - ``denied``: the payment is forbidden. ``reason`` says why.
    - ``max_per_call_minor_units``: the most that the call may cost without routing fees, in minor units of the policy's currency.
    - ``rail``: the rail to pay over. It is the offered rail if the policy prefers that or has no preference. Otherwise it is the
      rail that the policy prefers.
    - ``place``: the place of that rail among those that the policy prefers, 0 for the best.
    """

    rule: str | None = None
    denied: bool = False
    reason: str | None = None
    max_per_call_minor_units: int | None = None
    rail: str
    place: int = 0


def evaluate(policy: Policy, *, url: str, scheme: str, network: str | None, rail: str = L402) -> Verdict:
    """Return the verdict of ``policy`` on paying for ``url``.

    ``url`` is the URL that answered 402, ``scheme`` the challenge's scheme, ``network`` the invoice's network, ``rail`` the offered
    rail.

    A server may read the URL in another way than it is written (`readings`). So a denial holds if any reading of the URL matches,
    and an allowance if all do. A rule that isn't a denial and matches some readings only is no allowance: its limit and its rail
    hold, and the rules after it decide.
    """
    asked = _Asked(url, scheme, network)
    partly: list[Verdict] = []
    for rule in policy.rules:
        if rule.deny:
            if asked.may_match(rule.when):
                return _verdict(policy, rule, rail)
        elif asked.matches(rule.when):
            return _strictest(_verdict(policy, rule, rail), partly, rail)
        elif asked.may_match(rule.when):
            partly.append(_verdict(policy, rule, rail))
    return _strictest(Verdict(rail=policy.default_rail or rail), partly, rail)


def _verdict(policy: Policy, rule: PolicyRule, rail: str) -> Verdict:
    wanted = rule.rails or ((policy.default_rail,) if policy.default_rail else (rail,))
    return Verdict(
        rule=rule.name,
        denied=rule.deny,
        reason=rule.reason or (f"rule {shown(rule.name)} denies it" if rule.deny else None),
        max_per_call_minor_units=rule.max_per_call_minor_units,
        rail=rail if rail in wanted else wanted[0],
        place=wanted.index(rail) if rail in wanted else 0,
    )


def _strictest(verdict: Verdict, partly: list[Verdict], rail: str) -> Verdict:
    """Return ``verdict`` with the least limit, and a rail other than the offered one, of the rules that match partly."""
    for each in partly:
        limit, most = each.max_per_call_minor_units, verdict.max_per_call_minor_units
        if limit is not None and (most is None or limit < most):
            verdict = replace(verdict, rule=each.rule, reason=each.reason, max_per_call_minor_units=limit)
        if each.rail != rail:
            verdict = replace(verdict, rail=each.rail)
    return verdict


class _Asked:
    """What a policy is asked about: a URL with all its readings, the challenge's scheme and the invoice's network."""

    def __init__(self, url: str, scheme: str, network: str | None) -> None:
        self._scheme, self._network = scheme.upper(), None if network is None else network.lower()
        self._origins: tuple[str, ...] = (url,)
        self._likely_origins: tuple[str, ...] = (url,)
        self._tails = [""] * len(PATH_READINGS)  # for what can't be read as a URL: the whole of it stands for the origin
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return
        tail = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._tails = [reading(tail, False) for reading in PATH_READINGS]
        self._origins = _origins(parts.scheme, host, port)
        likely = decoded_host(host).rstrip(".")
        if ":" in likely:
            likely = likely.partition("%")[0]  # a zone (fe80::1%eth0) says which way to take, not to which server
        likely = dotted_quad(likely) or likely
        self._likely_origins = tuple(dict.fromkeys((*self._origins, *_origins(parts.scheme, likely, port))))

    def matches(self, when: RuleMatch) -> bool:
        """Return whether ``when``, of a rule that allows, matches the URL however a server reads it."""
        return all(self._matches(when, reading, denies=False) for reading in range(READINGS_TO_ALLOW))

    def may_match(self, when: RuleMatch) -> bool:
        """Return whether ``when``, of a rule that denies or limits, matches the URL as some server may read it."""
        return any(self._matches(when, reading, denies=True) for reading in range(len(PATH_READINGS)))

    def _matches(self, when: RuleMatch, reading: int, *, denies: bool) -> bool:
        if when.url_matches is not None and not any(
            patterns.matches(origin, self._tails[reading], when.url_matches, reading, denies=denies)
            for origin in (self._likely_origins if denies else self._origins)
        ):
            return False
        if when.scheme is not None and when.scheme.upper() != self._scheme:
            return False
        if when.network is not None and when.network.lower() != self._network:
            return False
        return when.any is None or any(self._matches(each, reading, denies=denies) for each in when.any)


def _origins(scheme: str, host: str, port: int | None) -> tuple[str, ...]:
    """Return the spellings of an origin that a pattern may match: with and without a default port.

    Another spelling that leads to the same server mustn't evade a rule. So user:password@, upper case and a host's final dot are
    removed already, and an IPv6 address is also written in its shortest form.
    """
    hosts = (host,) if ":" not in host else (f"[{host}]", f"[{patterns.shortest(host) or host}]")
    default = DEFAULT_PORTS.get(scheme)
    ports = ("", f":{default}") if port in (None, default) and default else (f":{port}" if port is not None else "",)
    return tuple(f"{scheme}://{host}{port}" for port in ports for host in hosts)
