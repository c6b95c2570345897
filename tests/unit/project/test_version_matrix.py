"""`.ci/matrix` tests what setup.cfg promises."""

from __future__ import annotations

import configparser
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
MATRIX = ROOT / ".ci" / "matrix"


@pytest.fixture(scope="module")
def matrix() -> dict[str, Any]:
    return runpy.run_path(str(MATRIX))


@pytest.fixture(scope="module")
def promised() -> list[Requirement]:
    """What a user may install, as packaging reads it."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = parser["options.extras_require"]
    texts = [parser["options"]["install_requires"], extras["postgres"], extras["testing"], extras["nwc"]]
    return [Requirement(line) for text in texts for line in text.split("\n") if line]


def _on(python: str, requirements: list[Requirement]) -> dict[str, SpecifierSet]:
    """Name to versions, on this Python."""
    met = [one for one in requirements if one.marker is None or one.marker.evaluate({"python_version": python})]
    found = {one.name: one.specifier for one in met}
    assert len(found) == len(met), "two bounds for one package"
    return found


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_its_floors_are_the_lowest_versions_that_setup_cfg_allows(
    python: str, matrix: dict[str, Any], promised: list[Requirement]
) -> None:
    """Versions would be promised that no test has met; or a package without a lowest version would hide one."""
    lowest = {
        name: [str(bound.version) for bound in bounds if bound.operator == ">="] for name, bounds in _on(python, promised).items()
    }
    floors = _on(python, [Requirement(line) for _, line in matrix["floors"]()])
    assert {name: [f"=={version}" for version in versions] for name, versions in lowest.items()} == {
        name: [str(exact)] for name, exact in floors.items()
    }


def test_it_runs_the_pythons_that_setup_cfg_names(matrix: dict[str, Any]) -> None:
    """A Python would be promised and not tested."""
    parser = matrix["setup_cfg"]()
    assert matrix["pythons"]() == ["3.10", "3.11", "3.12", "3.13"]
    assert parser["options"]["python_requires"] == f">={matrix['pythons']()[0]}"


@pytest.mark.parametrize("package", ["requests", "urllib3", "grpcio", "protobuf", "anything else"])
@pytest.mark.parametrize("asked", ["floor", "newest"])
def test_each_end_of_each_package_is_met_on_the_oldest_and_the_newest_python(
    package: str, asked: str, matrix: dict[str, Any]
) -> None:
    """A row taken out to save time could take a promise with it."""
    on = {row.pythons for row in matrix["ROWS"] if row.asked(package) == asked}
    assert "all" in on or on == {"oldest", "newest"}
    assert on <= {"all", "oldest", "newest"}


def test_a_floor_is_asked_for_exactly_and_a_need_without_one_is_refused(matrix: dict[str, Any]) -> None:
    """pip would take the newest, and the row of the floors would test that."""
    (floors,) = [row for row in matrix["ROWS"] if row.name == "floors"]
    assert matrix["constraints"](floors) == [line for _, line in matrix["floors"]()]
    assert matrix["floor"]("a-b.c[d,e]>=1.2.3,<5; python_version < '3.13'") == ("a-b.c", "a-b.c==1.2.3; python_version < '3.13'")
    for without in ("a", "a<5", "a==1", "a>1", "a<5,>=1"):
        with pytest.raises(SystemExit, match="must have a lowest version"):
            matrix["floor"](without)
