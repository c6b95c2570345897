"""The libraries that paying needs, and versions of them that are known not to work."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from routeweiler_sync.doctor import software
from routeweiler_sync.doctor.findings import Verdict


def test_the_bounds_are_those_of_setup_cfg() -> None:
    """Else doctor would call a version good with which pip refuses to install, or the other way round."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[3] / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].strip().splitlines()
    here = {"python_version": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    met = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate(here)]
    assert {one.name: one.specifier for one in met} == {
        name: Requirement(software._requirement(name)).specifier for name in software.NEEDS
    }


def test_the_libraries_here_are_good() -> None:
    """Else doctor would send somebody to mend what works."""
    assert [each.verdict for each in software.findings()] == [Verdict.OK, Verdict.OK]


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("bitstring", "5.0.0", "bitstring 5.0.0 doesn't work: bolt11 can't read invoices with it"),
        ("bitstring", "5.1.0rc1", "bitstring 5.1.0rc1 doesn't work"),
        ("bitstring", "4.1.0", "bitstring 4.1.0 is too old: 4.2.2 is needed"),
        ("grpcio", "1.59.3", "grpcio 1.59.3 is too old"),
        ("protobuf", "4.24.4", "protobuf 4.24.4 is too old: 4.25 is needed"),
        ("bolt11", None, "bolt11 is missing"),
    ],
)
def test_a_bad_version_is_named_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, said: str
) -> None:
    """An error deep in a library says nothing of the version that causes it."""
    real = software._version
    monkeypatch.setattr(software, "_version", lambda each: version if each == name else real(each))
    _, found = software.findings()
    assert (found.check, found.verdict) == ("libraries", Verdict.WRONG)
    assert found.what.startswith(said)
    assert found.advice is not None
    assert f"pip install '{name}>=" in found.advice


@pytest.mark.parametrize(
    ("version", "number"), [("4.25", (4, 25, 0)), ("5", (5, 0, 0)), ("1.2.3.4", (1, 2, 3, 4)), ("2.0b1", (2, 0, 0))]
)
def test_versions_are_compared_by_their_numbers(version: str, number: tuple[int, ...]) -> None:
    """As texts, 10 would come before 9."""
    assert software._number(version) == number


def test_a_library_that_is_there_and_broken_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version says nothing of an installation that was cut off."""
    monkeypatch.setattr(software, "INVOICE", "lnbc1")
    _, found = software.findings()
    assert found.verdict is Verdict.WRONG
    assert "what paying needs doesn't work" in found.what
