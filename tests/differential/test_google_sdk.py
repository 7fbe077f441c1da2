"""Google's own SDK and ours, fed the same bytes and asked for the same: they must agree.

Known differences, where ours is meant to be as it is:

- The SDK hands out a stream's chunks and puts nothing together; here its chunks' parts are joined by the rule that ours
  follows: pieces of unsigned text are one part, a signed piece stands alone.
- The SDK takes a stream that ends without ``finishReason`` for finished; ours is ``TruncatedAnswer``.
- The SDK raises its own or the JSON parser's error, with the data in it, for a malformed event; ours is
  ``ProtocolError`` and tells nothing of it.
- The SDK's ``usage_metadata`` overlaps (cached in prompt); ours is disjoint.
- ``STOP`` after function calls is ``tool_calls`` with us; the API's word stays in ``raw_finish``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest
from google import genai
from google.genai import errors as sdk_errors
from google.genai import types

from llmprod.errors import Overloaded, ProtocolError, TruncatedAnswer
from llmprod.providers._google_answer import _REASONS
from llmprod.providers.google import GoogleCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.response import Response
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Text, Thinking, ToolCall
from tests.providers import google_scripts as scripts
from tests.providers.codec_drive import as_response, decode_stream, frames, streamed, whole

MODEL = "gemini-3-flash"
CODEC = GoogleCodec(MODEL)


class Pieces(httpx2.SyncByteStream):
    """A body that comes in these pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces


def sdk(
    pieces: Sequence[bytes], *, kind: str = "text/event-stream", seen: list[httpx2.Request] | None = None
) -> genai.Client:
    """The SDK over a transport that gives these pieces, and keeps the requests that were sent."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if seen is not None:
            seen.append(request)
        return httpx2.Response(200, headers={"content-type": kind}, stream=Pieces(pieces))

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url="http://test", httpx_client=client))


def sdk_stream(pieces: Sequence[bytes]) -> list[types.GenerateContentResponse]:
    return list(sdk(pieces).models.generate_content_stream(model=MODEL, contents="Hello"))


def sdk_whole(body: Any) -> list[types.GenerateContentResponse]:
    client = sdk([json.dumps(body).encode()], kind="application/json")
    return [client.models.generate_content(model=MODEL, contents="Hello")]


def theirs(chunks: Sequence[types.GenerateContentResponse]) -> list[dict[str, Any]]:
    """The SDK's parts as the API's JSON, pieces of unsigned text joined."""
    parts: list[dict[str, Any]] = []
    for chunk in chunks:
        for candidate in chunk.candidates or ():
            for part in (candidate.content and candidate.content.parts) or ():
                wire = part.model_dump(mode="json", by_alias=True, exclude_none=True)
                last = parts[-1] if parts else {}
                if wire.keys() <= {"text", "thought"} and wire.keys() == last.keys():
                    last["text"] += wire["text"]
                elif wire != {"text": ""}:
                    parts.append(wire)
    return [normal(part) for part in parts]


def ours(response: Response) -> list[dict[str, Any]]:
    """Our parts as the API's JSON."""
    parts: list[dict[str, Any]] = []
    for part in response.parts:
        own = dict(part.meta.get("google", {}))
        if isinstance(part, Text):
            parts.append({"text": part.text, **own})
        elif isinstance(part, Thinking):
            parts.append({"text": part.text, "thought": True, **own})
        elif isinstance(part, ToolCall):
            made_up = part.id.startswith("llmprod_")
            call = {"name": part.name, "args": part.input, **({} if made_up else {"id": part.id})}
            parts.append({"functionCall": call, **own})
        elif isinstance(part, (Image, Audio, File)):
            parts.append({"inlineData": {"mimeType": part.media_type, "data": part.base64}, **own})
        else:
            assert isinstance(part, Opaque)
            parts.append(own)
    return [normal(part) for part in parts]


def normal(part: dict[str, Any]) -> dict[str, Any]:
    """Base64 as bytes: the SDK writes its URL-safe form."""
    part = dict(part)
    if "thoughtSignature" in part:
        part["thoughtSignature"] = base64.urlsafe_b64decode(
            part["thoughtSignature"].replace("+", "-").replace("/", "_")
        )
    return part


def agree(response: Response, chunks: Sequence[types.GenerateContentResponse]) -> None:
    assert ours(response) == theirs(chunks)
    spoken = [
        part
        for chunk in chunks
        for candidate in chunk.candidates or ()
        for part in (candidate.content and candidate.content.parts) or ()
    ]
    assert response.text == "".join(part.text or "" for part in spoken if not part.thought)
    assert response.thinking == "".join(part.text or "" for part in spoken if part.thought)
    calls = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert [(call.name, call.input) for call in response.tool_calls] == [(call.name, call.args) for call in calls]
    last = chunks[-1]
    feedback = last.prompt_feedback
    reason = last.candidates[0].finish_reason if last.candidates else feedback and feedback.block_reason
    assert reason is not None
    assert response.raw_finish == reason.value
    assert response.model == last.model_version
    assert response.response_id == last.response_id
    usage, counts = response.usage, last.usage_metadata
    assert usage is not None
    assert counts is not None
    assert usage.total == counts.total_token_count
    assert usage.total_input == (counts.prompt_token_count or 0) + (counts.tool_use_prompt_token_count or 0)
    assert usage.cached == (counts.cached_content_token_count or 0)
    assert usage.reasoning == (counts.thoughts_token_count or 0)
    assert usage.total_output == (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0)


ANSWERS = {**scripts.ANSWERS, "blocked": scripts.BLOCKED}


@pytest.mark.parametrize("name", ANSWERS)
def test_whole(name: str) -> None:
    agree(whole(CODEC, ANSWERS[name]), sdk_whole(ANSWERS[name]))


def stream_of(name: str) -> bytes:
    chunks = [scripts.BLOCKED] if name == "blocked" else scripts.stream(ANSWERS[name])
    return frames(chunks, named=False)


@pytest.mark.parametrize("name", ANSWERS)
def test_stream(name: str) -> None:
    agree(streamed(CODEC, stream_of(name)), sdk_stream([stream_of(name)]))


@pytest.mark.parametrize("name", ["tools", "signed thoughts"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_stream_cut_at_every_byte(name: str, newline: bytes) -> None:
    body = stream_of(name).replace(b"\n", newline)
    single = [bytes([byte]) for byte in body]
    agree(as_response(decode_stream(CODEC, single)), sdk_stream(single))
    for cut in range(1, len(body), 769):
        pieces = (body[:cut], body[cut:])
        agree(as_response(decode_stream(CODEC, pieces)), sdk_stream(pieces))


def test_every_reason_that_the_sdk_knows_has_its_word() -> None:
    known = {reason.value for reason in types.FinishReason} - {"FINISH_REASON_UNSPECIFIED"}
    assert known == set(_REASONS)
    for blocked in types.BlockedReason:
        answer = whole(CODEC, {**scripts.BLOCKED, "promptFeedback": {"blockReason": blocked.value}})
        assert answer.finish_reason == "content_filter"


EXAMPLES: dict[str, Any] = {
    "codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"},
    "executableCode": {"language": "PYTHON", "code": "1"},
    "fileData": {"fileUri": "https://example.com/a", "mimeType": "image/png"},
    "functionCall": {"id": "1", "name": "f", "args": {"x": 1}},
    "functionResponse": {"id": "1", "name": "f", "response": {"output": 1}},
    "inlineData": {"mimeType": "image/png", "data": "cG5n"},
    "text": "Hi",
    "toolCall": {"id": "1", "toolType": "GOOGLE_SEARCH_WEB", "args": {}},
    "toolResponse": {"id": "1", "toolType": "GOOGLE_SEARCH_WEB", "response": {}},
}


@pytest.mark.parametrize("field", EXAMPLES)
@pytest.mark.parametrize("more", [{}, {"thoughtSignature": scripts.SIGNATURE}, {"partMetadata": {"k": "v"}}])
def test_every_kind_of_part_that_the_sdk_knows(field: str, more: dict[str, Any]) -> None:
    answer = scripts.answer({field: EXAMPLES[field], **more})
    agree(whole(CODEC, answer), sdk_whole(answer))


def test_the_examples_are_all_kinds_of_content() -> None:
    said_of_a_part = {
        "mediaResolution", "thought", "thoughtSignature", "videoMetadata", "partMetadata", "audioTranscription",
        "mediaProcessing", "speechMetadata", "documentMetadata", "spreadsheetMetadata", "audioMetadata",
    }  # fmt: skip
    assert {field.alias for field in types.Part.model_fields.values()} - said_of_a_part == set(EXAMPLES)


# ---- where they differ ----------------------------------------------------------------------------------------------


def outcome(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


CHUNKS = scripts.stream(scripts.ANSWERS["text"])


def test_a_cut_stream_is_an_error_for_us_alone() -> None:
    body = frames(CHUNKS[:3], named=False)
    assert isinstance(outcome(lambda: streamed(CODEC, body)), TruncatedAnswer)
    assert sdk_stream([body])[-1].candidates[0].finish_reason is None  # half an answer, and nothing says so but this


def test_a_malformed_event_is_a_call_error_for_us_alone() -> None:
    body = frames(CHUNKS[:3], named=False) + b"data: {broken\n\n"
    assert isinstance(outcome(lambda: streamed(CODEC, body)), ProtocolError)
    their = outcome(lambda: sdk_stream([body]))
    assert isinstance(their, (ValueError, sdk_errors.UnknownApiResponseError))
    assert "{broken" in str(their)


def test_errors_inside_a_stream() -> None:
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    body = frames([*CHUNKS[:3], error], named=False)
    our, their = outcome(lambda: streamed(CODEC, body)), outcome(lambda: sdk_stream([body]))
    assert isinstance(our, Overloaded)
    assert isinstance(their, sdk_errors.ServerError)
    assert our.status == their.code == 503


# ---- requests -------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = ToolCall("fc_1", "weather", '{"city":"Bern"}', meta={"google": {"thoughtSignature": scripts.SIGNATURE}})


def content(role: str, *parts: types.Part) -> types.Content:
    return types.Content(role=role, parts=list(parts))


ASKED: list[tuple[GenerateRequest, list[types.Content], types.GenerateContentConfig]] = [
    (
        GenerateRequest(
            messages=(Message.system("Be brief"), Message.user("Hello")),
            max_tokens=9, temperature=0.5, top_p=0.5, top_k=4, seed=7, stop=("END",), presence_penalty=0.5,
            frequency_penalty=0.25, logprobs=2, output=OutputSchema.of(SCHEMA), reasoning_effort="low",
        ),
        [content("user", types.Part(text="Hello"))],
        types.GenerateContentConfig(
            system_instruction=types.Content(parts=[types.Part(text="Be brief")]),
            max_output_tokens=9, temperature=0.5, top_p=0.5, top_k=4, seed=7, stop_sequences=["END"],
            presence_penalty=0.5, frequency_penalty=0.25, response_logprobs=True, logprobs=2,
            response_mime_type="application/json", response_json_schema=SCHEMA,
            thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW, include_thoughts=True),
        ),
    ),
    (
        GenerateRequest(
            messages=(
                Message.user("Look", Image(data=b"png", media_type="image/png"), File(url="https://a/b.pdf")),
                Message.assistant(CALL),
                Message.tool(CALL, {"sky": "blue"}),
            ),
            tools=(Tool(name="weather", description="The weather", parameters=SCHEMA),),
            tool_choice="weather",
            stream=True,
            extra={"google": {"cachedContent": "cachedContents/1"}},
        ),
        [
            content(
                "user",
                types.Part(text="Look"),
                types.Part(inline_data=types.Blob(data=b"png", mime_type="image/png")),
                types.Part(file_data=types.FileData(file_uri="https://a/b.pdf", mime_type="application/pdf")),
            ),
            content(
                "model",
                types.Part(
                    function_call=types.FunctionCall(id="fc_1", name="weather", args={"city": "Bern"}),
                    thought_signature=base64.b64decode(scripts.SIGNATURE),
                ),
            ),
            content(
                "user",
                types.Part(
                    function_response=types.FunctionResponse(
                        id="fc_1", name="weather", response={"output": {"sky": "blue"}}
                    )
                ),
            ),
        ],
        types.GenerateContentConfig(
            tools=[
                types.Tool(
                    function_declarations=[
                        types.FunctionDeclaration(
                            name="weather", description="The weather", parameters_json_schema=SCHEMA
                        )
                    ]
                )
            ],
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(
                    mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"]
                )
            ),
            cached_content="cachedContents/1",
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        ),
    ),
]  # fmt: skip


def camel(value: Any) -> Any:
    """The SDK writes some names with underscores; the API reads both."""
    if isinstance(value, dict):
        return {re.sub("_([a-z])", lambda match: match[1].upper(), key): camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("request_", "contents", "config"), ASKED, ids=["plain", "tools"])
def test_bodies(request_: GenerateRequest, contents: list[types.Content], config: types.GenerateContentConfig) -> None:
    seen: list[httpx2.Request] = []
    wire = CODEC.encode(request_)
    if request_.stream:
        models = sdk([stream_of("text")], seen=seen).models
        list(models.generate_content_stream(model=MODEL, contents=contents, config=config))
    else:
        models = sdk([json.dumps(ANSWERS["text"]).encode()], kind="application/json", seen=seen).models
        models.generate_content(model=MODEL, contents=contents, config=config)
    sent = {key: value for key, value in camel(json.loads(seen[0].content)).items() if value != {}}
    assert sent == json.loads(json.dumps(wire.body))
    assert str(seen[0].url).partition("/models/")[2] == wire.path.partition("/models/")[2]


def test_embeddings() -> None:
    seen: list[httpx2.Request] = []
    answer = {"embeddings": [{"values": [0.5, 1.0]}, {"values": [2.0, 3.0]}]}
    client = sdk([json.dumps(answer).encode()], kind="application/json", seen=seen)
    config = types.EmbedContentConfig(output_dimensionality=2, task_type="RETRIEVAL_QUERY")
    theirs = client.models.embed_content(model="gemini-embedding-001", contents=["a", "b"], config=config)
    request = EmbedRequest(inputs=("a", "b"), dimensions=2, extra={"google": {"taskType": "RETRIEVAL_QUERY"}})
    codec = GoogleCodec("gemini-embedding-001")
    wire = codec.encode(request)
    assert str(seen[0].url).partition("/models/")[2] == wire.path.partition("/models/")[2]
    sent = camel(json.loads(seen[0].content))
    for item in sent["requests"]:
        item["content"].pop("role", None)  # the SDK adds a role, which means nothing here
    assert sent == wire.body
    assert codec.decode(request, answer).embeddings == [item.values for item in theirs.embeddings or ()]
