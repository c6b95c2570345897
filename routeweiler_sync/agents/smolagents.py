"""A tool that fetches and pays, for smolagents. Needs ``smolagents``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolagents import Tool

from .fetching import MAX_CHARS
from .tool import NAME, PARAMETERS, FetchTool

if TYPE_CHECKING:
    from ..transport.session import Routeweiler

_TYPES = {"headers": "object", "body": "string"}
#: The arguments as smolagents wants them, which knows one type for each.
_INPUTS = {
    name: {
        "type": _TYPES.get(name) or schema["type"],
        "description": schema["description"],
        **({} if name == "url" else {"nullable": True}),
    }
    for name, schema in PARAMETERS["properties"].items()
}


def fetch_tool(
    session: Routeweiler,
    *,
    max_sats_per_call: int | None,
    max_chars: int = MAX_CHARS,
    allow_origins: Sequence[str] | None = None,
    name: str = NAME,
) -> Tool:
    """Return a tool that fetches with ``session``, and pays within ``max_sats_per_call`` and the session's budget.

    It returns the answer as a dict. For the arguments see `routeweiler_sync.agents.fetching.Rules`.

    Raises: ValueError for a limit or a pattern that can't be one, and for a session that doesn't pay.
    """
    tool = FetchTool(session, max_sats_per_call=max_sats_per_call, max_chars=max_chars, allow_origins=allow_origins, name=name)

    class Fetch(Tool):
        """It pays from this process, so it can't be sent to another one, and ``push_to_hub`` has nothing to push.

        No attribute leads to session or limits: the Python that a `CodeAgent`'s model writes can read and set attributes.
        """

        skip_forward_signature_validation = True
        name, description, inputs, output_type = tool.name, tool.description, _INPUTS, "object"

        def forward(self, *given: Any, **arguments: Any) -> dict[str, Any]:
            """Fetch as the arguments say."""
            return tool.call(*given, **arguments).as_json()

    return Fetch()
