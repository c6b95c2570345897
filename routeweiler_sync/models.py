"""`requests.models` under this package's name: the same module."""

import sys

import requests.models
from requests.models import *  # noqa: F403

sys.modules[__name__] = requests.models
