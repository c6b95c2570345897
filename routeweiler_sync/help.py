"""`requests.help` under this package's name: the same module."""

import sys

import requests.help
from requests.help import *  # noqa: F403

sys.modules[__name__] = requests.help
