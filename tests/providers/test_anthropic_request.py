"""The bodies and headers that go to Anthropic."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from llmprod.context import Context
from llmprod.errors import InvalidArgument, MissingKey, UnsupportedParameter
from llmprod.provider import Capabilities
from llmprod.providers._http import HTTPOptions
from llmprod.providers.anthropic import Anthropic, AnthropicCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.schema import OutputSchema, Tool
from llmprod.types import (
    Audio,
    File,
    Image,
    Message,
    Opaque,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    coerce_messages,
)

NEW, OLD = "claude-opus-5-5", "claude-sonnet-4-5-20250929"
TOOL = Tool(
    name="weather", description="The weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}}
)
PNG = Image(data=b"png", media_type="image/png")


def body(*messages: Message, model: str = NEW, limit: int | None = None, **fields: Any) -> dict[str, Any]:
    request = GenerateRequest(messages=messages or (Message.user("Hello"),), **fields)
    return AnthropicCodec(model, max_tokens=limit).encode(request).body


def turns(*messages: Message, model: str = NEW) -> list[Any]:
    return body(*messages, model=model)["messages"]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_the_least() -> None:
    assert body() == {
        "model": NEW,
        "max_tokens": 16_384,
        "messages": [{"role": "user", "content": [text("Hello")]}],
    }


def test_system_messages_stand_apart() -> None:
    sent = body(Message.system("One"), Message.user("Hello"), Message.system("Two"))
    assert sent["system"] == [text("One"), text("Two")]
    assert sent["messages"] == [{"role": "user", "content": [text("Hello")]}]


def test_turns_of_one_role_are_merged_and_results_come_first() -> None:
    call, other = ToolCall("toolu_1", "weather", '{"city":"Bern"}'), ToolCall("toolu_2", "weather", "")
    sent = turns(
        Message.user("Hello"),
        Message.user("there", PNG),
        Message.assistant("Let me see", call),
        Message.assistant(other),
        Message.user("Quick!"),
        Message.tool(call, {"sky": "blue"}),
        Message.tool(other, "no city", is_error=True),
    )
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"}}
    assert sent == [
        {"role": "user", "content": [text("Hello"), text("there"), png]},
        {
            "role": "assistant",
            "content": [
                text("Let me see"),
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"sky":"blue"}'},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no city", "is_error": True},
                text("Quick!"),
            ],
        },
    ]


def test_media() -> None:
    sent = turns(
        Message.user(
            Image(url="https://example.com/a.png"),
            File(data=b"%PDF", media_type="application/pdf", name="a.pdf"),
            File(data="Grüezi".encode(), media_type="text/plain"),
            File(url="https://example.com/b.pdf"),
        )
    )
    assert sent[0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüezi"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/b.pdf"}},
    ]
    with pytest.raises(InvalidArgument, match=r"file\.media_type"):
        turns(Message.user(File(data=b"x", media_type="application/zip")))
    with pytest.raises(InvalidArgument, match="UTF-8"):
        turns(Message.user(File(data=b"\xff", media_type="text/plain")))


def test_results_with_images() -> None:
    sent = turns(Message.user("x"), Message.tool("toolu_1", (Text("See"), PNG, Text(""))))
    result = sent[0]["content"][0]
    assert result["content"][0] == text("See")
    assert result["content"][1]["type"] == "image"
    assert len(result["content"]) == 2


def test_what_a_format_adds_goes_into_the_block() -> None:
    mark = {"anthropic": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "openai": {"x": 1}}
    parts = (
        Text("Long", meta=mark),
        Image(data=b"p", media_type="image/png", meta=mark),
        File(url="https://example.com/b.pdf", meta=mark),
        ToolResult("toolu_1", "r", meta=mark),
    )
    for block in turns(Message("user", parts))[0]["content"]:
        assert block["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert "x" not in block


def test_thinking_goes_back_to_the_model_it_came_from_alone() -> None:
    wire = {"type": "thinking", "thinking": "Hm", "signature": "s=="}
    mine = Thinking("Hm", meta={"anthropic": wire, "anthropic.model": {"id": NEW}})
    dated = Thinking("Hm", meta={"anthropic": wire, "anthropic.model": {"id": "claude-sonnet-4-5-20250929"}})
    stored = Thinking("Hm", meta={"anthropic": wire})
    foreign = Thinking("Hm", meta={"google": {"thought": True}})
    answer = Message.assistant(mine, dated, stored, foreign, Thinking("bare"), "Hi")
    assert turns(Message.user("a"), answer)[1]["content"] == [wire, wire, text("Hi")]
    assert turns(Message.user("a"), answer, model="claude-sonnet-4-5")[1]["content"] == [wire, wire, text("Hi")]


def test_foreign_parts() -> None:
    sent = turns(
        Message.user("a"),
        Message.assistant(
            Refusal("No."),
            Opaque("reasoning", {"openai": {"x": 1}}),
            Text(""),
            ToolCall("functions.f:0", "f", "{broken"),
        ),
        Message("tool", (ToolResult("functions.f:0", "r"),)),
    )
    assert sent[1]["content"] == [
        text("No."),
        {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {"INVALID_JSON": "{broken"}},
    ]
    assert sent[2]["content"][0]["tool_use_id"] == "functions_f_0"


def test_nothing_to_send() -> None:
    for messages in ((Message.system("x"),), (Message.user(""),)):
        with pytest.raises(InvalidArgument, match="messages"):
            body(*messages)
    assert turns(Message.user("a"), Message.assistant(""), Message.user("b")) == [
        {"role": "user", "content": [text("a"), text("b")]}
    ]


def test_openai_style_messages() -> None:
    messages = coerce_messages([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}])
    assert body(*messages)["system"] == [text("Be brief")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "weather"}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": True},
            {"type": "any", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_tools(fields: dict[str, Any], expected: object) -> None:
    sent = body(model=OLD, tools=(TOOL,), **fields)
    assert sent["tools"] == [{"name": "weather", "description": "The weather", "input_schema": TOOL.parameters}]
    assert sent.get("tool_choice") == expected


def test_strict_tools_are_closed() -> None:
    tool = Tool(name="f", parameters={"properties": {"n": {"type": "integer", "minimum": 1}}}, strict=True)
    assert body(tools=(tool,))["tools"] == [
        {
            "name": "f",
            "input_schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "description": "minimum: 1"}},
                "additionalProperties": False,
            },
            "strict": True,
        }
    ]


class Line(BaseModel):
    """A line."""

    amount: float = Field(ge=0, description="In euros")
    kind: Literal["a", "b"]


class Bill(BaseModel):
    """A bill."""

    lines: list[Line] = Field(min_length=2)
    note: str | None = None


def test_output_schema_is_brought_into_the_subset_that_is_taken() -> None:
    given = OutputSchema.of(Bill)
    before = str(given.schema)
    sent = body(output=given, reasoning_effort="low")["output_config"]
    assert sent["effort"] == "low"
    schema = sent["format"]["schema"]
    assert sent["format"]["type"] == "json_schema"
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Line"]["additionalProperties"] is False
    assert schema["properties"]["lines"]["items"] == {"$ref": "#/$defs/Line"}
    assert schema["properties"]["lines"]["description"] == "minItems: 2"
    assert "minItems" not in schema["properties"]["lines"]
    assert schema["$defs"]["Line"]["properties"]["amount"]["description"] == "In euros (minimum: 0)"
    assert str(given.schema) == before
    loose = OutputSchema(name="o", schema={"type": "object", "properties": {}}, strict=False)
    assert body(output=loose)["output_config"]["format"]["schema"] == loose.schema
    opened = {"type": "object", "properties": {}, "additionalProperties": True}
    assert body(output=OutputSchema(name="o", schema=opened))["output_config"]["format"]["schema"] == opened


def test_sampling() -> None:
    sent = body(model=OLD, temperature=0.0, top_p=0.5, top_k=3, stop=("END",), max_tokens=7, stream=True)
    assert sent["temperature"] == 0
    assert sent["top_p"] == 0.5
    assert sent["top_k"] == 3
    assert sent["stop_sequences"] == ["END"]
    assert sent["max_tokens"] == 7
    assert sent["stream"] is True


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        (
            NEW,
            "minimal",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "low"}},
        ),
        (
            NEW,
            "xhigh",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "xhigh"}},
        ),
        ("claude-opus-4-6", "none", {"thinking": {"type": "disabled"}}),
        (OLD, "none", {"thinking": {"type": "disabled"}}),
        (OLD, "medium", {"thinking": {"type": "enabled", "budget_tokens": 8192}, "max_tokens": 16_384 + 8192}),
        ("glm-5", "low", {"thinking": {"type": "enabled", "budget_tokens": 4096}, "max_tokens": 8192}),
    ],
)
def test_reasoning_effort(model: str, effort: Any, expected: dict[str, Any]) -> None:
    assert body(model=model, reasoning_effort=effort) == {**body(model=model), **expected}


def test_a_thinking_budget_fits_into_the_limit() -> None:
    assert body(model=OLD, reasoning_effort="high", max_tokens=4000)["thinking"]["budget_tokens"] == 3000
    assert body(model=OLD, reasoning_effort="high", max_tokens=1100)["thinking"]["budget_tokens"] == 1024
    with pytest.raises(InvalidArgument, match="max_tokens"):
        body(model=OLD, reasoning_effort="high", max_tokens=1024)


def test_what_the_newest_models_refuse() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        body(reasoning_effort="none")
    assert caught.value.fields == ("reasoning_effort",)
    assert "thinking" not in body(reasoning_effort="none", drop_unsupported=True)
    for choice in ("required", "weather"):
        with pytest.raises(UnsupportedParameter, match="tool_choice"):
            body(tools=(TOOL,), tool_choice=choice)


def test_extra_is_merged_last_and_only_ours() -> None:
    extra = {
        "anthropic": {
            "output_config": {"effort": "max"},
            "metadata": {"user_id": "u"},
            "betas": ["a"],
            "max_tokens": 1,
        },
        "openai": {"store": False},
    }
    request = GenerateRequest(messages=(Message.user("x"),), output=OutputSchema.of(Line), extra=extra)
    wire = AnthropicCodec(NEW, beta=("b",)).encode(request)
    assert wire.body["output_config"]["effort"] == "max"
    assert "format" in wire.body["output_config"]
    assert wire.body["metadata"] == {"user_id": "u"}
    assert wire.body["max_tokens"] == 1
    assert "store" not in wire.body
    assert "betas" not in wire.body
    assert wire.headers == {"anthropic-beta": "b,a"}
    assert wire.path == "/v1/messages"
    assert AnthropicCodec(NEW).encode(GenerateRequest(messages=(Message.user("x"),))).headers == {}


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sampling", "prefill", "limit"),
    [
        ("claude-3-haiku-20240307", True, True, 4096),
        ("claude-3-5-sonnet-20241022", True, True, 4096),
        ("claude-3-7-sonnet-20250219", True, True, 16_384),
        ("claude-opus-4-20250514", True, True, 16_384),
        ("claude-haiku-4-5", True, True, 16_384),
        ("claude-sonnet-4-6", True, False, 16_384),
        ("us.anthropic.claude-opus-4-7-v1:0", False, False, 16_384),
        ("anthropic/claude-sonnet-5", False, False, 16_384),
        ("claude-haiku-5-5", False, False, 16_384),
        ("claude-fable-5", False, False, 16_384),
        ("claude-mythos-preview", False, False, 16_384),
        ("claude-opus-6", False, False, 16_384),
        ("Qwen/Qwen3-8B", True, False, 4096),
    ],
)
def test_models(model: str, sampling: bool, prefill: bool, limit: int) -> None:
    can = Anthropic(model, api_key="k").capabilities
    assert ("temperature" in can.parameters, can.prefill) == (sampling, prefill)
    assert body(model=model)["max_tokens"] == limit
    assert body(model=model, limit=9)["max_tokens"] == 9
    assert body(model=model, limit=9, max_tokens=8)["max_tokens"] == 8


def test_capabilities() -> None:
    can = Anthropic(OLD, api_key="k").capabilities
    for name in ("seed", "frequency_penalty", "presence_penalty", "logprobs"):
        assert name not in can.parameters
    assert not can.audio
    assert not can.embeddings
    assert can.images
    assert can.files
    assert "reasoning_effort" not in Anthropic("claude-3-5-haiku-latest", api_key="k").capabilities.parameters
    given = Anthropic(NEW, api_key="k", capabilities=Capabilities(context_window=9, prefill=True)).capabilities
    assert given.context_window == 9
    assert given.prefill
    assert "temperature" in given.parameters
    assert "seed" not in given.parameters
    assert not given.audio


async def test_what_can_not_be_honoured_is_an_error_before_anything_is_sent() -> None:
    target = Anthropic(NEW, api_key="k", base_url="http://127.0.0.1:9")
    for fields in ({"temperature": 0.5}, {"seed": 1}, {"logprobs": 0}):
        request = GenerateRequest(messages=(Message.user("x"),), **fields)
        with pytest.raises(UnsupportedParameter):
            await target.send(request, Context.new())
    audio = GenerateRequest(messages=(Message.user(Audio(data=b"x", media_type="audio/wav")),))
    with pytest.raises(UnsupportedParameter, match="audio"):
        await target.send(audio, Context.new())
    with pytest.raises(UnsupportedParameter, match="embeddings"):
        await target.send(EmbedRequest(inputs=("x",)), Context.new())


def test_keys_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    with pytest.raises(MissingKey, match="ANTHROPIC_API_KEY"):
        Anthropic(NEW)
    assert Anthropic(NEW, headers={"Authorization": "Bearer t"}).base_url == "https://api.anthropic.com"
    assert Anthropic(NEW, base_url="http://localhost:8000/v1/").base_url == "http://localhost:8000"
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://gateway/anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    target = Anthropic(NEW)
    assert target.base_url == "http://gateway/anthropic"
    assert target.name == f"anthropic:{NEW}"
    assert "sk-secret" not in repr(target) + str(vars(target).get("_headers"))


@pytest.mark.parametrize(
    "arguments", [{"model": ""}, {"model": 3}, {"base_url": "ftp://x"}, {"base_url": 3}, {"max_tokens": 0}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Anthropic(**{"model": NEW, "api_key": "k", **arguments})
    with pytest.raises(InvalidArgument):
        Anthropic(NEW, api_key=" ", http=HTTPOptions())
