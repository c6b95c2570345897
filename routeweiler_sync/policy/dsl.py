"""The words of a policy: rules, what they match, what they say. What follows from them for a payment is told by `engine`.

A policy guards money, so what can't be meant as it is written (an unknown key, a rule that matches nothing, a denial with a
price limit) is refused when the policy is made.
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
from . import patterns

#: Bound on ``any`` within ``any``.
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A condition on a payment: all fields that are set must hold; at least one is set.

    ``url_matches``: `fnmatch` pattern for the whole URL that answered 402, e.g. ``https://*.example.com/*``; an IPv6 address is
    written as in a URL. Paths and queries are case-sensitive. One that no URL can match is refused. ``scheme``: the challenge's
    (``L402``, ``LSAT``), any case. ``network``: the invoice's, e.g. ``bitcoin``. ``any``: at least one of these holds.
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
    """One rule: the first one of a policy whose ``when`` matches decides.

    ``deny``: don't pay, for ``reason``. ``max_per_call_minor_units``: the most that one call may cost, in minor units of the
    policy's currency. ``prefer``: the rail to pay over, or several, the best first. Raises ValueError naming the rule.
    """

    name: str
    when: RuleMatch
    deny: bool = False
    max_per_call_minor_units: int | None = None
    prefer: str | Sequence[str] | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a policy rule's name is a non-empty string, not {self.name!r}")
        if isinstance(self.prefer, Sequence) and not isinstance(self.prefer, str):
            object.__setattr__(self, "prefer", tuple(self.prefer))
        problem = _problem_of_match(self.when, MAX_DEPTH) or self._problem()
        if problem:
            raise ValueError(f"policy rule {self.name!r}: {problem}")

    def _problem(self) -> str | None:
        limit = self.max_per_call_minor_units
        if not isinstance(self.deny, bool):
            return f"deny is true or false, not {self.deny!r}"
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MAX_MINOR_UNITS):
            return f"max_per_call_minor_units is a whole number from 0 to {MAX_MINOR_UNITS}, not {limit!r}"
        if self.deny and (limit is not None or self.prefer is not None):
            return "it denies, so max_per_call_minor_units and prefer have no meaning"
        if self.prefer is not None and not (self.rails and all(isinstance(rail, str) and rail for rail in self.rails)):
            return f"prefer is a rail or several, not {self.prefer!r}"
        if self.reason is not None and not isinstance(self.reason, str):
            return f"reason is text, not {self.reason!r}"
        return None

    @property
    def rails(self) -> tuple[str, ...]:
        """The preferred rails, the best first; empty if the rule prefers none."""
        if self.prefer is None:
            return ()
        return (self.prefer,) if isinstance(self.prefer, str) else tuple(self.prefer)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may be paid, and how much a call: the first matching rule decides, and where none matches nothing is forbidden.

    A value: hashable, picklable, equal by content. ``policy_hash`` names its content in traces (``sha256:`` and 64 hex digits): the
    same on every machine, whatever the order of keys in its file, and for rules that the async ``routeweiler`` knows too, with
    ``currency`` and ``default_rail`` given, the same as there. Raises ValueError for what can't be a policy.

    Limits are in ``currency``, also where the budget's is another one.

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
            raise ValueError(f"a policy's rules are a list, not {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        names = set()
        for rule in self.rules:
            if not isinstance(rule, PolicyRule):
                raise ValueError(f"a policy's rules are PolicyRules, not {rule!r}")
            if rule.name in names:
                raise ValueError(f"policy rule {rule.name!r}: the name is used twice, so a verdict wouldn't tell which rule it was")
            names.add(rule.name)
        if self.currency not in CURRENCIES:
            raise ValueError(f"unknown currency {self.currency!r}: one of {', '.join(CURRENCIES)}")
        if self.default_rail is not None and (not isinstance(self.default_rail, str) or not self.default_rail):
            raise ValueError(f"default_rail is a rail's name, not {self.default_rail!r}")
        object.__setattr__(self, "policy_hash", _hash(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """A policy from plain data: the keys are the names of the fields. Raises ValueError, naming the rule."""
        known = _known(data, {"rules", "default_rail", "currency"}, "a policy")
        rules = known.pop("rules", [])
        if not isinstance(rules, list):
            raise ValueError(f"a policy's rules are a list, not {rules!r}")
        return cls(rules=[_rule(number, rule) for number, rule in enumerate(rules, 1)], **known)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Policy:
        """A policy from a JSON file, or a ``.toml`` one on Python 3.11 and later. Raises OSError; ValueError, naming the file."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors write a mark in front
            if path.suffix.lower() != ".toml":
                return cls.from_dict(json.loads(text, object_pairs_hook=_unique))
            if sys.version_info >= (3, 11):
                import tomllib

                return cls.from_dict(tomllib.loads(text))
        except (ValueError, RecursionError) as error:
            kind = "" if not isinstance(error, json.JSONDecodeError) else "it isn't JSON (.toml files are read as TOML): "
            raise ValueError(f"policy file {path}: {kind}{error}") from error
        raise ValueError(f"policy file {path}: TOML needs Python 3.11 or later; write the policy as JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A name twice would hide the first one, which may be the limit that was meant."""
    known = dict(pairs)
    if len(known) < len(pairs):
        twice = sorted({name for name, _ in pairs if [each for each, _ in pairs].count(name) > 1})
        raise ValueError(f"{', '.join(twice)} twice in one object")
    return known


def _problem_of_match(match: object, depth_left: int) -> str | None:
    if not isinstance(match, RuleMatch):
        return f"a condition is a RuleMatch, not {match!r}"
    if depth_left == 0:
        return f"more than {MAX_DEPTH} conditions within one another"
    texts = {"url_matches": match.url_matches, "scheme": match.scheme, "network": match.network}
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text):
            return f"{name} is a non-empty string, not {text!r}"
    if match.url_matches is not None and (problem := patterns.problem_of_url(match.url_matches)):
        return f"url_matches={problem}"
    if match.any is None:
        return None if any(texts.values()) else "a condition needs at least one of url_matches, scheme, network, any"
    if not isinstance(match.any, tuple) or not match.any:
        return f"any is a non-empty list of conditions, not {match.any!r}"
    return next((problem for each in match.any if (problem := _problem_of_match(each, depth_left - 1))), None)


def _known(data: object, keys: set[str], what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} is a table of names and values, not {data!r}")
    if unknown := sorted(map(str, set(data) - keys)):
        raise ValueError(f"{what} has no {', '.join(unknown)}; it has {', '.join(sorted(keys))}")
    return dict(data)


def _rule(number: int, data: object) -> PolicyRule:
    name = data.get("name", f"number {number}") if isinstance(data, Mapping) else f"number {number}"
    what = f"policy rule {name!r}"
    known = _known(data, {each.name for each in fields(PolicyRule)}, what)
    if missing := {"name", "when"} - set(known):
        raise ValueError(f"{what} lacks {' and '.join(sorted(missing))}")
    return PolicyRule(**{**known, "when": _match(known["when"], what, MAX_DEPTH)})


def _match(data: object, what: str, depth_left: int) -> RuleMatch:
    known = _known(data, {each.name for each in fields(RuleMatch)}, f"{what}: a condition")
    if isinstance(known.get("any"), list):
        if depth_left == 0:
            raise ValueError(f"{what}: more than {MAX_DEPTH} conditions within one another")
        known["any"] = [_match(each, what, depth_left - 1) for each in known["any"]]
    return RuleMatch(**known)


def _hash(policy: Policy) -> str:
    """As the async twin has it: the JSON of all fields, names in order, unset ones null."""
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
