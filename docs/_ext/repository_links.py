"""Links of pages to files of the repository that are no pages, such as ``../README.md``: on the site they lead to GitHub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
PAGES = (".md", ".ipynb")


def repository_links(app: Any, docname: str, source: list[str]) -> None:
    """Rewrite the links of one page. What isn't there is left, so that Sphinx warns of it."""
    docs = Path(app.srcdir)
    folder = (docs / docname).parent

    def rewritten(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link[2]))
        outside = docs not in target.parents
        if re.match(r"\w+:", link[2]) or not target.exists() or not (outside or target.is_dir() or target.suffix not in PAGES):
            return link[0]
        return link[1] + app.config.repository_url + target.relative_to(docs.parent).as_posix() + link[3]

    source[0] = LINK.sub(rewritten, source[0])


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", repository_links)
    return {"parallel_read_safe": True}
