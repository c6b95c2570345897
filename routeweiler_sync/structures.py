"""`requests.structures` under this package's name: the same module."""

import sys

import requests.structures
from requests.structures import *  # noqa: F403

sys.modules[__name__] = requests.structures
