"""Anthropic's own SDK and ours, fed the same bytes and asked for the same: they must agree.

Known differences, where ours is meant to be as it is:

- The SDK takes a stream that ends without ``message_stop`` for a whole message; ours is ``TruncatedAnswer``.
- The SDK leaks the JSON parser's ``ValueError`` (with the data in it) for a malformed event, and gives an error inside
  a stream the stream's own status of 200; ours are ``ProtocolError``, and the status that the error's type implies.
- The SDK reports the usage of the API in its own overlapping counts; ours are disjoint.
- Text is always sent as a block, where the SDK passes a bare string on; the API takes both for the same.
- Of a schema's ``enum`` the SDK drops the ``type`` beside it, which the API takes.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import transform_schema, types
from pydantic import BaseModel

from llmprod.errors import CallError, Overloaded, ProtocolError, ServerError, TruncatedAnswer
from llmprod.providers._anthropic_answer import _REASONS
from llmprod.providers._anthropic_schema import closed_schema
from llmprod.providers.anthropic import AnthropicCodec
from llmprod.request import GenerateRequest
from llmprod.response import Response
from llmprod.schema import Tool
from llmprod.types import Image, Message, Opaque, Refusal, Text, Thinking, ToolCall
from tests.providers import anthropic_scripts as scripts
from tests.providers.codec_drive import as_response, decode_stream, frames, streamed, whole

MODEL = "claude-opus-5-5"
CODEC = AnthropicCodec(MODEL)


class Pieces(httpx2.SyncByteStream):
    """A body that comes in these pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces


def sdk(
    pieces: Sequence[bytes], *, kind: str = "text/event-stream", seen: list[bytes] | None = None
) -> anthropic.Anthropic:
    """The SDK over a transport that gives these pieces, and keeps the bodies that were sent."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if seen is not None:
            seen.append(request.content)
        return httpx2.Response(200, headers={"content-type": kind}, stream=Pieces(pieces))

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(api_key="k", base_url="http://test", http_client=client, max_retries=0)


def sdk_stream(pieces: Sequence[bytes]) -> types.Message:
    """The message that the SDK puts together from a stream."""
    call = sdk(pieces).messages.stream(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
    with call as stream:
        return stream.get_final_message()


def sdk_whole(body: Any) -> types.Message:
    """The message that the SDK reads from a whole body."""
    client = sdk([json.dumps(body).encode()], kind="application/json")
    return client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "Hello"}])


def ours(response: Response) -> list[dict[str, Any]]:
    """Our parts as the API's blocks, less what is None."""
    blocks: list[dict[str, Any]] = []
    for part in response.parts:
        if isinstance(part, Text):
            blocks.append({"type": "text", "text": part.text, **part.meta.get("anthropic", {})})
        elif isinstance(part, ToolCall):
            own = part.meta.get("anthropic", {})
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": part.input, **own})
        elif not isinstance(part, Refusal):  # the API tells a refusal beside the content
            assert isinstance(part, (Thinking, Opaque))
            blocks.append(dict(part.meta["anthropic"]))
    return bare(blocks)


def theirs(message: types.Message) -> list[dict[str, Any]]:
    """The SDK's blocks, less what is None."""
    return bare([block.to_dict() for block in message.content])


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


def agree(response: Response, message: types.Message) -> None:
    assert ours(response) == theirs(message)
    assert response.text == "".join(block.text for block in message.content if block.type == "text")
    assert response.thinking == "".join(block.thinking for block in message.content if block.type == "thinking")
    assert response.model == message.model
    assert response.response_id == message.id
    assert response.raw_finish is not None
    assert response.raw_finish.partition(":")[0] == message.stop_reason
    details = message.stop_details
    assert response.refusal == (details.explanation if details else None)
    usage, counts = response.usage, message.usage
    assert usage is not None
    assert usage.input == counts.input_tokens
    assert usage.cache_read == counts.cache_read_input_tokens
    assert usage.cache_write + usage.cache_write_5m + usage.cache_write_1h == counts.cache_creation_input_tokens
    assert counts.cache_creation is not None
    assert usage.cache_write_1h == counts.cache_creation.ephemeral_1h_input_tokens
    assert usage.total_output == counts.output_tokens
    assert counts.output_tokens_details is not None
    assert usage.reasoning == counts.output_tokens_details.thinking_tokens
    assert counts.server_tool_use is not None
    assert usage.server_tools.get("web_search", 0) == counts.server_tool_use.web_search_requests


@pytest.mark.parametrize("name", scripts.MESSAGES)
def test_whole(name: str) -> None:
    agree(whole(CODEC, scripts.MESSAGES[name]), sdk_whole(scripts.MESSAGES[name]))


@pytest.mark.parametrize("name", scripts.MESSAGES)
def test_stream(name: str) -> None:
    body = frames(scripts.stream(scripts.MESSAGES[name]), named=True)
    agree(streamed(CODEC, body), sdk_stream([body]))


@pytest.mark.parametrize("name", ["tools", "server tools and citations"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_stream_cut_at_every_byte(name: str, newline: bytes) -> None:
    body = frames(scripts.stream(scripts.MESSAGES[name]), named=True).replace(b"\n", newline)
    single = [bytes([byte]) for byte in body]
    agree(as_response(decode_stream(CODEC, single)), sdk_stream(single))
    for cut in range(1, len(body), 97):
        pieces = (body[:cut], body[cut:])
        agree(as_response(decode_stream(CODEC, pieces)), sdk_stream(pieces))


def members(union: Any, field: str = "type") -> set[str]:
    """The discriminators of a union of the SDK's models."""
    return {
        typing.get_args(model.model_fields[field].annotation)[0] for model in typing.get_args(typing.get_args(union)[0])
    }


def test_the_scripts_hold_every_type_that_the_sdk_knows() -> None:
    events = [event for message in scripts.MESSAGES.values() for event in scripts.stream(message)]
    assert members(types.RawMessageStreamEvent) <= {event["type"] for event in events}
    assert members(types.RawContentBlockDelta) == {
        event["delta"]["type"] for event in events if "index" in event and "delta" in event
    }
    blocks = [block["type"] for message in scripts.MESSAGES.values() for block in message["content"]]
    assert members(types.ContentBlock) == set(blocks)
    assert set(typing.get_args(types.StopReason)) == set(_REASONS)
    assert {message["stop_reason"] for message in scripts.MESSAGES.values()} == set(_REASONS)


# ---- where they differ ----------------------------------------------------------------------------------------------

STREAM = scripts.stream(scripts.MESSAGES["text"])


def outcome(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def test_a_cut_stream_is_an_error_for_us_alone() -> None:
    body = frames(STREAM[:5], named=True)
    assert isinstance(outcome(lambda: streamed(CODEC, body)), TruncatedAnswer)
    assert sdk_stream([body]).stop_reason is None  # half an answer, and nothing says so but this


def test_a_malformed_event_is_a_call_error_for_us_alone() -> None:
    body = frames(STREAM[:5], named=True) + b"event: content_block_delta\ndata: {broken\n\n"
    assert isinstance(outcome(lambda: streamed(CODEC, body)), ProtocolError)
    assert isinstance(outcome(lambda: sdk_stream([body])), json.JSONDecodeError)


@pytest.mark.parametrize(("kind", "expected"), [("overloaded_error", Overloaded), ("api_error", ServerError)])
def test_errors_inside_a_stream(kind: str, expected: type[CallError]) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req_1"}
    body = frames([*STREAM[:5], error], named=True)
    our, their = outcome(lambda: streamed(CODEC, body)), outcome(lambda: sdk_stream([body]))
    assert type(our) is expected
    assert our.code == kind
    assert isinstance(their, anthropic.APIStatusError)
    assert their.status_code == 200  # theirs keeps the status of the stream; ours tells what was meant
    assert our.status in (500, 529)


# ---- requests -------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = ToolCall("toolu_1", "weather", '{"city":"Bern"}')
ASKED: list[tuple[GenerateRequest, dict[str, Any]]] = [
    (
        GenerateRequest(messages=(Message.system("Be brief"), Message.user("Hello")), max_tokens=9, stop=("END",)),
        {
            "system": [{"type": "text", "text": "Be brief"}],
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 9,
            "stop_sequences": ["END"],
        },
    ),
    (
        GenerateRequest(
            messages=(
                Message.user("Look", Image(data=b"png", media_type="image/png")),
                Message.assistant(CALL),
                Message.tool(CALL, "sunny", is_error=True),
            ),
            tools=(Tool(name="weather", description="The weather", parameters=SCHEMA),),
            parallel_tool_calls=False,
            max_tokens=9,
            stream=True,
            reasoning_effort="high",
            extra={"anthropic": {"metadata": {"user_id": "u"}}},
        ),
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "cG5n"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny", "is_error": True}
                    ],
                },
            ],
            "tools": [{"name": "weather", "description": "The weather", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "max_tokens": 9,
            "stream": True,
            "thinking": {"type": "adaptive", "display": "summarized"},
            "output_config": {"effort": "high"},
            "metadata": {"user_id": "u"},
        },
    ),
]


def as_blocks(body: dict[str, Any]) -> dict[str, Any]:
    """A bare string as the block that it stands for."""
    for turn in body["messages"]:
        if isinstance(turn["content"], str):
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    return body


@pytest.mark.parametrize(("request_", "arguments"), ASKED, ids=["plain", "tools"])
def test_bodies(request_: GenerateRequest, arguments: dict[str, Any]) -> None:
    seen: list[bytes] = []
    kind = "text/event-stream" if request_.stream else "application/json"
    result = sdk([b"{}"], kind=kind, seen=seen).messages.create(model=MODEL, **arguments)
    if request_.stream:
        result.close()
    assert as_blocks(json.loads(seen[0])) == json.loads(json.dumps(CODEC.encode(request_).body))


def test_output_schemas_agree() -> None:
    """Ours and the SDK's own way of bringing a model's schema into the subset that is taken."""

    class Inner(BaseModel):
        city: str
        days: int | None = None

    class Outer(BaseModel):
        places: list[Inner]
        kind: typing.Literal["a", "b"]

    def core(schema: Any) -> Any:
        """What constrains."""
        if isinstance(schema, dict):
            aside = {"title", "default", "description", *(["type"] if "enum" in schema else [])}
            return {key: core(value) for key, value in schema.items() if key not in aside}
        return [core(item) for item in schema] if isinstance(schema, list) else schema

    assert core(closed_schema(Outer.model_json_schema())) == core(transform_schema(Outer))
