"""OpenAI's own SDK is the other party: the same bytes mean the same, and the same call is the same body.

Where the SDK is known to be wrong, the test says what it does and holds that ours is right.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx2
import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from llmprod.errors import CallError, ProtocolError, TruncatedAnswer
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_compatible import PROFILES
from llmprod.providers.openai_responses import ResponsesCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.response import Response
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Audio, File, Image, Message, Refusal, Text, Thinking, ToolCall
from tests.providers.codec_drive import ASK, raised, streamed, whole
from tests.providers.openai_scripts import (
    CHAT,
    OTHERS,
    REASONING,
    RESPONSES,
    answered,
    call,
    chat_chunks,
    chat_stream,
    completion,
    responses_events,
    responses_stream,
    said,
    sse,
)

CHAT_CODEC = ChatCodec("m")
RESPONSES_CODEC = ResponsesCodec("m")
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
LOGPROBS = GenerateRequest(messages=ASK.messages, logprobs=2)


class Server:
    """Answers the SDK with the same bytes, in pieces, and keeps what it asked."""

    def __init__(self, body: bytes, *, kind: str = "text/event-stream", status: int = 200, size: int = 1 << 20) -> None:
        self.asked: Any = None
        self._body, self._kind, self._status, self._size = body, kind, status, size

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked = json.loads(request.content)
        pieces = (self._body[at : at + self._size] for at in range(0, len(self._body), self._size))
        return httpx2.Response(self._status, headers={"content-type": self._kind}, content=_Pieces(pieces))

    def client(self) -> openai.OpenAI:
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        return openai.OpenAI(api_key="sk-test", base_url="https://server/v1", http_client=http, max_retries=0)


class _Pieces(httpx2.SyncByteStream):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def as_json(body: Any) -> Server:
    return Server(json.dumps(body).encode(), kind="application/json")


# ---- Chat Completions: answers --------------------------------------------------------------------------------------


def sdk_chat_whole(body: Any) -> dict[str, Any]:
    with as_json(body).client() as client:
        return _chat_facts(client.chat.completions.create(model="m", messages=MESSAGES))


def sdk_chat_stream(body: bytes, size: int = 1 << 20) -> dict[str, Any]:
    """What the SDK's own accumulator makes of a stream."""
    with (
        Server(body, size=size).client() as client,
        client.chat.completions.stream(model="m", messages=MESSAGES, stream_options={"include_usage": True}) as stream,
    ):
        return _chat_facts(stream.get_final_completion())


def _chat_facts(answer: Any) -> dict[str, Any]:
    message, usage = answer.choices[0].message, answer.usage
    logprobs = answer.choices[0].logprobs
    return {
        "id": answer.id,
        "model": answer.model,
        "text": message.content or "",
        "refusal": message.refusal or None,
        "tools": [(one.id, one.function.name, one.function.arguments) for one in message.tool_calls or ()],
        "raw": answer.choices[0].finish_reason,
        "usage": usage and (usage.prompt_tokens, usage.completion_tokens),
        "cached": usage and usage.prompt_tokens_details.cached_tokens,
        "reasoning": usage and usage.completion_tokens_details.reasoning_tokens,
        "logprobs": [(one.token, one.logprob) for one in (logprobs and logprobs.content) or ()],
    }


def chat_facts(response: Response) -> dict[str, Any]:
    usage = response.usage
    return {
        "id": response.response_id,
        "model": response.model,
        "text": response.text,
        "refusal": response.refusal,
        "tools": [(one.id, one.name, one.arguments) for one in response.tool_calls],
        "raw": response.raw_finish,
        "usage": usage and (usage.total_input, usage.total_output),
        "cached": usage and usage.cache_read,
        "reasoning": usage and usage.reasoning,
        "logprobs": [(one.token, one.logprob) for one in response.logprobs],
    }


PLAIN = [name for name in CHAT if name != "sound"]


@pytest.mark.parametrize("name", PLAIN)
def test_whole_chat_answers(name: str) -> None:
    request = LOGPROBS if name == "logprobs" else ASK
    assert chat_facts(whole(CHAT_CODEC, CHAT[name], request)) == sdk_chat_whole(CHAT[name])


# Its accumulator raises for an answer that is not complete, so those are compared chunk by chunk below.
@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("length", "filtered")])
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_streamed_chat_answers(name: str, size: int) -> None:
    body = chat_stream(CHAT[name])
    request = LOGPROBS if name == "logprobs" else ASK
    assert chat_facts(streamed(CHAT_CODEC, body, request)) == sdk_chat_stream(body, size)


@pytest.mark.parametrize("name", CHAT)
def test_chat_chunks_are_what_the_sdk_reads(name: str) -> None:
    """The scripts are of the SDK's own types, and its plain iteration gives the same text."""
    with Server(chat_stream(CHAT[name])).client() as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    for chunk, script in zip(chunks, chat_chunks(CHAT[name]), strict=True):
        type(chunk).model_validate(script)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    ours = streamed(CHAT_CODEC, chat_stream(CHAT[name]))
    assert ours.text == "".join(delta.content or "" for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == ours.raw_finish


def test_sound() -> None:
    with as_json(CHAT["sound"]).client() as client:
        theirs = client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.audio
    for ours in (whole(CHAT_CODEC, CHAT["sound"]), streamed(CHAT_CODEC, chat_stream(CHAT["sound"]))):
        (sound,) = ours.parts
        assert isinstance(sound, Audio)
        assert theirs is not None
        assert (sound.data, sound.transcript) == (base64.b64decode(theirs.data), theirs.transcript)


# ---- Chat Completions: where the SDK is wrong -----------------------------------------------------------------------


def test_sdk_merges_calls_at_index_0() -> None:
    first, second = (
        {"index": 0, **call(name, "f", arguments)} for name, arguments in (("a", '{"x":1}'), ("b", '{"x":2}'))
    )
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[tuple[Any, str | None]] = [({"role": "assistant"}, None), ({"tool_calls": [first]}, None)]
    deltas += [({"tool_calls": [second]}, None), ({}, "tool_calls")]
    body = sse([{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas])
    with Server(body).client() as client, client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        (merged,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert (merged.id, merged.function.arguments) == ("ab", '{"x":1}{"x":2}')
    assert [(one.id, one.arguments) for one in streamed(CHAT_CODEC, body).tool_calls] == [
        ("a", '{"x":1}'),
        ("b", '{"x":2}'),
    ]


@pytest.mark.parametrize("done", [True, False])
def test_sdk_takes_a_cut_answer_for_a_whole_one(done: bool) -> None:
    body = sse(chat_chunks(CHAT["text"])[:3], done=done)
    with Server(body).client() as client:
        chunks = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert len(chunks) == 3  # and nothing is raised
    assert isinstance(raised(lambda: streamed(CHAT_CODEC, body)), TruncatedAnswer)


def test_sdk_takes_html_for_an_empty_answer() -> None:
    body = b"<html><body>Bad gateway</body></html>"
    with Server(body, kind="text/html").client() as client:
        assert list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True)) == []
    assert isinstance(raised(lambda: streamed(CHAT_CODEC, body)), TruncatedAnswer)  # HTTPProvider: ProtocolError


def test_sdk_leaks_json_errors() -> None:
    body = b'data: {"choices": [{"de\n\n'
    with Server(body).client() as client, pytest.raises(json.JSONDecodeError):
        list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert isinstance(raised(lambda: streamed(CHAT_CODEC, body)), ProtocolError)


def test_errors_inside_a_stream_are_both_ones() -> None:
    body = sse([*chat_chunks(CHAT["text"])[:3], {"error": {"message": "m", "code": "rate_limit_exceeded"}}])
    with Server(body).client() as client, pytest.raises(openai.APIError) as theirs:
        list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    ours = raised(lambda: streamed(CHAT_CODEC, body))
    assert ours.code == theirs.value.code == "rate_limit_exceeded"
    assert (type(theirs.value), ours.status) == (openai.APIError, 429)  # the SDK's has no class of its own, no status


STATUSES = [
    (400, "invalid_request_error", openai.BadRequestError, "BadRequest"),
    (401, "invalid_api_key", openai.AuthenticationError, "AuthenticationFailed"),
    (403, "permission_error", openai.PermissionDeniedError, "PermissionDenied"),
    (404, "model_not_found", openai.NotFoundError, "NotFound"),
    (409, "conflict", openai.ConflictError, "ServerError"),
    (422, "invalid", openai.UnprocessableEntityError, "BadRequest"),
    (429, "rate_limit_exceeded", openai.RateLimitError, "RateLimited"),
    (500, "server_error", openai.InternalServerError, "ServerError"),
    (503, "server_is_overloaded", openai.InternalServerError, "Overloaded"),
]


@pytest.mark.parametrize(("status", "code", "theirs", "ours"), STATUSES)
def test_statuses(status: int, code: str, theirs: type[openai.APIStatusError], ours: str) -> None:
    body = {"error": {"message": "m", "type": "t", "param": "p", "code": code}}
    server = Server(json.dumps(body).encode(), kind="application/json", status=status)
    with server.client() as client, pytest.raises(theirs) as caught:
        client.chat.completions.create(model="m", messages=MESSAGES)
    error: CallError = CHAT_CODEC.error(status, {}, body)
    assert type(error).__name__ == ours
    assert (error.code, error.param, error.status) == (caught.value.code, caught.value.param, caught.value.status_code)


# ---- Responses: answers ---------------------------------------------------------------------------------------------


def sdk_responses_whole(body: Any) -> dict[str, Any]:
    with as_json(body).client() as client:
        return _responses_facts(client.responses.create(model="m", input="Hello"))


def sdk_responses_stream(body: bytes, size: int = 1 << 20) -> dict[str, Any]:
    """What the SDK's typed events say, the last one holding the answer."""
    with Server(body, size=size).client() as client:
        events = list(client.responses.create(model="m", input="Hello", stream=True))
    told: dict[str, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            told[event.type] = told.get(event.type, "") + str(event.delta)
    facts = _responses_facts(events[-1].response)
    # The pieces are what the end repeats.
    assert told.get("response.output_text.delta", "") == facts["text"]
    return facts


def _responses_facts(answer: Any) -> dict[str, Any]:
    usage = answer.usage
    contents = [part for item in answer.output if item.type == "message" for part in item.content]
    calls = [item for item in answer.output if item.type in ("function_call", "custom_tool_call")]
    thoughts = [
        "\n\n".join(piece.text for piece in [*item.summary, *(item.content or ())])
        for item in answer.output
        if item.type == "reasoning"
    ]
    return {
        "id": answer.id,
        "model": answer.model,
        "status": answer.status,
        "text": answer.output_text,
        "refusal": "".join(part.refusal for part in contents if part.type == "refusal") or None,
        "tools": [
            (one.call_id, one.name, one.arguments if one.type == "function_call" else one.input) for one in calls
        ],
        "thinking": "".join(thoughts),
        "usage": (usage.input_tokens, usage.output_tokens, usage.total_tokens),
        "cached": usage.input_tokens_details.cached_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
        "items": [item.type for item in answer.output],
    }


def responses_facts(response: Response) -> dict[str, Any]:
    usage = response.usage
    assert usage is not None
    replayed = RESPONSES_CODEC.encode(
        GenerateRequest(messages=(Message.user("x"), Message.assistant(*response.parts)))
    ).body
    reason = response.finish_reason
    return {
        "id": response.response_id,
        "model": response.model,
        "status": "incomplete" if reason in ("length", "content_filter") else "completed",
        "text": response.text,
        "refusal": response.refusal,
        "tools": [(one.id, one.name, one.arguments) for one in response.tool_calls],
        "thinking": response.thinking,
        "usage": (usage.total_input, usage.total_output, usage.total),
        "cached": usage.cache_read,
        "reasoning": usage.reasoning,
        "items": [item.get("type", "message") for item in replayed["input"][1:]],
    }


@pytest.mark.parametrize("name", RESPONSES)
def test_whole_responses(name: str) -> None:
    assert responses_facts(whole(RESPONSES_CODEC, RESPONSES[name])) == sdk_responses_whole(RESPONSES[name])


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_streamed_responses(name: str, size: int) -> None:
    body = responses_stream(RESPONSES[name])
    assert responses_facts(streamed(RESPONSES_CODEC, body)) == sdk_responses_stream(body, size)


def _types(union: Any) -> set[str]:
    """The ``type`` of every member of the SDK's union of events."""
    members: list[type[BaseModel]] = list(get_args(get_args(union)[0]))
    return {kind for member in members for kind in get_args(member.model_fields["type"].annotation)}


def test_every_event_type_of_the_sdk_is_in_the_scripts() -> None:
    known = _types(ResponseStreamEvent)
    scripted = {event["type"] for body in RESPONSES.values() for event in responses_events(body)}
    failed = {"error", "response.failed"}  # tested below
    assert known - scripted == failed
    assert {"response.telepathy.begun"} <= scripted - known


def test_failed_responses() -> None:
    body = answered(said("It"), status="failed", error={"code": "server_error", "message": "m"})
    stream = responses_stream(body)
    with Server(stream).client() as client:
        events = list(client.responses.create(model="m", input="Hello", stream=True))
    assert events[-1].type == "response.failed"  # the SDK raises nothing: the caller has to look
    assert raised(lambda: streamed(RESPONSES_CODEC, stream)).code == "server_error"


def test_error_events() -> None:
    event = {"type": "error", "sequence_number": 3, "code": "rate_limit_exceeded", "message": "m", "param": None}
    body = b"".join([responses_stream(answered())[:0], b"event: error\ndata: ", json.dumps(event).encode(), b"\n\n"])
    with Server(body).client() as client:
        events = list(client.responses.create(model="m", input="Hello", stream=True))
    assert [one.type for one in events] == ["error"]  # nor does it here
    assert raised(lambda: streamed(RESPONSES_CODEC, body)).status == 429


def test_sdk_takes_cut_responses_for_whole_ones() -> None:
    events = responses_events(RESPONSES["text"])[:-1]
    body = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)
    with Server(body).client() as client:
        assert len(list(client.responses.create(model="m", input="Hello", stream=True))) == len(events)
    assert isinstance(raised(lambda: streamed(RESPONSES_CODEC, body)), TruncatedAnswer)


def test_embeddings() -> None:
    data = [{"object": "embedding", "index": at, "embedding": [at + 0.5, -1.0]} for at in (1, 0)]
    body = {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    server = as_json(body)
    with server.client() as client:
        theirs = client.embeddings.create(model="m", input=["a", "b"], encoding_format="float", dimensions=2)
    request = EmbedRequest(inputs=("a", "b"), dimensions=2)
    assert CHAT_CODEC.encode(request).body == server.asked
    ours = CHAT_CODEC.decode(request, body)
    # The SDK leaves the order to its caller.
    assert ours.embeddings == [one.embedding for one in sorted(theirs.data, key=lambda one: one.index)]


# ---- requests -------------------------------------------------------------------------------------------------------


class City(BaseModel):
    """A city."""

    name: str
    people: int
    twin: str | None = None


WEATHER = Tool(
    name="weather",
    description="Tells the weather.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    strict=False,
)
FUNCTION: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": WEATHER.parameters,
    "strict": False,
}
PNG = Image(b"png", media_type="image/png", detail="high")


BERN = '{"name":"Bern","people":1,"twin":null}'


def test_chat_request() -> None:
    server = Server(chat_stream(completion(content=BERN)))
    with (
        server.client() as client,
        client.chat.completions.stream(
            model="m",
            messages=[
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look."},
                        {"type": "image_url", "image_url": {"url": PNG.data_url, "detail": "high"}},
                        {"type": "input_audio", "input_audio": {"data": "d2F2", "format": "wav"}},
                        {
                            "type": "file",
                            "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"},
                        },
                    ],
                },
                {"role": "assistant", "content": "Hm.", "tool_calls": [call("a", "weather", '{"city":"Bern"}')]},
                {"role": "tool", "tool_call_id": "a", "content": "Sun."},
                {"role": "assistant", "content": None, "refusal": "No."},
                {"role": "user", "content": "Well?"},
            ],
            stream_options={"include_usage": True},
            response_format=City,
            tools=[
                {
                    "type": "function",
                    "function": {**FUNCTION, "strict": True, "parameters": _closed(WEATHER.parameters)},
                }
            ],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
            max_completion_tokens=9,
            temperature=0.5,
            top_p=0.9,
            frequency_penalty=0.1,
            presence_penalty=-0.1,
            seed=7,
            stop=["END"],
            logprobs=True,
            top_logprobs=3,
            reasoning_effort="low",
            service_tier="flex",
        ) as stream,
    ):
        stream.until_done()
    strict = Tool(name="weather", description="Tells the weather.", parameters=WEATHER.parameters, strict=True)
    ours = CHAT_CODEC.encode(
        GenerateRequest(
            messages=(
                Message.system("Be brief."),
                Message.user(
                    "Look.",
                    PNG,
                    Audio(b"wav", media_type="audio/wav"),
                    File(b"pdf", media_type="application/pdf", name="a.pdf"),
                ),
                Message.assistant("Hm.", ToolCall("a", "weather", '{"city":"Bern"}')),
                Message.tool("a", "Sun."),
                Message.assistant(Refusal("No.")),
                Message.user("Well?"),
            ),
            stream=True,
            output=OutputSchema.of(City),
            tools=(strict,),
            tool_choice="weather",
            parallel_tool_calls=False,
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            frequency_penalty=0.1,
            presence_penalty=-0.1,
            seed=7,
            stop=("END",),
            logprobs=3,
            reasoning_effort="low",
            extra={"openai": {"service_tier": "flex"}},
        )
    ).body
    assert ours == server.asked


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False}


def test_responses_request() -> None:
    server = Server(responses_stream(answered(said(BERN))))
    kept: Any = [REASONING, *list(OTHERS.values())[:1]]
    with (
        server.client() as client,
        client.responses.stream(
            model="m",
            input=[
                {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Look."},
                        {"type": "input_image", "image_url": PNG.data_url, "detail": "high"},
                        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"},
                    ],
                },
                {"role": "assistant", "content": "Hm."},
                *kept,
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city":"Bern"}'},
                {"type": "function_call_output", "call_id": "a", "output": "Sun."},
            ],
            store=False,
            tools=[{"type": "function", **FUNCTION}],
            tool_choice={"type": "function", "name": "weather"},
            text_format=City,
            max_output_tokens=9,
            temperature=0.5,
            top_p=0.9,
            reasoning={"effort": "low"},
            include=["reasoning.encrypted_content", "message.output_text.logprobs"],
            top_logprobs=3,
            parallel_tool_calls=False,
        ) as stream,
    ):
        stream.until_done()
    replayed = whole(RESPONSES_CODEC, answered(*kept)).parts
    ours = RESPONSES_CODEC.encode(
        GenerateRequest(
            messages=(
                Message.system("Be brief."),
                Message.user("Look.", PNG, File(b"pdf", media_type="application/pdf", name="a.pdf")),
                Message.assistant("Hm.", *replayed, ToolCall("a", "weather", '{"city":"Bern"}')),
                Message.tool("a", "Sun."),
            ),
            stream=True,
            tools=(WEATHER,),
            tool_choice="weather",
            output=OutputSchema.of(City),
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            reasoning_effort="low",
            logprobs=3,
            parallel_tool_calls=False,
        )
    ).body
    assert ours == server.asked


def test_the_sdk_reads_back_what_we_replay() -> None:
    """Thinking of compatible servers travels in fields that the SDK passes on unread."""
    codec = ChatCodec("m", PROFILES["generic"])
    thought = Thinking("Hm.", meta={"openai-chat": {"field": "reasoning_content"}})
    sent = codec.encode(
        GenerateRequest(messages=(ASK.messages[0], Message.assistant(thought, Text("a"), ToolCall("a", "f"))))
    )
    server = as_json(CHAT["text"])
    with server.client() as client:
        client.chat.completions.create(model="m", messages=sent.body["messages"])
    assert server.asked["messages"] == sent.body["messages"]
