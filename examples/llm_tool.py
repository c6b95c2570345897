"""Give a language model a tool that buys pages: the loop of function calling, with a limit that the model can't change.

The model is scripted, so the example needs no network. Put the client of your provider in its place: messages, tool calls and tool
results have the form that most of them understand.

It prints:

    tool fetch {"path": "/satellite"}
     -> {"error": "BudgetExceededError", "spent": false}
    tool fetch {"path": "/forecast"}
     -> {"status": 200, "text": "Berlin, 21 degrees, rain at noon", "paid_sat": 11}
    answer: Take an umbrella: Berlin, 21 degrees, rain at noon
    the question has cost 11 sat
"""

from __future__ import annotations

import json
from typing import Any

from world import world

from routeweiler_sync import BudgetEnvelope, PaidResponse, RequestException, Routeweiler, RouteweilerError, payment_of

#: What all questions of a day may cost. Only the program sets it.
BUDGET = BudgetEnvelope("assistant", per_day_minor_units=500)
SATS_PER_QUESTION = 25
TURNS_MAX = 8
CHARS_MAX = 2_000
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "fetch",
            "description": "Fetch a page of the weather service. /forecast costs 10 sat, /satellite 400 sat.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
]


def fetch(session: Routeweiler, base_url: str, path: str) -> dict[str, Any]:
    """Run the tool. Errors are results too: the model reads them, and whether they have cost anything."""
    try:
        # The server is the program's choice, the path the model's: `//evil.example` would be a path too.
        response = session.get(f"{base_url}/{path.lstrip('/')}", timeout=30, allow_redirects=False)
    except RouteweilerError as error:
        return {"error": type(error).__name__, "spent": error.spent}
    except RequestException as error:
        return {"error": type(error).__name__}
    return {"status": response.status_code, "text": response.text[:CHARS_MAX], "paid_sat": sats(response)}


def sats(response: PaidResponse) -> int:
    """Return what this response has cost, routing included."""
    payment = payment_of(response)
    return 0 if payment is None or payment.reused else (payment.amount_msat + payment.fee_msat) // 1000


def ask(session: Routeweiler, base_url: str, question: str) -> str:
    """Return the model's answer. The question costs at most `SATS_PER_QUESTION`, whatever the model asks for."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    with session.limit(sats=SATS_PER_QUESTION):
        for _ in range(TURNS_MAX):
            message = scripted_model(messages, TOOLS)
            messages.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            for call in message["tool_calls"]:
                arguments = call["function"]["arguments"]
                result = json.dumps(fetch(session, base_url, json.loads(arguments)["path"]))
                print(f"tool {call['function']['name']} {arguments}\n -> {result}")
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return "I have asked too often."


def scripted_model(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Say what a model would: try the picture, read that it is too dear, take the forecast."""
    results = [json.loads(message["content"]) for message in messages if message["role"] == "tool"]
    if results and "text" in results[-1]:
        return {"role": "assistant", "content": f"Take an umbrella: {results[-1]['text']}"}
    path = "/forecast" if results else "/satellite"
    function = {"name": tools[0]["function"]["name"], "arguments": json.dumps({"path": path})}
    call = {"id": f"call_{len(results)}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


if __name__ == "__main__":
    with world(BUDGET, content=b"Berlin, 21 degrees, rain at noon") as (session, shop):
        shop.add_service("/satellite", name="satellite", price_msat=400_000)
        print("answer:", ask(session, shop.base_url, "What do I need in Berlin today?"))
        print(f"the question has cost {session.spent_msat // 1000} sat")
