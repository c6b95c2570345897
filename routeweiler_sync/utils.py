"""`requests.utils` under this package's name: the same module."""

import sys

import requests.utils
from requests.utils import *  # noqa: F403

sys.modules[__name__] = requests.utils
