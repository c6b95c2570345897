"""`requests.auth` under this package's name: the same module."""

import sys
from typing import TYPE_CHECKING

import requests.auth
from requests.auth import *  # noqa: F403

if TYPE_CHECKING:  # not public, but programs use it
    from requests.auth import _basic_auth_str as _basic_auth_str

sys.modules[__name__] = requests.auth
