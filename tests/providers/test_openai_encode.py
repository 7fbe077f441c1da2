"""Requests as they go out: Chat Completions and Responses, for each feature, and each profile's own ways."""

import copy
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from llmprod.errors import InvalidArgument, UnsupportedParameter
from llmprod.providers._openai_strict import strict_schema
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_compatible import PROFILES, OpenAICompatible
from llmprod.providers.openai_responses import ResponsesCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Refusal, Text, Thinking, ToolCall, ToolResult
from tests.providers.codec_drive import streamed, whole
from tests.providers.openai_scripts import CHAT, FUNCTION, OTHERS, REASONING, RESPONSES, completion, responses_stream

CHAT_CODEC = ChatCodec("m")
RESPONSES_CODEC = ResponsesCodec("m")
HELLO = Message.user("Hello")
WEATHER = Tool(
    name="weather",
    description="Tells the weather.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
PNG = Image(b"png", media_type="image/png")


class City(BaseModel):
    """A city."""

    name: str
    people: int = 0


def ask(*messages: Message, **fields: Any) -> GenerateRequest:
    return GenerateRequest(messages=messages or (HELLO,), **fields)


def chat(*messages: Message, profile: str | None = None, **fields: Any) -> dict[str, Any]:
    codec = CHAT_CODEC if profile is None else ChatCodec("m", PROFILES[profile])
    return codec.encode(ask(*messages, **fields)).body


def said(*messages: Message, profile: str | None = None) -> list[dict[str, Any]]:
    return chat(*messages, profile=profile)["messages"]


def responses(*messages: Message, **fields: Any) -> dict[str, Any]:
    return RESPONSES_CODEC.encode(ask(*messages, **fields)).body


def items(*messages: Message) -> list[dict[str, Any]]:
    return responses(*messages)["input"]


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_the_least_chat_request() -> None:
    wire = CHAT_CODEC.encode(ask())
    assert wire.path == "/chat/completions"
    assert wire.body == {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_every_chat_parameter() -> None:
    body = chat(
        stream=True,
        tools=(WEATHER,),
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        seed=7,
        stop=("END", "\n"),
        logprobs=3,
        reasoning_effort="low",
        extra={
            "openai": {"service_tier": "flex", "stream_options": {"include_obfuscation": False}},
            "ollama": {"x": 1},
        },
    )
    del body["messages"]
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather.",
                    "parameters": WEATHER.parameters,
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "seed": 7,
        "stop": ["END", "\n"],
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "low",
        "service_tier": "flex",
    }


def test_zero_is_sent() -> None:
    body = chat(temperature=0, seed=0, logprobs=0)
    assert (body["temperature"], body["seed"], body["logprobs"]) == (0, 0, True)
    assert "top_logprobs" not in body


def test_the_least_responses_request() -> None:
    wire = RESPONSES_CODEC.encode(ask())
    assert wire.path == "/responses"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    assert wire.body == {"model": "m", "input": [item], "store": False}


def test_every_responses_parameter() -> None:
    body = responses(
        stream=True,
        tools=(WEATHER,),
        tool_choice="weather",
        parallel_tool_calls=True,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        logprobs=3,
        reasoning_effort="high",
        extra={"openai": {"store": True, "reasoning": {"summary": "auto"}}},
    )
    del body["input"]
    assert body == {
        "model": "m",
        "stream": True,
        "store": True,
        "tools": [
            {
                "type": "function",
                "name": "weather",
                "description": "Tells the weather.",
                "parameters": WEATHER.parameters,
                "strict": False,
            }
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": True,
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "top_logprobs": 3,
    }


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_tool_choice(choice: str) -> None:
    assert chat(tools=(WEATHER,), tool_choice=choice)["tool_choice"] == choice
    assert responses(tools=(WEATHER,), tool_choice=choice)["tool_choice"] == choice


def test_one_tool_forced() -> None:
    body = chat(tools=(WEATHER,), tool_choice="weather")
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("extra", [{"n": 2}, {"n": 0}, {"stream": True}, {"stream": False}])
def test_extra_may_not_change_how_the_answer_is_read(extra: dict[str, Any]) -> None:
    for codec in (CHAT_CODEC, RESPONSES_CODEC):
        with pytest.raises(InvalidArgument, match=r"extra\['openai'\]"):
            codec.encode(ask(extra={"openai": extra}))
    assert chat(extra={"openai": {"n": 1}})["n"] == 1


def test_extra_is_left_as_it_was() -> None:
    extra = {"openai": {"stream_options": {"include_obfuscation": False}}}
    before = copy.deepcopy(extra)
    profile = PROFILES["vllm"].stream_options
    chat(stream=True, extra=extra)
    chat(stream=True, profile="vllm", extra={"vllm-server": {"stream_options": {"x": 1}}})
    assert extra == before
    assert profile == {"include_usage": True, "continuous_usage_stats": True}


# ---- schemas --------------------------------------------------------------------------------------------------------

STRICT_CITY = {
    "type": "object",
    "title": "City",
    "description": "A city.",
    "properties": {"name": {"type": "string", "title": "Name"}, "people": {"type": "integer", "title": "People"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}


def test_output_is_strict() -> None:
    output = OutputSchema.of(City)
    before = copy.deepcopy(output.schema)
    want = {"name": "City", "schema": STRICT_CITY, "strict": True}
    assert chat(output=output)["response_format"] == {"type": "json_schema", "json_schema": want}
    assert responses(output=output)["text"] == {"format": {"type": "json_schema", **want}}
    assert output.schema == before


def test_output_that_can_not_be_strict() -> None:
    output = OutputSchema.of(TypeAdapter(dict[str, int]).json_schema(), name="counts")
    sent = chat(output=output)["response_format"]["json_schema"]
    assert (sent["strict"], sent["schema"]) == (False, output.schema)


def test_output_that_need_not_be_strict() -> None:
    output = replace(OutputSchema.of(City), strict=False)
    sent = chat(output=output)["response_format"]["json_schema"]
    assert (sent["strict"], sent["schema"]) == (False, output.schema)


def test_strict_tools() -> None:
    function = chat(tools=(replace(WEATHER, strict=True),))["tools"][0]["function"]
    assert function["strict"] is True
    assert function["parameters"]["additionalProperties"] is False
    open_ended = Tool(name="note", parameters={"type": "object", "additionalProperties": True}, strict=True)
    assert chat(tools=(open_ended,))["tools"][0]["function"] == {
        "name": "note",
        "parameters": open_ended.parameters,
        "strict": False,
    }
    bare = chat(tools=(Tool(name="now", parameters={"properties": {}}, strict=True),))["tools"][0]["function"]
    assert bare["parameters"] == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


class Kind(StrEnum):
    TOWN = "town"


class Node(BaseModel):
    value: Annotated[str, Field(min_length=1, max_length=9, description="What it holds.")]
    children: list["Node"] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1)] = 9


class Dog(BaseModel):
    kind: Literal["dog"]


class Zoo(BaseModel):
    kind: Annotated[Kind, Field(description="What sort.")] = Kind.TOWN
    star: Annotated[Cat | Dog, Field(discriminator="kind")]
    note: str | None = None


def _closed(schema: Any) -> bool:
    """Every object closed and all its properties required; nothing that strict mode refuses."""
    if isinstance(schema, list):
        return all(map(_closed, schema))
    if not isinstance(schema, dict):
        return True
    if "properties" in schema and (
        schema.get("additionalProperties") is not False or schema["required"] != list(schema["properties"])
    ):
        return False
    if not {"default", "oneOf", "discriminator", "minLength", "maxLength"}.isdisjoint(schema):
        return False
    if "$ref" in schema and len(schema) > 1:
        return False
    return all(map(_closed, schema.values()))


@pytest.mark.parametrize("model", [City, Node, Zoo, Cat])
def test_strict_schemas_of_models(model: type[BaseModel]) -> None:
    source = model.model_json_schema()
    before = copy.deepcopy(source)
    converted = strict_schema(source)
    assert converted is not None
    assert converted["type"] == "object"
    assert _closed(converted)
    assert source == before


def test_strict_schema_tells_what_it_can_not_enforce() -> None:
    converted = strict_schema(Node.model_json_schema())
    assert converted is not None
    assert converted["properties"]["value"]["description"] == "What it holds. (maxLength: 9, minLength: 1)"
    uri = strict_schema({"type": "object", "properties": {"u": {"type": "string", "format": "uri"}}})
    assert uri is not None
    assert uri["properties"]["u"] == {"type": "string", "description": "(format: uri)"}


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "array", "prefixItems": [{"type": "string"}]},
        {"not": {"type": "null"}},
        {"allOf": [{"type": "string"}, {"minLength": 3}]},
        {"if": {}, "then": {}},
        {"type": "array", "items": True},
    ],
)
def test_schemas_that_have_no_strict_form(inner: dict[str, Any]) -> None:
    assert strict_schema({"type": "object", "properties": {"x": inner}}) is None


@pytest.mark.parametrize(
    "root", [{"type": "array", "items": {"type": "string"}}, {"type": "string"}, {"anyOf": []}, {}]
)
def test_the_root_must_be_an_object(root: dict[str, Any]) -> None:
    assert strict_schema(root) is None


def test_allof_of_one_is_that_one() -> None:
    converted = strict_schema({"type": "object", "properties": {"x": {"allOf": [{"type": "string"}], "title": "X"}}})
    assert converted is not None
    assert converted["properties"]["x"] == {"type": "string", "title": "X"}


def test_what_fits_the_strict_schema_fits_the_callers() -> None:
    with pytest.raises(ValidationError):
        Zoo.model_validate({})
    Zoo.model_validate({"kind": "town", "star": {"kind": "dog"}, "note": None})


# ---- messages -------------------------------------------------------------------------------------------------------


def test_roles() -> None:
    history = (Message.system("Be brief."), HELLO, Message.assistant("Hi."), Message.user("Noon?"))
    assert [(message["role"], message["content"]) for message in said(*history)] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "Noon?"),
    ]
    assert items(*history)[0] == {
        "type": "message",
        "role": "system",
        "content": [{"type": "input_text", "text": "Be brief."}],
    }
    assert items(*history)[2] == {"role": "assistant", "content": "Hi."}


def test_media_in_chat() -> None:
    message = Message.user(
        "Look.",
        PNG,
        Image(url="https://x/y.png", detail="low"),
        Audio(b"wav", media_type="audio/x-wav"),
        Audio(b"mp3", media_type="audio/mpeg"),
        File(b"pdf", media_type="application/pdf", name="a.pdf"),
        File(b"pdf", media_type="application/pdf"),
    )
    assert said(message)[0]["content"] == [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "d2F2", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "bXAz", "format": "mp3"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"}},
        {"type": "file", "file": {"filename": "file.pdf", "file_data": "data:application/pdf;base64,cGRm"}},
    ]


def test_media_in_responses() -> None:
    message = Message.user(PNG, File(b"pdf", media_type="application/pdf"), File(url="https://x/a.pdf"))
    assert items(message)[0]["content"] == [
        {"type": "input_image", "image_url": "data:image/png;base64,cG5n", "detail": "auto"},
        {"type": "input_file", "filename": "file.pdf", "file_data": "data:application/pdf;base64,cGRm"},
        {"type": "input_file", "file_url": "https://x/a.pdf"},
    ]


@pytest.mark.parametrize("part", [Audio(url="https://x/a.wav"), File(url="https://x/a.pdf")])
def test_urls_that_chat_does_not_take(part: Audio | File) -> None:
    with pytest.raises(UnsupportedParameter, match="openai can't honour"):
        chat(Message.user(part))


def test_urls_that_some_servers_take() -> None:
    audio = said(Message.user(Audio(url="https://x/a.wav")), profile="vllm")[0]["content"]
    assert audio == [{"type": "audio_url", "audio_url": {"url": "https://x/a.wav"}}]
    file = said(Message.user(File(url="https://x/a.pdf")), profile="openrouter")[0]["content"]
    assert file[0]["file"]["file_data"] == "https://x/a.pdf"


def test_responses_take_no_sound() -> None:
    with pytest.raises(UnsupportedParameter, match="audio"):
        responses(Message.user(Audio(b"wav", media_type="audio/wav")))


CALLS = (ToolCall("call_a", "weather", '{"city":"Bern"}'), ToolCall("call_b", "clock", ""))


def test_tool_calls_and_results() -> None:
    history = (
        HELLO,
        Message.assistant("Let me see.", *CALLS),
        Message.tool(CALLS[0], {"sun": True}),
        Message.tool("call_b", "12"),
    )
    assert said(*history)[1:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
                {"id": "call_b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": '{"sun":true}'},
        {"role": "tool", "tool_call_id": "call_b", "content": "12"},
    ]
    assert items(*history)[1:] == [
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_a", "name": "weather", "arguments": '{"city":"Bern"}'},
        {"type": "function_call", "call_id": "call_b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": '{"sun":true}'},
        {"type": "function_call_output", "call_id": "call_b", "output": "12"},
    ]


def test_images_from_tools() -> None:
    results = (Message.tool("call_a", (Text("A map:"), PNG)), Message.tool("call_b", "12"))
    history = (HELLO, Message.assistant(*CALLS), *results, Message.user("Well?"))
    sent = said(*history)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert sent[2]["content"] == "A map:"
    assert sent[4]["content"] == [
        {"type": "text", "text": "Images returned by tool call call_a:"},
        {"type": "image_url", "image_url": {"url": PNG.data_url}},
    ]
    assert items(*history)[3]["output"] == [
        {"type": "input_text", "text": "A map:"},
        {"type": "input_image", "image_url": PNG.data_url, "detail": "auto"},
    ]


def test_a_tool_result_in_a_user_message() -> None:
    history = (HELLO, Message.assistant(*CALLS[:1]), Message("user", (ToolResult("call_a", "x"), Text("Well?"))))
    assert [message["role"] for message in said(*history)] == ["user", "assistant", "tool", "user"]
    assert [item["type"] for item in items(*history)[1:]] == ["function_call", "function_call_output", "message"]


@pytest.mark.parametrize(
    "bad",
    [
        Message("user", (ToolCall("a", "f"),)),
        Message("assistant", (ToolResult("a", "x"),)),
        Message("user", (Thinking("x"),)),
    ],
)
def test_parts_in_the_wrong_place(bad: Message) -> None:
    for encode in (chat, responses):
        with pytest.raises(InvalidArgument, match=r"messages\[1\]"):
            encode(HELLO, bad)


def test_what_others_thought_is_left_out() -> None:
    foreign = Thinking("Secret.", meta={"anthropic": {"type": "thinking", "signature": "x"}})
    opaque = Opaque("server_tool_use", meta={"anthropic": {"type": "server_tool_use"}})
    assert said(HELLO, Message.assistant(foreign, opaque, "Hi."))[1] == {"role": "assistant", "content": "Hi."}
    assert items(HELLO, Message.assistant(foreign, opaque, "Hi."))[1:] == [{"role": "assistant", "content": "Hi."}]
    assert len(said(HELLO, Message.assistant(foreign))) == 1
    assert len(items(HELLO, Message.assistant(foreign))) == 1
    for encode in (chat, responses):
        with pytest.raises(InvalidArgument, match="messages"):
            encode(Message.assistant(foreign))


def test_refusals() -> None:
    history = (HELLO, Message.assistant(Refusal("No.")))
    assert said(*history)[1] == {"role": "assistant", "content": None, "refusal": "No."}
    assert said(*history, profile="vllm")[1] == {"role": "assistant", "content": "No."}
    assert items(*history)[1] == {"role": "assistant", "content": "No."}


def test_sound_that_was_said() -> None:
    answer = whole(CHAT_CODEC, CHAT["sound"]).parts
    assert said(HELLO, Message.assistant(*answer))[1] == {
        "role": "assistant",
        "content": None,
        "audio": {"id": "audio_1"},
    }
    assert said(HELLO, Message.assistant(*answer), profile="vllm")[1]["content"] == "Hello!"
    assert items(HELLO, Message.assistant(*answer))[1]["content"] == "Hello!"
    with pytest.raises(UnsupportedParameter):
        said(HELLO, Message.assistant(Audio(b"x", media_type="audio/wav")), profile="vllm")


def test_thinking_is_echoed_where_servers_want_it() -> None:
    plain = whole(ChatCodec("m", PROFILES["generic"]), completion(content="Hi.", reasoning_content="Hm.")).parts
    with_call = (*plain, CALLS[0])
    for profile, alone, in_tool_turn in (
        ("generic", None, "Hm."),
        ("openrouter", "Hm.", "Hm."),
        ("azure", None, None),
        ("tgi", None, None),
    ):
        assert said(HELLO, Message.assistant(*plain), profile=profile)[1].get("reasoning_content") == alone
        assert said(HELLO, Message.assistant(*with_call), profile=profile)[1].get("reasoning_content") == in_tool_turn


def test_reasoning_details_are_echoed() -> None:
    details = [{"type": "reasoning.encrypted", "data": "e==", "index": 0}]
    parts = whole(ChatCodec("m", PROFILES["openrouter"]), completion(content="Hi.", reasoning_details=details)).parts
    assert said(HELLO, Message.assistant(*parts), profile="openrouter")[1]["reasoning_details"] == details


def test_tool_call_extras_are_echoed() -> None:
    signed = {"extra_content": {"google": {"thought_signature": "s=="}}}
    custom = ToolCall("b", "sh", "ls", meta={"openai-chat": {"type": "custom"}})
    calls = said(HELLO, Message.assistant(ToolCall("a", "f", meta={"openai-chat": signed}), custom))[1]["tool_calls"]
    assert calls[0]["extra_content"] == signed["extra_content"]
    assert calls[1] == {"id": "b", "type": "custom", "custom": {"name": "sh", "input": "ls"}}


# ---- replaying Responses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RESPONSES if name not in ("refusal", "logprobs")])
@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_goes_back_as_it_came(name: str, streaming: bool) -> None:
    body = RESPONSES[name]
    response = streamed(RESPONSES_CODEC, responses_stream(body)) if streaming else whole(RESPONSES_CODEC, body)
    want = copy.deepcopy(body["output"])
    for item in want:
        for content in item.get("content") or () if item["type"] == "message" else ():
            del content["logprobs"]
    assert items(HELLO, Message.assistant(*response.parts))[1:] == want


def test_reasoning_goes_back_before_its_call() -> None:
    body = {**RESPONSES["text"], "output": [REASONING, FUNCTION]}
    parts = whole(RESPONSES_CODEC, body).parts
    assert items(HELLO, Message.assistant(*parts), Message.tool("call_a", "x"))[1:3] == [REASONING, FUNCTION]


def test_results_of_custom_tools() -> None:
    parts = whole(RESPONSES_CODEC, RESPONSES["custom tool"]).parts
    sent = items(HELLO, Message.assistant(*parts), Message.tool("call_c", "a.txt"))
    assert sent[2] == {"type": "custom_tool_call_output", "call_id": "call_c", "output": "a.txt"}


def test_answers_of_one_api_go_to_the_other_as_text() -> None:
    thought = whole(RESPONSES_CODEC, RESPONSES["reasoning"]).parts
    assert set(said(HELLO, Message.assistant(*thought))[1]) == {"role", "content"}
    opaque = whole(RESPONSES_CODEC, RESPONSES["own tools"]).parts
    assert len(said(HELLO, Message.assistant(*opaque))) == 2
    assert {part.kind for part in opaque if isinstance(part, Opaque)} >= {item["type"] for item in OTHERS.values()}


# ---- profiles -------------------------------------------------------------------------------------------------------


def test_max_tokens_field() -> None:
    for name in PROFILES:
        field = "max_completion_tokens" if name == "azure" else "max_tokens"
        assert chat(profile=name, max_tokens=5)[field] == 5


@pytest.mark.parametrize(
    ("profile", "want"),
    [
        ("generic", {"type": "json_schema", "json_schema": {"name": "City", "schema": None, "strict": True}}),
        ("vllm", {"type": "json_schema", "json_schema": {"name": "City", "schema": None, "strict": True}}),
        ("ollama", {"type": "json_schema", "json_schema": {"name": "City", "schema": None, "strict": True}}),
        ("tgi", {"type": "json_object", "value": None}),
        ("trtllm", {"type": "json", "schema": None}),
        ("llamacpp", {"type": "json_object", "schema": None}),
    ],
)
def test_schema_styles(profile: str, want: dict[str, Any]) -> None:
    schema = OutputSchema.of(City).schema

    def fill(value: Any) -> Any:
        return (
            {key: fill(inner) for key, inner in value.items()}
            if isinstance(value, dict)
            else schema
            if value is None
            else value
        )

    assert chat(profile=profile, output=OutputSchema.of(City))["response_format"] == fill(want)


def test_structured_outputs() -> None:
    codec = ChatCodec("m", replace(PROFILES["vllm"], schema_style="structured_outputs"))
    body = codec.encode(ask(output=OutputSchema.of(City))).body
    assert body["structured_outputs"] == {"json": OutputSchema.of(City).schema}
    assert "response_format" not in body


def test_servers_that_mask_tokens_are_told_the_schema() -> None:
    output = OutputSchema.of(City)
    (system, user) = chat(profile="vllm", output=output)["messages"]
    assert system["role"] == "system"
    assert '"people"' in system["content"]
    assert user == {"role": "user", "content": "Hello"}
    first, _ = chat(Message.system("Be brief."), HELLO, profile="vllm", output=output)["messages"]
    assert first["content"].startswith("Be brief.\n\nAnswer with JSON")
    assert len(chat(output=output)["messages"]) == 1


def test_leading_system_messages_become_one() -> None:
    history = (Message.system("A."), Message.system("B."), HELLO, Message.system("C."))
    assert [message["content"] for message in said(*history, profile="vllm")] == ["A.\n\nB.", "Hello", "C."]
    assert len(said(*history)) == 4


def test_vllm() -> None:
    body = chat(
        Message.user("Count."), Message.assistant("One, two,"), profile="vllm", stream=True, tools=(WEATHER,), top_k=5
    )
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["tools"][0]["function"]["strict"] is True
    assert body["tools"][0]["function"]["parameters"] == WEATHER.parameters
    assert (body["continue_final_message"], body["add_generation_prompt"], body["top_k"]) == (True, False, 5)
    assert "continue_final_message" not in chat(profile="vllm")


def test_trtllm_is_told_to_choose() -> None:
    assert chat(profile="trtllm", tools=(WEATHER,))["tool_choice"] == "auto"
    assert "tool_choice" not in chat(profile="trtllm")


def test_no_stream_options() -> None:
    codec = ChatCodec("m", replace(PROFILES["generic"], stream_options=None))
    assert "stream_options" not in codec.encode(ask(stream=True)).body


def test_system_role() -> None:
    codec = ChatCodec("m", replace(PROFILES["generic"], system_role="developer"))
    assert codec.encode(ask(Message.system("A."), HELLO)).body["messages"][0]["role"] == "developer"


def test_special_tokens_can_be_broken() -> None:
    codec = ChatCodec("m", replace(PROFILES["vllm"], break_special_tokens=True))
    history = (
        Message.system("<|keep|>"),
        Message.user("<|im_start|>system"),
        Message.assistant(*CALLS[:1]),
        Message.tool("call_a", "<|end|>"),
    )
    sent = codec.encode(ask(*history)).body["messages"]
    assert [sent[at]["content"] for at in (0, 1, 3)] == ["<|keep|>", "<\u200d|im_start|>system", "<\u200d|end|>"]
    assert said(Message.user("<|im_start|>"), profile="vllm")[0]["content"] == "<|im_start|>"


def test_what_a_profile_can_not_do_is_refused_before_it_is_sent() -> None:
    provider = OpenAICompatible("m", profile="ollama")
    assert provider.capabilities.missing(ask(top_k=3, tools=(WEATHER,), tool_choice="auto")) == ("tool_choice", "top_k")
    assert OpenAICompatible("m", profile="tgi").capabilities.missing(EmbedRequest(inputs=("a",))) == ("embeddings",)
    assert OpenAICompatible("m", profile="vllm").capabilities.prefill


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings() -> None:
    request = EmbedRequest(inputs=("a", "b"), dimensions=3, extra={"openai": {"user": "u"}})
    for codec in (CHAT_CODEC, RESPONSES_CODEC):
        wire = codec.encode(request)
        assert wire.path == "/embeddings"
        assert wire.body == {
            "model": "m",
            "input": ["a", "b"],
            "encoding_format": "float",
            "dimensions": 3,
            "user": "u",
        }
