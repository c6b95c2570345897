"""A model for smolagents that calls tools by a script."""

from __future__ import annotations

from typing import Any

from smolagents import ChatMessage, MessageRole, Model
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction


class Scripted(Model):
    """Makes the calls of each round of ``rounds``, then says that it is done. ``heard``: what it was told, as one text."""

    def __init__(self, *, rounds: list[list[dict[str, Any]]]) -> None:
        super().__init__(model_id="scripted")
        self.rounds, self.turn, self.heard = rounds, 0, ""

    def generate(self, messages: list[ChatMessage], *args: Any, **kwargs: Any) -> ChatMessage:
        turn, self.turn = self.turn, self.turn + 1
        told = [each for each in messages if each.role == MessageRole.TOOL_RESPONSE]
        self.heard = "\n".join(part["text"] for each in told for part in each.content)
        if turn == len(self.rounds):
            calls = [("final_answer", {"answer": "done"})]
        else:
            calls = [("fetch", asked) for asked in self.rounds[turn]]
        made = [
            ChatMessageToolCall(ChatMessageToolCallFunction(arguments, name), id=f"call-{turn}-{at}", type="function")
            for at, (name, arguments) in enumerate(calls)
        ]
        return ChatMessage(role=MessageRole.ASSISTANT, content="", tool_calls=made)
