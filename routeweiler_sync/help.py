"""`requests.help` under this package's name: the same module.

``python -m routeweiler_sync.help`` prints what ``python -m requests.help`` prints, and this package's version. Put it into reports
of faults.
"""

import sys

import requests.help
from requests.help import *  # noqa: F403

if __name__ == "__main__":
    import json

    from routeweiler_sync._version import VERSION

    ours = {"routeweiler_sync": {"version": VERSION}}
    sys.stdout.write(json.dumps({**requests.help.info(), **ours}, sort_keys=True, indent=2) + "\n")
else:
    sys.modules[__name__] = requests.help
