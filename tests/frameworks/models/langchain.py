"""A chat model for LangChain that calls tools by a script."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class Scripted(BaseChatModel):
    """Makes the calls of each round of ``rounds``, then says that it is done. ``heard``: what it was told, as one text."""

    rounds: list[list[dict[str, Any]]]
    heard: str = ""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.heard = "\n".join(str(each.content) for each in messages if isinstance(each, ToolMessage))
        turn = sum(isinstance(each, AIMessage) for each in messages)
        if turn == len(self.rounds):
            message = AIMessage("done")
        else:
            calls = [
                {"name": "fetch", "args": asked, "id": f"call-{turn}-{at}", "type": "tool_call"}
                for at, asked in enumerate(self.rounds[turn])
            ]
            message = AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])
