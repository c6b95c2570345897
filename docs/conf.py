"""Sphinx's settings for the site: `python -m sphinx -W -n -b html docs docs/_build/html` builds it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "routeweiler-sync"
author = "The routeweiler-sync authors"
copyright = author
release = version = runpy.run_path(str(HERE.parent / "routeweiler_sync" / "_version.py"))["VERSION"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "repository_links", "diagrams", "docstrings"]
exclude_patterns = ["_build", "_ext"]
templates_path: list[str] = []
nitpicky = True
smartquotes = False  # it would make one dash of the two before an option
# Names in signatures: those of the standard library and of other packages have no pages here. Those in texts (py:obj) are checked.
nitpick_ignore_regex = [(r"py:(class|func|data|exc|meth|attr)", r".*")]

autodoc_member_order = "bysource"
maximum_signature_line_length = 90

# Pages are Markdown. They read well on GitHub too, so they use little that is MyST's own.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
# The notebooks hold what they print, and a test holds it against what they print now (`tests/compat/test_notebooks.py`).
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "text/html", 0)]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/routeweiler/routeweiler-sync/",
    "source_branch": "main",
    "source_directory": "docs/",
}
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Where files of the repository are that aren't pages.
repository_url = "https://github.com/routeweiler/routeweiler-sync/blob/main/"
