"""Writing a policy: what can't be meant is refused, and a policy is a value with a name."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.policy import Policy, PolicyRule, RuleMatch

DATA: dict[str, Any] = {
    "rules": [
        {"name": "no tests", "when": {"network": "bitcoin-testnet"}, "deny": True, "reason": "worthless"},
        {
            "name": "cheap",
            "when": {"url_matches": "https://a.example/*", "any": [{"scheme": "L402"}, {"any": [{"scheme": "LSAT"}]}]},
            "max_per_call_minor_units": 100,
            "prefer": ["l402"],
        },
    ],
    "default_rail": "l402",
    "currency": "usd",
}
POLICY = Policy(
    rules=[
        PolicyRule("no tests", when=RuleMatch(network="bitcoin-testnet"), deny=True, reason="worthless"),
        PolicyRule(
            "cheap",
            when=RuleMatch(
                url_matches="https://a.example/*", any=[RuleMatch(scheme="L402"), RuleMatch(any=[RuleMatch(scheme="LSAT")])]
            ),
            max_per_call_minor_units=100,
            prefer=["l402"],
        ),
    ],
    default_rail="l402",
    currency="usd",
)

#: The hash that the async twin (routeweiler 0.1.2) gives to `TWINS`. Changing it renames every policy in every trace.
TWINS_HASH = "sha256:ef999cb659c16bef0ee5d94184b616ff74bc7155b8ad7a373974ec41abd27b37"
TWINS: dict[str, Any] = {
    "rules": [
        {"name": "no tests", "when": {"network": "bitcoin-testnet"}, "deny": True, "reason": "wörthless"},
        {
            "name": "cheap",
            "when": {"url_matches": "https://a.example/*", "any": [{"network": "bitcoin"}, {"any": [{"url_matches": "*b*"}]}]},
            "max_per_call_minor_units": 100,
            "prefer": ["l402"],
        },
    ],
    "default_rail": "l402",
    "currency": "usd",
}


def test_the_hash_is_the_twins():
    """Traces of programs that use the async package and this one under one policy couldn't be put together."""
    assert Policy.from_dict(TWINS).policy_hash == TWINS_HASH
    one_rail = {**TWINS, "rules": [TWINS["rules"][0], {**TWINS["rules"][1], "prefer": "l402"}]}
    assert Policy.from_dict(one_rail).policy_hash == TWINS_HASH


def test_a_policy_reads_the_same_from_code_data_and_files(tmp_path: Path):
    """The rules an operator wrote in a file wouldn't be those that hold."""
    assert Policy.from_dict(DATA) == POLICY
    (tmp_path / "policy.json").write_text(json.dumps(DATA), encoding="utf-8")
    assert Policy.from_file(tmp_path / "policy.json") == POLICY
    assert Policy.from_dict({}) == Policy()


TOML = """
currency = "usd"
default_rail = "l402"
[[rules]]
name = "no tests"
when = { network = "bitcoin-testnet" }
deny = true
reason = "worthless"
[[rules]]
name = "cheap"
when = { url_matches = "https://a.example/*", any = [{ scheme = "L402" }, { any = [{ scheme = "LSAT" }] }] }
max_per_call_minor_units = 100
prefer = ["l402"]
"""


def test_toml_is_read_where_python_can(tmp_path: Path):
    """A TOML policy would be ignored, or crash without a word on older Pythons."""
    path = tmp_path / "policy.toml"
    path.write_text(TOML, encoding="utf-8")
    if sys.version_info >= (3, 11):
        assert Policy.from_file(path) == POLICY
    else:
        with pytest.raises(ValueError, match=r"3\.11"):
            Policy.from_file(path)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("p.json", '{"rules": [', "isn't JSON"),
        ("p.yaml", "rules: []", "isn't JSON"),
        ("p.json", '{"currency": "usd", "currency": "eur"}', "currency twice"),
        ("p.json", '{"rules": [{"name": "x", "when": {"network": "b", "network": "c"}}]}', "network twice"),
        ("p.json", '{"rules": [{"name": "x", "when": {"url": "*"}}]}', "'x'.*has no url"),
        ("p.json", "[" * 100_000, "p.json"),
        ("p.json", "[]", "table"),
        ("p.json", '{"rules": [{"name": "x", "when": {"network": "b"}, "max_per_call_minor_units": 5.0}]}', "'x'.*whole number"),
        ("p.toml", "rules = [", "p.toml"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, name: str, text: str, word: str):
    """A program with several policy files would say "Expecting value: line 1", or take the looser one of two limits."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?s){name}.*{word}" if word != name else name):
        Policy.from_file(tmp_path / name)
    with pytest.raises(OSError):
        Policy.from_file(tmp_path / "absent.json")


def test_a_file_may_begin_with_a_mark(tmp_path: Path):
    """A policy saved by a Windows editor would be refused for a character that nobody sees."""
    (tmp_path / "p.json").write_text(json.dumps(DATA), encoding="utf-8-sig")
    assert Policy.from_file(tmp_path / "p.json") == POLICY


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_policy_is_a_value(copied: Any):
    """A session that was copied or sent to a worker would lose its policy, or trace it as another."""
    assert copied(POLICY) == POLICY
    assert copied(POLICY).policy_hash == POLICY.policy_hash
    assert len({POLICY, copied(POLICY)}) == 1


def test_the_hash_is_the_contents_in_every_process_and_order():
    """Traces of two machines under the same policy couldn't be told from those of a changed one."""
    turned = {key: DATA[key] for key in reversed(DATA)}
    turned["rules"] = [{key: rule[key] for key in reversed(rule)} for rule in DATA["rules"]]
    assert Policy.from_dict(turned).policy_hash == POLICY.policy_hash
    code = f"from routeweiler_sync.policy import Policy; print(Policy.from_dict({DATA!r}).policy_hash)"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert told == {POLICY.policy_hash}


@pytest.mark.parametrize(
    "change",
    [
        {"currency": "eur"},
        {"default_rail": None},
        {"rules": DATA["rules"][::-1]},
        {"rules": [DATA["rules"][0], {**DATA["rules"][1], "max_per_call_minor_units": 0}]},
        {"rules": [{**DATA["rules"][0], "deny": False}, DATA["rules"][1]]},
    ],
)
def test_another_policy_has_another_hash(change: dict[str, Any]):
    """A loosened policy would hide under the old one's name."""
    assert Policy.from_dict({**DATA, **change}).policy_hash != POLICY.policy_hash


WHEN = RuleMatch(network="bitcoin")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"when": RuleMatch()}, "at least one"),
        ({"when": RuleMatch(any=[])}, "non-empty list"),
        ({"when": RuleMatch(any=[RuleMatch()])}, "at least one"),
        ({"when": RuleMatch(any=["https://*"])}, "RuleMatch"),
        ({"when": RuleMatch(any="https://*")}, "non-empty list"),
        ({"when": RuleMatch(url_matches="")}, "url_matches"),
        ({"when": RuleMatch(scheme=402)}, "scheme"),
        ({"when": {"network": "bitcoin"}}, "RuleMatch"),
        ({"when": WHEN, "deny": "no"}, "deny"),
        ({"when": WHEN, "max_per_call_minor_units": -1}, "max_per_call_minor_units"),
        ({"when": WHEN, "max_per_call_minor_units": 1.5}, "max_per_call_minor_units"),
        ({"when": WHEN, "max_per_call_minor_units": True}, "max_per_call_minor_units"),
        ({"when": WHEN, "max_per_call_minor_units": 5, "deny": True}, "no meaning"),
        ({"when": WHEN, "prefer": "l402", "deny": True}, "no meaning"),
        ({"when": WHEN, "prefer": []}, "prefer"),
        ({"when": WHEN, "prefer": [1]}, "prefer"),
        ({"when": WHEN, "reason": 5}, "reason"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], word: str):
    """A rule that silently does nothing would let money go where its author thought it couldn't."""
    with pytest.raises(ValueError, match=rf"'my rule'.*{word}"):
        PolicyRule("my rule", **fields)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"rules": [{"name": "x", "when": {"network": "bitcoin"}, "max_per_call": 5}]}, r"'x'.*max_per_call;"),
        ({"rules": [{"name": "x", "when": {"url": "*"}}]}, r"'x'.*has no url;"),
        ({"rules": [{"name": "x", "deny": True}]}, r"'x' lacks when"),
        ({"rules": [{"when": {"network": "bitcoin"}}]}, r"'number 1' lacks name"),
        ({"rules": [{"name": "x", "when": {}}]}, r"'x'.*at least one"),
        ({"rules": [{"name": "x", "when": {"any": []}}]}, r"'x'.*non-empty list"),
        ({"rules": [{"name": "x", "when": {"any": {"network": "bitcoin"}}}]}, r"'x'.*non-empty list"),
        ({"rules": [{"name": "x", "when": "bitcoin"}]}, r"'x'.*table"),
        ({"rules": ["x"]}, "'number 1'.*table"),
        ({"rules": {"name": "x"}}, "list"),
        ({"rules": [{"name": "x", "when": {"network": "bitcoin"}}] * 2}, r"'x'.*twice"),
        ({"rule": []}, "has no rule;"),
        ({"currency": "btc"}, "currency"),
        ({"default_rail": ""}, "default_rail"),
        ([], "table"),
    ],
)
def test_data_with_a_slip_is_refused(data: Any, word: str):
    """A misspelt limit in a policy file would be no limit."""
    with pytest.raises(ValueError, match=word):
        Policy.from_dict(data)


def test_conditions_within_one_another_are_bounded():
    """A policy file from elsewhere would crash the program with a RecursionError."""
    data: dict[str, Any] = {"network": "bitcoin"}
    for _ in range(200):
        data = {"any": [data]}
    with pytest.raises(ValueError, match=r"'deep'.*within"):
        Policy.from_dict({"rules": [{"name": "deep", "when": data}]})


def test_a_rule_in_the_wrong_place_is_refused():
    """Rules given as plain data would be skipped."""
    with pytest.raises(ValueError, match="PolicyRules"):
        Policy(rules=[DATA["rules"][0]])
    with pytest.raises(ValueError, match="list"):
        Policy(rules="deny everything")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "regtest"),
        ("network", "mainnet"),
        ("network", "testnet"),
        ("network", "bitcoin*"),
        ("network", " bitcoin"),
        ("network", "bitcoin-testnet4"),
        ("scheme", "x402"),
        ("scheme", "Bearer"),
        ("scheme", "L402 "),
        ("scheme", "*"),
    ],
)
@pytest.mark.parametrize("deny", [False, True])
def test_a_rule_for_what_no_payment_has_is_refused(field: str, value: str, deny: bool, nested: bool) -> None:
    """A ban of "regtest" would ban nothing, for the network's name is bitcoin-regtest."""
    when: dict[str, Any] = {field: value}
    when = {"any": [{"url_matches": "*"}, {"any": [when]}]} if nested else when
    with pytest.raises(ValueError, match=f"'x'.*no (invoice|challenge) has the {field}"):
        Policy.from_dict({"rules": [{"name": "x", "when": when, "deny": deny}]})
