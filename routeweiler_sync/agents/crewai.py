"""A tool that fetches and pays, for CrewAI. Needs ``crewai``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from crewai.tools import BaseTool
from pydantic import Field, WithJsonSchema, create_model

from .fetching import MAX_CHARS
from .tool import NAME, PARAMETERS, FetchTool

if TYPE_CHECKING:
    from ..transport.session import Routeweiler

#: Any value is taken, because the tool itself says what is wrong with one, in words for a model.
_Arguments = create_model(
    "FetchArguments",
    **{
        name: (Annotated[Any, WithJsonSchema(schema)], Field(schema.get("default", ...), description=schema["description"]))
        for name, schema in PARAMETERS["properties"].items()
    },
)


def _never(arguments: Any = None, result: Any = None) -> bool:
    """Return False: an answer isn't kept. With its cache on, CrewAI would give the first one to all later calls, an error too."""
    return False


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

    Raises: ValueError for a limit or a pattern that can't be one, and for a session that doesn't pay.
    """
    tool = FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)

    class Fetch(BaseTool):
        def _run(self, *given: Any, **arguments: Any) -> str:
            return tool.call(*given, **arguments).as_text()

        async def _arun(self, *given: Any, **arguments: Any) -> str:
            return (await tool.call_async(*given, **arguments)).as_text()

    return Fetch(name=tool.name, description=tool.description, args_schema=_Arguments, cache_function=_never)
