"""`requests.certs` under this package's name: the same module."""

import sys

import requests.certs
from requests.certs import *  # noqa: F403

sys.modules[__name__] = requests.certs
