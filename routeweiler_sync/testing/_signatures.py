"""Signatures for people: `help` and notebooks show each option of a paywall with its default, not ``**options``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def spelled_out(options: type, taken_by: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate a function with ``**options``: show the name and the default of each, as ``taken_by`` has them.

    ``options`` is the TypedDict of the names. Only what is shown changes: type checkers read the TypedDict itself.
    """

    def decorate(function: Function) -> Function:
        shown = inspect.signature(function)
        named = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        passed = [each for name, each in inspect.signature(taken_by).parameters.items() if name in options.__annotations__]
        function.__signature__ = shown.replace(parameters=[*named, *passed])  # type: ignore[attr-defined]
        return function

    return decorate
