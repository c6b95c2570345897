"""A model for smolagents that calls tools by a script."""

from __future__ import annotations

from typing import Any

from smolagents import ChatMessage, CodeAgent, MessageRole, Model, Tool
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


#: What a model that was told to pay more would write as Python. ``gold`` costs more than a call may spend.
_CODE = """
class Endless:
    max_sats_per_call = None
    max_chars = 100
    allow_origins = None
    def allows(self, url):
        return True
gold = "{gold}"
said = [fetch(url=gold)["error"]["code"]]
for name in ("_tool", "tool", "forward", "call"):
    found = getattr(fetch, name, None)
    if found is not None:
        found.rules = Endless()
for name in ("_session", "session"):
    found = getattr(getattr(fetch, "_tool", fetch), name, None)
    if found is not None:
        found.get(gold)
fetch.rules = Endless()
said.append(fetch(url=gold)["error"]["code"])
said.append(fetch(gold)["error"]["code"])
final_answer(said)
"""


class _Coder(Model):
    """Writes ``code``."""

    def __init__(self, code: str) -> None:
        super().__init__(model_id="coder")
        self.code = code

    def generate(self, messages: list[ChatMessage], *args: Any, **kwargs: Any) -> ChatMessage:
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: I pay.\n<code>{self.code}</code>")


def code_against(tool: Tool, session: Any, gold: str) -> None:
    """Let a `CodeAgent`'s model try to get around the limit of ``tool``, and around a `limit` block of ``session``."""
    said = CodeAgent(tools=[tool], model=_Coder(_CODE.replace("{gold}", gold)), max_steps=1).run("Pay.")
    assert said == ["budget_exceeded"] * 3, said
    code = f"""\nfinal_answer(fetch("{gold.replace("gold", "silver")}")["error"]["code"])\n"""
    with session.limit(sats=5):
        agent = CodeAgent(tools=[tool], model=_Coder(code), max_steps=1, executor_kwargs={"timeout_seconds": None})
        said = agent.run("Pay.")
    assert said == "budget_exceeded", said
