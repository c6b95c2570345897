"""Tools for agents: what a language model may call to fetch pages, and to pay for them within limits that it can't change.

`fetch_tool` makes a tool of a session for any program. In `langchain`, `openai_agents`, `crewai`, `smolagents` and `pydantic_ai` it
makes one for that framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tool import FetchTool, fetch_tool

__all__ = ["FetchTool", "fetch_tool"]


def __getattr__(name: str) -> Any:
    """Import the tool only if it is asked for: the commands that import modules of this folder need little of it."""
    if name in __all__:
        from . import tool

        return getattr(tool, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
