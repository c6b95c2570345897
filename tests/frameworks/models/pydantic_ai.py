"""A model for PydanticAI that calls tools by a script."""

from __future__ import annotations

import json
from typing import Any

from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel


class Scripted(FunctionModel):
    """Makes the calls of each round of ``rounds``, then says that it is done. ``heard``: what it was told, as one text."""

    def __init__(self, *, rounds: list[list[dict[str, Any]]]) -> None:
        super().__init__(self._answer)
        self.rounds, self.heard = rounds, ""

    def _answer(self, messages: Any, info: Any) -> ModelResponse:
        turn = sum(isinstance(each, ModelResponse) for each in messages)
        parts = [part for each in messages if isinstance(each, ModelRequest) for part in each.parts]
        self.heard = "\n".join(json.dumps(part.content) for part in parts if isinstance(part, ToolReturnPart))
        if turn == len(self.rounds):
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("fetch", json.dumps(asked)) for asked in self.rounds[turn]])
