"""A tool that fetches and pays, for LangChain and LangGraph. Needs ``langchain-core``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.tools import StructuredTool

from .fetching import MAX_CHARS
from .tool import NAME, FetchTool

if TYPE_CHECKING:
    from ..transport.session import Routeweiler


def fetch_tool(
    session: Routeweiler,
    *,
    max_sats_per_call: int | None,
    max_chars: int = MAX_CHARS,
    allow_origins: Sequence[str] | None = None,
    name: str = NAME,
) -> StructuredTool:
    """Return a tool that fetches with ``session``, and pays within ``max_sats_per_call`` and the session's budget.

    Its message has the answer as JSON; the message's ``artifact`` has the same as a dict. Called with ``ainvoke``, it runs in a
    worker thread. For the arguments see `routeweiler_sync.agents.fetching.Rules`.

    Raises: ValueError for a limit or a pattern that can't be one, and for a session that doesn't pay.
    """
    tool = FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)

    def fetch(**arguments: Any) -> tuple[str, dict[str, Any]]:
        answer = tool.call(**arguments)
        return answer.as_text(), answer.as_json()

    async def fetch_async(**arguments: Any) -> tuple[str, dict[str, Any]]:
        answer = await tool.call_async(**arguments)
        return answer.as_text(), answer.as_json()

    return StructuredTool.from_function(
        func=fetch,
        coroutine=fetch_async,
        name=tool.name,
        description=tool.description,
        args_schema=tool.parameters,
        response_format="content_and_artifact",
    )
