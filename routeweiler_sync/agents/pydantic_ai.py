"""A tool that fetches and pays, for PydanticAI. Needs ``pydantic-ai-slim``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic_ai import Tool

from .fetching import MAX_CHARS
from .tool import NAME, FetchTool

if TYPE_CHECKING:
    from ..transport.session import Routeweiler

#: Lets PydanticAI ask the model again for arguments that aren't an object. What is in it, the tool itself looks at.
_OBJECT = TypeAdapter(dict[str, Any]).validator


def fetch_tool(
    session: Routeweiler,
    *,
    max_sats_per_call: int | None,
    max_chars: int = MAX_CHARS,
    allow_origins: Sequence[str] | None = None,
    name: str = NAME,
) -> Tool[Any]:
    """Return a tool that fetches with ``session``, and pays within ``max_sats_per_call`` and the session's budget.

    It returns the answer as a dict, and runs in a worker thread. For the arguments see `routeweiler_sync.agents.fetching.Rules`.

    Raises: ValueError for a limit or a pattern that can't be one, and for a session that doesn't pay.
    """
    tool = FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)

    async def fetch(**arguments: Any) -> dict[str, Any]:
        return (await tool.call_async(**arguments)).as_json()

    made = Tool[Any].from_schema(fetch, name=tool.name, description=tool.description, json_schema=tool.parameters)
    made.function_schema.validator = _OBJECT  # else arguments that are a list, or a text, would end the agent's run
    return made
