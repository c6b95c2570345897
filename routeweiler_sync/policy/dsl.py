"""The parts of a policy: its rules, what they match, and what they decide. How they are applied to a payment is left to `engine`.

A policy guards money. So anything that can't be meant as it is written (an unknown key, a rule that matches nothing, a denial with
a price limit) is refused when the policy is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .._core.money import CURRENCIES, MAX_MINOR_UNITS
from .._core.secret_text import may_be_secret, problem_of_path, shown
from ..protocol.invoice import NETWORKS
from ..protocol.schemes import NAMES
from . import patterns

#: The most conditions that may be nested through ``any``.
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A condition on a payment. At least one field must be set, and all the fields that are set must hold.

    - ``url_matches``: an `fnmatch` pattern for the whole URL that answered 402, e.g. ``https://*.example.com/*``. A wildcard in
      scheme or host never matches ``/``, ``?``, ``#`` or ``@``. In a rule that denies, a pattern without ``://`` may match anywhere
      in the URL (``*casino*``); in a rule that allows, its part before the first slash is for scheme and host (``*example.com*``:
      hosts with that in their name), unless it is only ``*`` (``*/free/*``). An IPv6 address is written as in a URL. Paths and
      queries are case-sensitive.
    - ``scheme``: the challenge's scheme (``L402``, ``LSAT``, ``Payment``), in any case.
    - ``network``: the invoice's network (``bitcoin``, ``bitcoin-testnet``, ``bitcoin-signet``, ``bitcoin-regtest``), in any case.
    - ``any``: conditions of which at least one must hold.

    `PolicyRule` refuses a condition that no payment can meet: a pattern that no URL matches, an unknown scheme or network.
    """

    url_matches: str | None = None
    scheme: str | None = None
    network: str | None = None
    any: Sequence[RuleMatch] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.any, Sequence) and not isinstance(self.any, (str, bytes)):
            object.__setattr__(self, "any", tuple(self.any))


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule of a policy. The first rule whose ``when`` matches a payment decides about it.

    A server may read a URL in another way than it is written (``/a/../casino/``, ``/%63asino/``). A denial holds if ``when``
    matches one of the readings, an allowance if it matches all of them.

    - ``deny``: don't pay. ``reason`` says why.
    - ``max_per_call_minor_units``: the most that one call may cost, in minor units of the policy's currency.
    - ``prefer``: the rail to pay over (``l402``, ``mpp-lightning``), or several rails, the best first. No other is paid over.

    Raises: ValueError that names the rule, if the rule can't be meant as it is written.
    """

    name: str
    when: RuleMatch
    deny: bool = False
    max_per_call_minor_units: int | None = None
    prefer: str | Sequence[str] | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a policy rule's name must be a non-empty string, not {shown(self.name)}")
        if isinstance(self.prefer, Sequence) and not isinstance(self.prefer, str):
            object.__setattr__(self, "prefer", tuple(self.prefer))
        problem = self._problem() or _problem_of_match(self.when, MAX_DEPTH, denies=self.deny)
        if problem:
            raise ValueError(f"policy rule {shown(self.name)}: {problem}")

    def _problem(self) -> str | None:
        limit = self.max_per_call_minor_units
        if not isinstance(self.deny, bool):
            return f"deny must be true or false, not {shown(self.deny)}"
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MAX_MINOR_UNITS):
            return f"max_per_call_minor_units must be a whole number from 0 to {MAX_MINOR_UNITS}, not {shown(limit)}"
        if self.deny and (limit is not None or self.prefer is not None):
            return "the rule denies, so max_per_call_minor_units and prefer have no meaning in it"
        if self.prefer is not None and not (self.rails and all(isinstance(rail, str) and rail for rail in self.rails)):
            return f"prefer must be a rail's name or several, not {shown(self.prefer)}"
        if self.reason is not None and not isinstance(self.reason, str):
            return f"reason must be a text, not {shown(self.reason)}"
        return None

    @property
    def rails(self) -> tuple[str, ...]:
        """The rails that the rule prefers, the best first. Empty if it prefers none."""
        if self.prefer is None:
            return ()
        return (self.prefer,) if isinstance(self.prefer, str) else tuple(self.prefer)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may be paid, and how much per call. The first rule that matches decides; if no rule matches, nothing is forbidden.

    Limits are in ``currency``, even if the budget is in another currency. ``default_rail`` is the rail that is preferred if no rule
    prefers one.

    A policy is a value: hashable, picklable, equal by content. ``policy_hash`` (``sha256:`` and 64 hex digits) names the content in
    traces. It is the same on every machine, whatever the order of keys in the policy's file. It is also the same as in the async
    ``routeweiler``, for rules that are known there too, if ``currency`` and ``default_rail`` are given.

    Raises: ValueError for rules or values that make no policy.

    >>> policy = Policy(rules=[PolicyRule("no tests", when=RuleMatch(network="bitcoin-testnet"), deny=True)])
    >>> policy == Policy.from_dict({"rules": [{"name": "no tests", "when": {"network": "bitcoin-testnet"}, "deny": True}]})
    True
    """

    rules: Sequence[PolicyRule] = ()
    default_rail: str | None = None
    currency: str = "sat"
    policy_hash: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.rules, (str, bytes)) or not isinstance(self.rules, Sequence):
            raise ValueError(f"a policy's rules must be a list, not {shown(self.rules)}")
        object.__setattr__(self, "rules", tuple(self.rules))
        names = set()
        for rule in self.rules:
            if not isinstance(rule, PolicyRule):
                raise ValueError(f"a policy's rules must be PolicyRules, not {shown(rule)}")
            if rule.name in names:
                raise ValueError(f"policy rule {shown(rule.name)}: the name is used twice, so a verdict couldn't name the rule")
            names.add(rule.name)
        if self.currency not in CURRENCIES:
            raise ValueError(f"currency must be one of {', '.join(CURRENCIES)}, not {shown(self.currency)}")
        if self.default_rail is not None and (not isinstance(self.default_rail, str) or not self.default_rail):
            raise ValueError(f"default_rail must be a rail's name, not {shown(self.default_rail)}")
        object.__setattr__(self, "policy_hash", _hash(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Return a policy made from plain data, whose keys are the names of the fields.

        Raises: ValueError that names the rule, for data that make no policy.
        """
        known = _known(data, {"rules", "default_rail", "currency"}, "a policy")
        rules = known.pop("rules", [])
        if not isinstance(rules, list):
            raise ValueError(f"a policy's rules must be a list, not {shown(rules)}")
        return cls(rules=[_rule(number, rule) for number, rule in enumerate(rules, 1)], **known)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Policy:
        """Return the policy in a JSON file, or in a ``.toml`` file on Python 3.11 and later.

        Raises: OSError if the file can't be read. ValueError that names the file, if its content makes no policy.
        """
        if (problem := problem_of_path("The policy's file", path)) is not None:
            raise ValueError(problem)
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark at the beginning
            if path.suffix.lower() != ".toml":
                return cls.from_dict(json.loads(text, object_pairs_hook=_unique))
            if sys.version_info >= (3, 11):
                import tomllib

                return cls.from_dict(tomllib.loads(text))
        except (ValueError, RecursionError) as error:
            kind = "" if not isinstance(error, json.JSONDecodeError) else "it isn't JSON (.toml files are read as TOML): "
            if isinstance(error, json.JSONDecodeError):
                error.doc = ""  # another file's text may have been given, and error reporters show attributes
            raise ValueError(f"policy file {path}: {kind}{error}") from error
        raise ValueError(f"policy file {path}: TOML needs Python 3.11 or later; write the policy as JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's names and values as a dict.

    Raises: ValueError for a repeated name. It would hide the first value, which may be the limit that was meant.
    """
    known = dict(pairs)
    if len(known) < len(pairs):
        twice = sorted({_name(name) for name, _ in pairs if [each for each, _ in pairs].count(name) > 1})
        raise ValueError(f"an object has {', '.join(twice)} twice")
    return known


def _problem_of_match(match: object, depth_left: int, *, denies: bool) -> str | None:
    if not isinstance(match, RuleMatch):
        return f"a condition must be a RuleMatch, not {shown(match)}"
    if depth_left == 0:
        return f"more than {MAX_DEPTH} conditions are nested within one another"
    texts = {"url_matches": match.url_matches, "scheme": match.scheme, "network": match.network}
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text):
            return f"{name} must be a non-empty string, not {shown(text)}"
    if match.url_matches is not None and (problem := patterns.problem_of_url(match.url_matches, denies=denies)):
        return f"url_matches={problem}"
    if match.scheme is not None and match.scheme.upper() not in NAMES:
        return f"no challenge has the scheme {shown(match.scheme)}: the known ones are {', '.join(NAMES)}"
    if match.network is not None and match.network.lower() not in NETWORKS:
        return f"no invoice has the network {shown(match.network)}: the known ones are {', '.join(NETWORKS)}"
    if match.any is None:
        return None if any(texts.values()) else "a condition needs at least one of url_matches, scheme, network, any"
    if not isinstance(match.any, tuple) or not match.any:
        return f"any must be a non-empty list of conditions, not {shown(match.any)}"
    return next((problem for each in match.any if (problem := _problem_of_match(each, depth_left - 1, denies=denies))), None)


def _known(data: object, keys: set[str], what: str) -> dict[str, Any]:
    """Return ``data`` as a dict. Raises: ValueError for a key that isn't one of ``keys``; ``what`` begins its text."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a table of names and values, not {shown(data)}")
    if unknown := sorted(map(str, set(data) - keys)):
        raise ValueError(f"{what} has no {', '.join(map(_name, unknown))}; it has {', '.join(sorted(keys))}")
    return dict(data)


def _name(key: str) -> str:
    return shown(key) if may_be_secret(key) else key


def _rule(number: int, data: object) -> PolicyRule:
    name = data.get("name", f"number {number}") if isinstance(data, Mapping) else f"number {number}"
    what = f"policy rule {shown(name)}"
    known = _known(data, {each.name for each in fields(PolicyRule)}, what)
    if missing := {"name", "when"} - set(known):
        raise ValueError(f"{what} lacks {' and '.join(sorted(missing))}")
    return PolicyRule(**{**known, "when": _match(known["when"], what, MAX_DEPTH)})


def _match(data: object, what: str, depth_left: int) -> RuleMatch:
    known = _known(data, {each.name for each in fields(RuleMatch)}, f"{what}: a condition")
    if isinstance(known.get("any"), list):
        if depth_left == 0:
            raise ValueError(f"{what}: more than {MAX_DEPTH} conditions are nested within one another")
        known["any"] = [_match(each, what, depth_left - 1) for each in known["any"]]
    return RuleMatch(**known)


def _hash(policy: Policy) -> str:
    """Return the policy's hash, as the async ``routeweiler`` makes it: of the JSON of all fields, names sorted, unset ones null."""
    canonical = json.dumps(_plain(policy), sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, PolicyRule):
        return {**_fields(value), "prefer": list(value.rails) or None}
    if isinstance(value, (Policy, RuleMatch)):
        return _fields(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _fields(value: Policy | PolicyRule | RuleMatch) -> dict[str, Any]:
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.init}
