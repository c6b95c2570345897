"""`requests.status_codes` under this package's name: the same module."""

import sys

import requests.status_codes
from requests.status_codes import *  # noqa: F403

sys.modules[__name__] = requests.status_codes
