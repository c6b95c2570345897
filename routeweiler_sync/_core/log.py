"""The log of this package: the logger ``routeweiler_sync``, whose faults never reach the code that writes to it."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


#: How many frames `_HarmlessLogger.log` adds to those that a logger counts from the line that writes the message.
_OWN_FRAMES = 1 if sys.version_info >= (3, 11) else 2


class _HarmlessLogger(_Adapter):
    """Writes to a logger. A handler or filter of the program that raises an Exception loses the message, and nothing else.

    Messages are written in the midst of payments: an exception from there would leave a payment without its end.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with suppress(Exception):
            super().log(level, msg, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + _OWN_FRAMES})


log = _HarmlessLogger(logging.getLogger("routeweiler_sync"), {})
