"""A whole tool conversation with a random model: whatever server or engine it is asked through."""

from __future__ import annotations

from typing import Any

from llmprod import AsyncClient, Message, Tool, ToolCallDone

WEATHER = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
    strict=False,
)
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'


async def asks_for_the_weather(client: AsyncClient, kind: str, *, stream: bool) -> None:
    """Require a tool call, and an answer to its result.

    The model's words are scripted by a choice of one, and vLLM's own parser makes a tool call of them.
    """
    extra = {kind: {"structured_outputs": {"choice": [CALL]}}}
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "auto", "max_tokens": 128, "extra": extra}
    if stream:
        async with client.stream("Weather in Oslo?", **options) as response:
            done = [event async for event in response if isinstance(event, ToolCallDone)]
        assert len(done) == 1
    else:
        response = await client.generate("Weather in Oslo?", **options)
    (call,) = response.tool_calls
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    assert response.finish_reason == "tool_calls"
    turns = [
        Message.user("Weather in Oslo?"),
        Message.assistant(*response.parts),
        Message.tool(call, {"sky": "grey"}),
    ]
    answer = await client.generate(turns, tools=[WEATHER], max_tokens=8)
    assert answer.complete
