"""A tool that fetches and pays, for the OpenAI Agents SDK. Needs ``openai-agents``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents import FunctionTool

from .fetching import MAX_CHARS
from .tool import NAME, FetchTool, misused

if TYPE_CHECKING:
    from ..transport.session import Routeweiler


def fetch_tool(
    session: Routeweiler,
    *,
    max_sats_per_call: int | None,
    max_chars: int = MAX_CHARS,
    allow_origins: Sequence[str] | None = None,
    name: str = NAME,
) -> FunctionTool:
    """Return a tool that fetches with ``session``, and pays within ``max_sats_per_call`` and the session's budget.

    It returns the answer as JSON, and runs in a worker thread. For the arguments see `routeweiler_sync.agents.fetching.Rules`.

    Raises: ValueError for a limit or a pattern that can't be one, and for a session that doesn't pay.
    """
    tool = FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)

    async def invoke(context: Any, text: str) -> str:
        try:
            arguments = json.loads(text or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return misused("The arguments aren't a JSON object.", "Give a JSON object with a url.").as_text()
        return (await tool.call_async(**arguments)).as_text()

    return FunctionTool(
        name=tool.name,
        description=tool.description,
        params_json_schema=tool.parameters,
        on_invoke_tool=invoke,
        strict_json_schema=False,  # a strict schema can't have headers of any name
    )
