"""Read a site whose pages cost money, through requests-cache: what is in the cache is neither fetched nor paid for again.

It prints:

    first reading: 4 pages, 9 requests so far, 44 sat
    second reading: 4 pages, 9 requests so far, 44 sat
    Rain, at last.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urljoin

from requests_cache import CacheMixin
from world import world

from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync.testing import PaywallRequest

BUDGET = BudgetEnvelope("scraper", per_call_minor_units=20, per_day_minor_units=200)
PAGES_MAX = 50


class CachedSession(CacheMixin, Routeweiler):  # type: ignore[misc]
    """A paying session that looks into the cache first. No token gets into the cache's file."""


def read(session: Routeweiler, url: str) -> dict[str, str]:
    """Return the text of ``url`` and of the pages that it links to."""
    index = session.get(url, timeout=30).text
    pages = {url: index}
    for link in re.findall(r'href="([^"]+)"', index)[:PAGES_MAX]:
        response = session.get(urljoin(url, link), timeout=30)
        response.raise_for_status()
        pages[response.url] = response.text
    return pages


def site(request: PaywallRequest) -> tuple[int, dict[str, str], bytes]:
    """Return a page of the site."""
    news = {"/news/1": "The hops are ripe.", "/news/2": "Rain, at last.", "/news/3": "Barley is dear."}
    links = "".join(f'<a href="{path}">{path}</a>' for path in news)
    return 200, {"Content-Type": "text/html"}, news.get(request.path, links).encode()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        make = partial(CachedSession, str(Path(folder, "pages.sqlite")))
        with world(BUDGET, make, sells="path", respond=site) as (session, shop):
            for reading in ("first", "second"):
                pages = read(session, shop.url_for("/news"))
                asked, spent_sat = len(shop.requests), session.spent_msat // 1000
                print(f"{reading} reading: {len(pages)} pages, {asked} requests so far, {spent_sat} sat")
            print(pages[shop.url_for("/news/2")])
