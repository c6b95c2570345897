"""`requests.auth` under this package's name: the same module."""

import sys

import requests.auth
from requests.auth import *  # noqa: F403

sys.modules[__name__] = requests.auth
