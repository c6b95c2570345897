"""`requests.compat` under this package's name: the same module."""

import sys

import requests.compat
from requests.compat import *  # noqa: F403

sys.modules[__name__] = requests.compat
