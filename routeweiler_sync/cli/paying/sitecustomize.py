"""Run by Python's `site` when an interpreter starts, because ``routeweiler-sync run`` has put this folder first on PYTHONPATH.

It makes the interpreter's `requests` pay (by `_routeweiler_paying`), removes this folder from `sys.path`, and then runs the
sitecustomize that would have run without it. The environment is inherited, so every Python that the program starts runs this file,
other installations' too. Those are left unchanged, and this file uses nothing newer than Python 2.
"""

import os
import sys

_here = os.path.normcase(os.path.dirname(os.path.abspath(__file__)))
try:
    if os.environ.get("ROUTEWEILER_RUN") == "%d.%d %s" % (sys.version_info[0], sys.version_info[1], sys.prefix):  # noqa: UP031
        import _routeweiler_paying  # type: ignore[import-not-found]

        _routeweiler_paying.begin()
finally:
    sys.path[:] = [_entry for _entry in sys.path if os.path.normcase(_entry) != _here]
    _this_module = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - the next one on the path
    except ImportError as _error:
        if getattr(_error, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", _this_module)
