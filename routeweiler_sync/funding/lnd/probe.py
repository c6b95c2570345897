"""What `probe` of a connection to lnd returns. A module of its own, so that it can be named without importing grpc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .causes import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a connection's ``probe`` was answered: a ``reply`` with the ``code`` OK, or an error, its ``text`` and its ``cause``."""

    code: str
    reply: Any = None
    text: str = ""
    cause: Cause | None = None
