"""A tool that fetches and pays, for CrewAI. Needs ``crewai``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crewai.tools import BaseTool
from pydantic import Field, PrivateAttr, create_model

from .fetching import MAX_CHARS
from .tool import NAME, PARAMETERS, FetchTool

if TYPE_CHECKING:
    from ..transport.session import Routeweiler

#: The arguments' types and defaults, as pydantic wants them.
_TYPES: dict[str, tuple[Any, Any]] = {
    "url": (str, ...),
    "method": (str, "GET"),
    "headers": (dict[str, str] | None, None),
    "body": (str | None, None),
    "price_only": (bool, False),
}
_Arguments = create_model(
    "FetchArguments",
    **{
        name: (kind, Field(default, description=PARAMETERS["properties"][name]["description"]))
        for name, (kind, default) in _TYPES.items()
    },
)


def _never(arguments: Any = None, result: Any = None) -> bool:
    """Return False: an answer isn't kept. With its cache on, CrewAI would give the first one to all later calls, an error too."""
    return False


class _CrewFetch(BaseTool):
    _tool: FetchTool = PrivateAttr()

    def __init__(self, tool: FetchTool) -> None:
        super().__init__(name=tool.name, description=tool.description, args_schema=_Arguments, cache_function=_never)
        self._tool = tool

    def _run(self, **arguments: Any) -> str:
        return self._tool.call(**arguments).as_text()

    async def _arun(self, **arguments: Any) -> str:
        return (await self._tool.call_async(**arguments)).as_text()


def fetch_tool(
    session: Routeweiler,
    *,
    max_sats_per_call: int | None,
    max_chars: int = MAX_CHARS,
    allow_origins: Sequence[str] | None = None,
    name: str = NAME,
) -> BaseTool:
    """Return a tool that fetches with ``session``, and pays within ``max_sats_per_call`` and the session's budget.

    It returns the answer as JSON. CrewAI doesn't keep its answers. For the arguments see `routeweiler_sync.agents.fetching.Rules`.

    Raises: ValueError for a limit or a pattern that can't be one.
    """
    return _CrewFetch(
        FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)
    )
