"""The site: it is built without a warning, no link of it leads nowhere, and no page is wider than a telephone.

Links to other sites aren't followed: tests contact only this machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import Browser

from .pages import ROOT, pages

BUILD_S_MAX = 480
REPOSITORY = "https://github.com/routeweiler/routeweiler-sync/blob/main/"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. Without Sphinx its tests are skipped, unless ROUTEWEILER_REQUIRE_COMPAT=1."""
    needed = [name for name in ("sphinx", "furo", "myst_nb") if importlib.util.find_spec(name) is None]
    if needed and os.environ.get("ROUTEWEILER_REQUIRE_COMPAT") != "1":
        pytest.skip(f"{', '.join(needed)} isn't installed: pip install 'routeweiler-sync[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(folder / "trees"), "-b", "html"]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, encoding="utf-8", timeout=BUILD_S_MAX
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder / "html"


class Links(HTMLParser):
    """What a page links to, and the places in it to which others may link."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.targets += [each for name in ("href", "src") if (each := named.get(name))]
        self.anchors |= {each for name in ("id", "name") if (each := named.get(name))}


def test_no_link_of_the_site_leads_nowhere(site: Path) -> None:
    """A reader who follows one would find an error page, or the top of a page that says it somewhere."""
    read = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in read.items():
        for target in page.targets:
            parts = urlsplit(target)
            if target.startswith(REPOSITORY):
                if not (ROOT / unquote(re.split("[?#]", target.removeprefix(REPOSITORY))[0])).exists():
                    broken.append((path.name, target))
            elif not parts.scheme and not parts.netloc:
                there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                found = read.get(there)
                if not there.exists() or (parts.fragment and found is not None and unquote(parts.fragment) not in found.anchors):
                    broken.append((path.name, target))
    assert broken == []
    assert len(read) > 30


def test_nothing_of_the_site_is_fetched_from_elsewhere(site: Path) -> None:
    """A reader without a network would see less, and others would learn who reads it."""
    page = (site / "explanation" / "purchase.html").read_text("utf-8")
    fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=\"(https?:[^\"]+)", page)
    fetched += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*href=\"(https?:[^\"]+)", page)
    assert fetched == []
    assert "<svg viewBox" in page


def test_every_page_can_be_read_on_a_telephone_in_light_and_dark(site: Path, browser: Browser) -> None:
    """Else lines would be cut off, or grey on grey."""
    wide, dim = [], []
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts:
            continue
        for scheme in ("light", "dark"):
            browser.open(path, width=390, scheme=scheme)
            needs, has = browser.run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]")
            if needs > has:
                wide.append((path.relative_to(site).as_posix(), needs))
            ink, paper = browser.colour("body", "color"), browser.colour("body", "background-color")
            if abs(brightness(ink) - brightness(paper)) < 125:
                dim.append((path.name, scheme, ink, paper))
    assert wide == []
    assert dim == []


def brightness(colour: str) -> float:
    red, green, blue = (float(each) for each in re.findall(r"[\d.]+", colour)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_no_link_in_a_page_on_github_leads_nowhere() -> None:
    """Most find a page there first; and the site's links are made from these."""
    others = ["CHANGELOG.md", "tests/README.md", "benchmarks/README.md"]
    broken = []
    for page in [*pages(), *others]:
        for target in LINK.findall((ROOT / page).read_text("utf-8")):
            path, _, fragment = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            there = (ROOT / page).parent / path if path else ROOT / page
            if not there.exists() or (fragment and there.suffix == ".md" and fragment not in slugs(there)):
                broken.append((page, target))
    assert broken == []


def slugs(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#{1,6} +(.+?) *$", re.sub(r"(?ms)^```.*?^```", "", page.read_text("utf-8")))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
