"""`requests.adapters` under this package's name: the same module."""

import sys

import requests.adapters
from requests.adapters import *  # noqa: F403

sys.modules[__name__] = requests.adapters
