"""A headless Chromium that opens a page as its reader would: in a width, in light or dark."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

REQUIRED = os.environ.get("ROUTEWEILER_REQUIRE_BROWSER") == "1"

#: What a page is asked for: the rectangles of all that is seen of its texts and drawings, and the width that it takes.
_OUTSIDE = """
const wide = document.documentElement.clientWidth;
const seen = [...document.querySelectorAll("body *")].filter(each => each.getClientRects().length && each.offsetParent !== null
    || each instanceof SVGTextElement && each.getClientRects().length);
return seen.filter(each => {
    const box = each.getBoundingClientRect();
    return box.width > 1 && (box.left < -1 || box.right > wide + 1);
}).map(each => each.outerHTML.slice(0, 200));
"""
_OVERLAPPING = """
const texts = [...document.querySelectorAll("svg text")].filter(each => each.getClientRects().length);
const boxes = texts.map(each => each.getBoundingClientRect());
const found = [];
for (let a = 0; a < boxes.length; a++) for (let b = a + 1; b < boxes.length; b++) {
    const [one, two] = [boxes[a], boxes[b]];
    if (one.left < two.right - 1 && two.left < one.right - 1 && one.top < two.bottom - 2 && two.top < one.bottom - 2)
        found.push(texts[a].textContent + " / " + texts[b].textContent);
}
return found;
"""


class Browser:
    """Chromium, driven by Debian's chromedriver. Nothing is downloaded. A context manager.

    Raises: ImportError if selenium isn't installed.
    """

    def __init__(self, chromium: str, driver: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = chromium
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        if sys.platform != "win32" and os.geteuid() == 0:
            arguments.append("--no-sandbox")  # as root Chromium doesn't start with it
        for argument in arguments:
            options.add_argument(argument)
        self._driver = webdriver.Chrome(options=options, service=Service(driver))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._driver.quit()

    def open(self, page: Path, *, width: int = 1200, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.get(page.absolute().as_uri())

    def run(self, script: str) -> Any:
        return self._driver.execute_script(script)

    def value(self, figure: str) -> int:
        """The exact value of a figure, as the page has it for programs."""
        return int(self.run(f"return document.querySelector('[data-figure={figure}]').value"))

    def text(self, selector: str) -> str:
        """The text of the first element, as a reader sees or copies it."""
        found: str = self.run(f"return document.querySelector({selector!r}).innerText")
        return found

    def colour(self, selector: str, what: str) -> str:
        found: str = self.run(f"return getComputedStyle(document.querySelector({selector!r}))[{what!r}]")
        return found

    def faults(self) -> list[str]:
        """What is cut off, drawn over each other, requested, or complained about in the console."""
        requested = self.run("return performance.getEntriesByType('resource').map(each => each.name)")
        said = [each["message"] for each in self._driver.get_log("browser")]
        return [*self.run(_OUTSIDE), *self.run(_OVERLAPPING), *requested, *said]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Where it, its driver or selenium is missing the tests are skipped, unless ROUTEWEILER_REQUIRE_BROWSER=1."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    try:
        if chromium is None or driver is None:
            raise FileNotFoundError("Debian's chromium and chromium-driver aren't installed")
        made = Browser(chromium, driver)
    except (FileNotFoundError, ImportError) as missing:
        if REQUIRED:
            raise
        pytest.skip(f"no browser: {missing}")
    with made:
        yield made
