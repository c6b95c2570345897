"""What a release says of itself: its version, its changelog, its page on the package index, and the versions that CI pins."""

from __future__ import annotations

import configparser
import re
import runpy
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from routeweiler_sync._version import VERSION

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc(?:set)?=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def setup_py() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"))


def test_the_version_stands_in_one_place() -> None:
    """Else the report, the commands and the metadata would name different ones after the next release."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    assert parser["metadata"]["version"] == "attr: routeweiler_sync._version.VERSION"
    written = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    package = ROOT / "routeweiler_sync"
    texts = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [name for name, text in texts.items() if written.search(text)] == ["_version.py"]
    assert str(Version(VERSION)) == VERSION
    assert metadata.version("routeweiler-sync") == VERSION, "install the package anew"


def test_the_changelog_knows_the_version() -> None:
    """Users would look in vain for what has changed."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert first == "Unreleased"
    versions = [Version(each) for each in released]
    assert versions == sorted(versions, reverse=True)
    assert all(re.search(rf"^## \[{re.escape(each)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE) for each in released)
    if VERSION not in released:
        assert all(version < Version(VERSION) for version in versions)
        assert re.search(r"^## \[Unreleased\]\n(?:.*\n)*?- ", text, re.MULTILINE), "nothing is written down of the next release"


def test_links_of_the_page_on_the_index_lead_to_the_files_of_this_version(setup_py: dict[str, Any]) -> None:
    """The index shows the README, and has none of the files beside it: its links and pictures would be dead."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    described = setup_py["long_description"](readme, VERSION)
    links = [link or picture for link, picture in LINK.findall(described)]
    assert links
    assert [link for link in links if not re.match(r"https?:|#", link)] == []
    ours = rf"{re.escape(setup_py['SOURCE'])}/(?:blob|raw)/v{re.escape(VERSION)}/([^#?]+)"
    targets = [found[1] for link in links if (found := re.match(ours, link))]
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("[a](docs/a.md#b)", "[a](SOURCE/blob/v1.2/docs/a.md#b)"),
        ("![a](docs/a.svg)", "![a](SOURCE/raw/v1.2/docs/a.svg)"),
        ("[![a](docs/a.png)](docs/b.md)", "[![a](SOURCE/raw/v1.2/docs/a.png)](SOURCE/blob/v1.2/docs/b.md)"),
        ('<img alt="a" src="docs/a.svg" width="9">', '<img alt="a" src="SOURCE/raw/v1.2/docs/a.svg" width="9">'),
        ('<source media="(x)" srcset="docs/a.svg">', '<source media="(x)" srcset="SOURCE/raw/v1.2/docs/a.svg">'),
        ("[a](https://example.com/a) [b](#b)", "[a](https://example.com/a) [b](#b)"),
    ],
)
def test_relative_links_become_absolute(text: str, made: str, setup_py: dict[str, Any]) -> None:
    """A link of a form that the README doesn't have today would be dead tomorrow."""
    assert setup_py["long_description"](text, "1.2") == made.replace("SOURCE", setup_py["SOURCE"])


def test_ci_pins_versions_that_setup_cfg_allows() -> None:
    """CI couldn't install anything; or it would test versions that no user gets."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)) for pin in pins}
    assert len(pins) == len(pinned) > 100
    assert {pin.operator for pin in pinned.values()} == {"=="}
    (marker,) = {str(pin.marker) for pin in pins}
    python = re.fullmatch(r'python_version == "(3\.\d+)"', marker)
    assert python is not None
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    for line in "\n".join(wanted).split("\n"):
        if not line or line.startswith("%"):
            continue
        requirement = Requirement(line)
        pin = pinned.get(canonicalize_name(requirement.name))
        if pin is not None and (requirement.marker is None or requirement.marker.evaluate({"python_version": python[1]})):
            assert requirement.specifier.contains(pin.version, prereleases=True), f"{line}: run `python3 .ci/lock`"
