"""`requests.packages` under this package's name: the same modules, with urllib3 and its submodules."""

import sys
from typing import TYPE_CHECKING

import requests.packages
from requests.packages import *  # noqa: F403

if TYPE_CHECKING:  # requests adds these names at run time, where no type checker sees them
    import idna as idna
    import urllib3 as urllib3

for _name, _module in list(sys.modules.items()):
    if _name.startswith("requests.packages."):
        sys.modules[f"{__package__}.{_name.removeprefix('requests.')}"] = _module
sys.modules[__name__] = requests.packages
