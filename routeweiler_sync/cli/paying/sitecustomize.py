"""Run by Python's `site` as an interpreter starts: ``routeweiler-sync run`` has put this folder first on PYTHONPATH.

Has the interpreter's `requests` pay (`_routeweiler_paying`), takes the folder off the path, and makes way for the sitecustomize
that would have run otherwise. The environment is inherited, so a Python that the program starts comes here as well, and be it
another installation's: that one is left as it is, and nothing in this file is newer than Python 2.
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
    _mine = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - the next one
    except ImportError as _error:
        if getattr(_error, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", _mine)
