"""`requests._internal_utils` under this package's name: the same module. It isn't public, but programs import it."""

import sys

import requests._internal_utils
from requests._internal_utils import *  # noqa: F403

sys.modules[__name__] = requests._internal_utils
