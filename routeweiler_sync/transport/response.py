"""`PaidResponse`: the type that the verbs of a paying session return, for type checkers.

At runtime it is `requests.Response`, which `transport.adapter` gives the attribute ``payment``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import requests

_P = ParamSpec("_P")

if TYPE_CHECKING:
    from ..payments.types import Payment

    class PaidResponse(requests.Response):
        """A `requests.Response` of a session that pays: ``payment`` is its `Payment`, None if the call needed none."""

        payment: Payment | None

else:
    PaidResponse = requests.Response


def method_as(
    theirs: Callable[Concatenate[requests.Session, _P], requests.Response],
) -> Callable[[Callable[..., Any]], Callable[Concatenate[requests.Session, _P], PaidResponse]]:
    """Give a method the arguments of ``theirs``, a verb of the installed `requests.Session`, for type checkers."""
    return lambda ours: ours


def function_as(theirs: Callable[_P, requests.Response]) -> Callable[[Callable[..., Any]], Callable[_P, PaidResponse]]:
    """Give a function the arguments of ``theirs``, a verb of the installed `requests`, for type checkers."""
    return lambda ours: ours
