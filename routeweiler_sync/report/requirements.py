"""What drawing a report needs beyond the package itself: the extra ``report``. Looked for without importing it."""

from __future__ import annotations

from importlib.util import find_spec

#: The libraries of the extra, by the name of their module.
_LIBRARIES = {"jinja2": "Jinja2", "matplotlib": "matplotlib"}


def missing() -> str | None:
    """Return a sentence that says what is missing and how to install it; None if all is there."""
    names = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if not names:
        return None
    return f"The HTML page needs {' and '.join(names)}: pip install 'routeweiler-sync[report]'"
