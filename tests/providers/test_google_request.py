"""The bodies and headers that go to Gemini."""

from typing import Any

import pytest

from llmprod.context import Context
from llmprod.errors import InvalidArgument, MissingKey, UnsupportedParameter
from llmprod.provider import Capabilities
from llmprod.providers.google import Google, GoogleCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Refusal, Text, Thinking, ToolCall, ToolResult

NEW, OLD = "gemini-3-flash", "gemini-2.5-flash"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = Tool(name="weather", description="The weather", parameters=CITY)
PNG = Image(data=b"png", media_type="image/png")
PNG_PART = {"inlineData": {"mimeType": "image/png", "data": "cG5n"}}


def body(*messages: Message, model: str = NEW, **fields: Any) -> dict[str, Any]:
    request = GenerateRequest(messages=messages or (Message.user("Hello"),), **fields)
    return GoogleCodec(model).encode(request).body


def contents(*messages: Message, model: str = NEW) -> list[Any]:
    return body(*messages, model=model)["contents"]


def test_the_least() -> None:
    assert body() == {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}


def test_system_and_merged_turns() -> None:
    sent = body(
        Message.system("One"), Message.user("a"), Message.user("b"), Message.assistant("c"), Message.system("Two")
    )
    assert sent["systemInstruction"] == {"parts": [{"text": "One"}, {"text": "Two"}]}
    assert sent["contents"] == [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {"role": "model", "parts": [{"text": "c"}]},
    ]


def test_media() -> None:
    user = Message.user(
        PNG,
        Audio(data=b"wav", media_type="audio/wav"),
        File(data=b"%PDF", media_type="application/pdf", name="a.pdf"),
        Image(url="https://example.com/a.jpg?x=1"),
        File(url="https://example.com/files/abc"),
        Image(
            url="https://example.com/b", media_type="image/webp", meta={"google": {"mediaResolution": {"level": "LOW"}}}
        ),
    )
    assert contents(user)[0]["parts"] == [
        PNG_PART,
        {"inlineData": {"mimeType": "audio/wav", "data": "d2F2"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}},
        {"fileData": {"fileUri": "https://example.com/a.jpg?x=1", "mimeType": "image/jpeg"}},
        {"fileData": {"fileUri": "https://example.com/files/abc"}},
        {
            "fileData": {"fileUri": "https://example.com/b", "mimeType": "image/webp"},
            "mediaResolution": {"level": "LOW"},
        },
    ]


def test_tool_results() -> None:
    native = ToolCall("fc_1", "weather", '{"city":"Bern"}', meta={"google": {"thoughtSignature": "s=="}})
    nameless = ToolCall("llmprod_r_1", "clock", "{}", meta={"google": {}})
    sent = contents(
        Message.user("x"),
        Message.assistant(native, nameless),
        Message.tool("fc_1", {"sky": "blue"}),
        Message.tool(nameless, "no clock", is_error=True),
        Message("tool", (ToolResult("fc_1", (Text("See"), PNG)),)),
    )
    assert sent[1]["parts"] == [
        {"functionCall": {"id": "fc_1", "name": "weather", "args": {"city": "Bern"}}, "thoughtSignature": "s=="},
        {"functionCall": {"name": "clock", "args": {}}},
    ]
    assert sent[2] == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "fc_1", "name": "weather", "response": {"output": {"sky": "blue"}}}},
            {"functionResponse": {"name": "clock", "response": {"error": "no clock"}}},
            {
                "functionResponse": {
                    "id": "fc_1",
                    "name": "weather",
                    "response": {"output": "See"},
                    "parts": [PNG_PART],
                }
            },
        ],
    }
    with pytest.raises(InvalidArgument, match="name"):
        contents(Message.user("x"), Message.tool("unknown", "r"))
    broken = contents(Message("tool", (ToolResult("c", "{not json", "f"),)))
    assert broken[0]["parts"][0]["functionResponse"]["response"] == {"output": "{not json"}


def test_foreign_calls_carry_the_mark_for_a_missing_signature() -> None:
    one, two = ToolCall("call_1", "weather", "{broken"), ToolCall("call_2", "clock", "{}")
    turn = (Message.user("x"), Message.assistant(one, two), Message.tool(one, "r"), Message.tool(two, "r"))
    assert contents(*turn)[1]["parts"] == [
        {
            "functionCall": {"id": "call_1", "name": "weather", "args": {"INVALID_JSON": "{broken"}},
            "thoughtSignature": "skip_thought_signature_validator",
        },
        {"functionCall": {"id": "call_2", "name": "clock", "args": {}}},
    ]
    assert all("thoughtSignature" not in part for part in contents(*turn, model=OLD)[1]["parts"])


def test_foreign_parts() -> None:
    answer = Message.assistant(
        Thinking("Hm", meta={"anthropic": {"type": "thinking", "thinking": "Hm", "signature": "s"}}),
        Thinking("Hm", meta={"google": {"thought": True, "thoughtSignature": "s=="}}),
        Opaque("reasoning", {"openai": {"x": 1}}),
        Opaque("executableCode", {"google": {"executableCode": {"code": "1"}}}),
        Refusal("No."),
        Text(""),
        Text("Hi", meta={"anthropic": {"citations": []}}),
    )
    assert contents(Message.user("x"), answer)[1]["parts"] == [
        {"text": "Hm", "thought": True, "thoughtSignature": "s=="},
        {"executableCode": {"code": "1"}},
        {"text": "No."},
        {"text": "Hi"},
    ]


def test_nothing_to_send() -> None:
    for messages in ((Message.system("x"),), (Message.user(""),)):
        with pytest.raises(InvalidArgument, match="messages"):
            body(*messages)


def test_generation_config() -> None:
    sent = body(
        max_tokens=7, temperature=0.0, top_p=0.5, top_k=3, frequency_penalty=0.1, presence_penalty=0.2, seed=5,
        stop=("END",), logprobs=2,
    )  # fmt: skip
    assert sent["generationConfig"] == {
        "maxOutputTokens": 7,
        "temperature": 0.0,
        "topP": 0.5,
        "topK": 3,
        "frequencyPenalty": 0.1,
        "presencePenalty": 0.2,
        "seed": 5,
        "stopSequences": ["END"],
        "responseLogprobs": True,
        "logprobs": 2,
    }
    assert body(logprobs=0)["generationConfig"] == {"responseLogprobs": True}


def test_output_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}
    assert body(output=OutputSchema.of(schema))["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        (NEW, "minimal", {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
        (NEW, "max", {"thinkingLevel": "XHIGH", "includeThoughts": True}),
        ("gemini-flash-latest", "low", {"thinkingLevel": "LOW", "includeThoughts": True}),
        (OLD, "none", {"thinkingBudget": 0}),
        (OLD, "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
        ("models/gemini-2.5-pro", "max", {"thinkingBudget": 24_576, "includeThoughts": True}),
    ],
)
def test_reasoning_effort(model: str, effort: Any, expected: object) -> None:
    assert body(model=model, reasoning_effort=effort)["generationConfig"]["thinkingConfig"] == expected


def test_gemini_3_can_not_stop_thinking() -> None:
    with pytest.raises(UnsupportedParameter, match="reasoning_effort"):
        body(reasoning_effort="none")
    assert "generationConfig" not in body(reasoning_effort="none", drop_unsupported=True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("weather", {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tools(choice: str | None, expected: object) -> None:
    now = Tool(name="now", parameters={"type": "object", "properties": {}})
    sent = body(tools=(TOOL, now), tool_choice=choice)
    assert sent["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "The weather", "parametersJsonSchema": CITY},
                {"name": "now"},
            ]
        }
    ]
    assert sent.get("toolConfig", {}).get("functionCallingConfig") == expected


def test_strict_tools_are_validated() -> None:
    strict = Tool(name="f", parameters=CITY, strict=True)
    assert body(tools=(strict,))["toolConfig"] == {"functionCallingConfig": {"mode": "VALIDATED"}}
    assert body(tools=(strict,), tool_choice="f")["toolConfig"]["functionCallingConfig"]["mode"] == "ANY"


def test_extra_is_merged_deep_and_only_ours() -> None:
    extra = {
        "google": {
            "generationConfig": {"thinkingConfig": {"includeThoughts": False}, "mediaResolution": "LOW"},
            "safetySettings": [],
            "cachedContent": "cachedContents/1",
        },
        "openai": {"store": False},
    }
    sent = body(reasoning_effort="high", max_tokens=3, extra=extra)
    assert sent["generationConfig"] == {
        "maxOutputTokens": 3,
        "thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": False},
        "mediaResolution": "LOW",
    }
    assert sent["cachedContent"] == "cachedContents/1"
    assert "store" not in sent
    assert extra["google"]["generationConfig"]["thinkingConfig"] == {"includeThoughts": False}


def test_paths_and_embeddings() -> None:
    request = GenerateRequest(messages=(Message.user("x"),), stream=True)
    assert GoogleCodec(NEW).encode(request).path == "/models/gemini-3-flash:streamGenerateContent?alt=sse"
    tuned = GoogleCodec("tunedModels/my model").encode(GenerateRequest(messages=request.messages))
    assert tuned.path == "/tunedModels/my%20model:generateContent"
    embed = EmbedRequest(inputs=("a", "b"), dimensions=8, extra={"google": {"taskType": "RETRIEVAL_QUERY"}})
    wire = GoogleCodec("gemini-embedding-001").encode(embed)
    assert wire.path == "/models/gemini-embedding-001:batchEmbedContents"
    assert wire.body["requests"][1] == {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "b"}]},
        "outputDimensionality": 8,
        "taskType": "RETRIEVAL_QUERY",
    }
    assert len(wire.body["requests"]) == 2


async def test_capabilities() -> None:
    target = Google(NEW, api_key="k", base_url="http://127.0.0.1:9")
    can = target.capabilities
    assert {"seed", "logprobs", "frequency_penalty", "top_k"} <= can.parameters
    assert can.audio
    assert can.generate
    assert not can.embeddings
    for parallel in (True, False):
        request = GenerateRequest(messages=(Message.user("x"),), tools=(TOOL,), parallel_tool_calls=parallel)
        with pytest.raises(UnsupportedParameter, match="parallel_tool_calls"):
            await target.send(request, Context.new())
    with pytest.raises(UnsupportedParameter, match="embeddings"):
        await target.send(EmbedRequest(inputs=("x",)), Context.new())
    embedder = Google("gemini-embedding-001", api_key="k").capabilities
    assert (embedder.generate, embedder.embeddings) == (False, True)
    given = Google(NEW, api_key="k", capabilities=Capabilities(embeddings=True)).capabilities
    assert given.embeddings
    assert "parallel_tool_calls" not in given.parameters


def test_keys_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingKey, match="GEMINI_API_KEY or GOOGLE_API_KEY"):
        Google(NEW)
    assert Google(NEW, headers={"Authorization": "Bearer t"}).base_url.endswith("/v1beta")
    monkeypatch.setenv("GOOGLE_API_KEY", "secret")
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://gateway/v1/")
    target = Google(NEW)
    assert target.base_url == "http://gateway/v1"
    assert target.name == f"google:{NEW}"
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    "arguments", [{"model": ""}, {"model": 3}, {"base_url": "x"}, {"base_url": 3}, {"api_key": ""}]
)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Google(**{"model": NEW, "api_key": "k", **arguments})
