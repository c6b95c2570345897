"""`requests.__version__` under this package's name: the same module."""

import sys

from requests.__version__ import (
    __author__ as __author__,
    __author_email__ as __author_email__,
    __build__ as __build__,
    __cake__ as __cake__,
    __copyright__ as __copyright__,
    __description__ as __description__,
    __license__ as __license__,
    __title__ as __title__,
    __url__ as __url__,
    __version__ as __version__,
)

sys.modules[__name__] = sys.modules["requests.__version__"]
