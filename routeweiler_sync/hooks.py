"""`requests.hooks` under this package's name: the same module."""

import sys

import requests.hooks
from requests.hooks import *  # noqa: F403

sys.modules[__name__] = requests.hooks
