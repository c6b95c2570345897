"""`requests.packages` under this package's name: the same modules, urllib3 and those within it too."""

import sys

import requests.packages
from requests.packages import *  # noqa: F403

for _name, _module in list(sys.modules.items()):
    if _name.startswith("requests.packages."):
        sys.modules[f"{__package__}.{_name.removeprefix('requests.')}"] = _module
sys.modules[__name__] = requests.packages
