"""`requests.exceptions` under this package's name: the same module."""

import sys

import requests.exceptions
from requests.exceptions import *  # noqa: F403

sys.modules[__name__] = requests.exceptions
