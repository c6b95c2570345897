"""A model for the OpenAI Agents SDK that calls tools by a script."""

from __future__ import annotations

import json
from typing import Any

from agents import Model, ModelResponse, Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


class Scripted(Model):
    """Makes the calls of each round of ``rounds``, then says that it is done. ``heard``: what it was told, as one text."""

    def __init__(self, *, rounds: list[list[dict[str, Any]]]) -> None:
        self.rounds, self.turn, self.heard = rounds, 0, ""

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
        turn, self.turn = self.turn, self.turn + 1
        self.heard = "\n".join(each["output"] for each in input if each.get("type") == "function_call_output")
        output: list[Any]
        if turn == len(self.rounds):
            text = ResponseOutputText(annotations=[], text="done", type="output_text")
            output = [ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")]
        else:
            output = [
                ResponseFunctionToolCall(
                    arguments=json.dumps(asked), call_id=f"call-{turn}-{at}", name="fetch", type="function_call"
                )
                for at, asked in enumerate(self.rounds[turn])
            ]
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError
