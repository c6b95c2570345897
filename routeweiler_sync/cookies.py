"""`requests.cookies` under this package's name: the same module."""

import sys

import requests.cookies
from requests.cookies import *  # noqa: F403

sys.modules[__name__] = requests.cookies
