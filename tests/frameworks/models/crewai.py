"""A model for CrewAI that calls tools by a script."""

from __future__ import annotations

import json
from typing import Any

from crewai import BaseLLM
from pydantic import PrivateAttr


class Scripted(BaseLLM):
    """Makes the calls of ``rounds`` one by one, then says that it is done. ``heard``: what it was told, as one text."""

    model: str = "scripted"
    heard: str = ""
    _calls: list[dict[str, Any]] = PrivateAttr()
    _turn: int = PrivateAttr(0)

    def __init__(self, *, rounds: list[list[dict[str, Any]]]) -> None:
        super().__init__(model="scripted")
        self._calls = [asked for each in rounds for asked in each]

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        turn, self._turn = self._turn, self._turn + 1
        self.heard = messages if isinstance(messages, str) else "\n".join(str(each["content"]) for each in messages)
        if turn == len(self._calls):
            return "Thought: I now know the final answer\nFinal Answer: done"
        return f"Thought: I fetch.\nAction: fetch\nAction Input: {json.dumps(self._calls[turn])}"

    def supports_function_calling(self) -> bool:
        return False
