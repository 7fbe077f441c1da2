"""Gemini's answers: whole = streamed, at every cut, and what is no answer."""

import json
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import httpx
import pytest

from llmprod.context import Context
from llmprod.errors import ProtocolError, StreamInterrupted, TruncatedAnswer
from llmprod.events import Finish, TextDelta, TokenLogprob, UsageUpdate
from llmprod.pricing import PriceBook
from llmprod.providers._http import HTTPOptions
from llmprod.providers.google import Google, GoogleCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.types import Audio, File, Image, Message, Opaque, Text, Thinking, ToolCall
from llmprod.usage import Usage
from tests.providers import google_scripts as scripts
from tests.providers.codec_drive import (
    ASK,
    Scripted,
    as_response,
    decode_stream,
    every_split,
    facts,
    frames,
    raised,
    streamed,
    whole,
)

CODEC = GoogleCodec("gemini-3-flash")
STREAM = GenerateRequest(messages=ASK.messages, stream=True)


def body(name: str, *, last_alone: bool = False) -> bytes:
    return frames(scripts.stream(scripts.ANSWERS[name], last_alone=last_alone), named=False)


@pytest.mark.parametrize("last_alone", [False, True])
@pytest.mark.parametrize("name", scripts.ANSWERS)
def test_streamed_is_whole(name: str, last_alone: bool) -> None:
    assert facts(streamed(CODEC, body(name, last_alone=last_alone))) == facts(whole(CODEC, scripts.ANSWERS[name]))


@pytest.mark.parametrize("name", ["tools", "signed thoughts"])
def test_cut_at_every_byte(name: str) -> None:
    expected = facts(streamed(CODEC, body(name)))
    for pieces in every_split(body(name)):
        assert facts(as_response(decode_stream(CODEC, pieces))) == expected
    single = [bytes([byte]) for byte in body(name).replace(b"\n", b"\r\n")]
    assert facts(as_response(decode_stream(CODEC, single))) == expected


def test_every_kind_of_part() -> None:
    own = {"google": {"thoughtSignature": scripts.SIGNATURE}}
    assert whole(CODEC, scripts.ANSWERS["tools"]).parts == (
        Thinking("First, let me see…"),
        Text("Héllo — 世界 🎉, it is noon."),
        ToolCall("fc_1", "weather", '{"city":"Zürich","days":[1,2.5]}', meta=own),
        ToolCall("llmprod_resp_1_1", "clock", "{}", meta={"google": {}}),
    )
    assert whole(CODEC, scripts.ANSWERS["media"]).parts[1:] == (
        Image(data=b"png", media_type="image/png", meta=own),
        Audio(data=b"wav", media_type="audio/L16;rate=24000"),
        File(data=b"%PDF", media_type="application/pdf"),
        Opaque("fileData", {"google": scripts.LINK}),
    )
    assert whole(CODEC, scripts.ANSWERS["code"]).parts[1:3] == (
        Opaque("executableCode", {"google": scripts.CODE}),
        Opaque("codeExecutionResult", {"google": scripts.CODE_RESULT}),
    )
    assert whole(CODEC, scripts.ANSWERS["signed text"]).parts == (
        Text(scripts.TEXT["text"]),
        Text("Twelve.", meta=own),
        Text(scripts.TEXT["text"]),
    )
    assert whole(CODEC, scripts.ANSWERS["a signature on empty text"]).parts[1] == Text("", meta=own)
    assert whole(CODEC, scripts.ANSWERS["a signature alone"]).parts[1] == Opaque("thoughtSignature", own)
    drawing = {"inlineData": scripts.IMAGE["inlineData"], "thought": True}
    assert whole(CODEC, scripts.answer(drawing)).parts == (Opaque("inlineData", {"google": drawing}),)


def test_usage_is_disjoint() -> None:
    usage = streamed(CODEC, body("text")).usage
    assert usage == Usage(
        input=30,
        cache_read=30,
        cache_read_audio=10,
        input_audio=20,
        input_image=10,
        tool_prompt=7,
        output=20,
        output_image=5,
        reasoning=9,
    )
    assert usage.total_input == 100 + 7
    assert usage.total_output == 25 + 9
    assert usage.total == scripts.USAGE["totalTokenCount"]


def test_usage_is_known_while_the_answer_is_open_and_the_last_counts() -> None:
    updates = [event.usage for event in decode_stream(CODEC, [body("text")]) if isinstance(event, UsageUpdate)]
    assert [usage.output for usage in updates] == [1, 2, 3, 4, 20]


@pytest.mark.parametrize(
    ("model", "queries", "searches"),
    [
        ("gemini-2.5-flash", ["noon", "midday"], 1),
        ("models/gemini-2.5-pro", ["noon"], 1),
        ("gemini-3.8-flash", ["noon", "midday", "noon", ""], 2),
        ("gemini-3.8-flash", [], 0),
        ("gemini-3.8-flash", None, 0),
    ],
)
def test_searches_are_counted_by_what_the_answer_was_grounded_in(model: str, queries: Any, searches: int) -> None:
    answer = scripts.ANSWERS["text"]
    (candidate,) = answer["candidates"]
    grounded = {**candidate, "groundingMetadata": {"webSearchQueries": queries}}
    told = {**answer, "modelVersion": model, "candidates": [grounded]}
    usage = whole(CODEC, told).usage
    assert usage.server_tools == ({"web_search": searches} if searches else {})
    counts = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}
    first = {"candidates": [{"groundingMetadata": {"webSearchQueries": queries}, "content": {"parts": []}}]}
    last = {**told, **counts, "candidates": [candidate]}
    assert streamed(CODEC, frames([{**told, **first}, last], named=False)).usage.server_tools == usage.server_tools
    cost = PriceBook(prices="snapshot").cost(Usage(server_tools={"web_search": 2}), provider="google", model=model)
    assert cost.amount == 2 * (Decimal("0.035") if "2." in model else Decimal("0.014"))


def test_usage_without_details() -> None:
    plain = {**scripts.ANSWERS["text"], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}
    assert whole(CODEC, plain).usage == Usage(input=3, output=4)
    assert whole(CODEC, {**plain, "usageMetadata": None}).usage is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "pause"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "error"),
        ("UNEXPECTED_TOOL_CALL", "error"),
        ("MISSING_THOUGHT_SIGNATURE", "error"),
        ("OTHER", "error"),
        ("FINISH_REASON_UNSPECIFIED", "unknown"),
        ("A_NEW_ONE", "unknown"),
    ],
)
def test_finish_reasons(reason: str, expected: str) -> None:
    answer = whole(CODEC, scripts.answer(scripts.TEXT, reason=reason))
    assert (answer.finish_reason, answer.raw_finish) == (expected, reason)
    after_call = whole(CODEC, scripts.answer(scripts.CALL, reason=reason))
    assert after_call.finish_reason == ("tool_calls" if reason == "STOP" else expected)


def test_a_refused_prompt_is_a_complete_answer() -> None:
    for answer in (whole(CODEC, scripts.BLOCKED), streamed(CODEC, frames([scripts.BLOCKED], named=False))):
        assert (answer.finish_reason, answer.raw_finish) == ("content_filter", "PROHIBITED_CONTENT")
        assert answer.complete
        assert answer.parts == ()
        assert answer.usage == Usage(input=8)


def test_logprobs() -> None:
    scores = {
        "chosenCandidates": [{"token": "Hé", "logProbability": -0.5}, {"token": "llo", "logProbability": -0.25}],
        "topCandidates": [
            {"candidates": [{"token": "Hé", "logProbability": -0.5}, {"token": "A", "logProbability": -3}]}
        ],
    }
    expected = [TokenLogprob("Hé", -0.5, (("Hé", -0.5), ("A", -3))), TokenLogprob("llo", -0.25)]
    assert whole(CODEC, scripts.answer({"text": "Héllo"}, logprobsResult=scores)).logprobs == expected


def test_other_candidates_are_left_aside() -> None:
    one = scripts.answer({"text": "one"})
    other = scripts.answer({"text": "other"}, reason=None)["candidates"][0]
    events = [
        {**one, "candidates": [{**other, "index": 1}]},
        {**one, "candidates": [{**other, "index": 1}, one["candidates"][0]]},
    ]
    assert streamed(CODEC, frames(events, named=False)).text == "one"


def test_a_list_of_chunks_is_a_stream_that_came_at_once() -> None:
    chunks = scripts.stream(scripts.ANSWERS["tools"])
    assert facts(as_response(CODEC.decode(STREAM, chunks).events)) == facts(whole(CODEC, scripts.ANSWERS["tools"]))


def test_tolerance() -> None:
    """A closing [DONE], empty parts, and candidates without content."""
    empty = [
        {"candidates": [{"content": {"parts": [{}]}}, {}]},
        {"candidates": [{"content": None}]},
        {"responseId": "r"},
    ]
    assert streamed(CODEC, frames(empty, named=False) + body("text")).text == scripts.TEXT["text"]
    assert streamed(CODEC, body("text") + b"data: [DONE]\n\n").text == scripts.TEXT["text"]


@pytest.mark.parametrize("kept", range(5))
def test_a_stream_without_its_end_is_no_success(kept: int) -> None:
    chunks = scripts.stream(scripts.ANSWERS["text"])
    assert kept < len(chunks)
    with pytest.raises(TruncatedAnswer):
        streamed(CODEC, frames(chunks[:kept], named=False))


@pytest.mark.parametrize("parts", [[], [scripts.TEXT], [scripts.CALL]])
def test_a_whole_answer_without_a_reason_is_truncated(parts: list[dict[str, object]]) -> None:
    with pytest.raises(TruncatedAnswer):
        CODEC.decode(ASK, scripts.answer(*parts, reason=None))
    with pytest.raises(TruncatedAnswer):
        CODEC.decode(ASK, {"usageMetadata": {"promptTokenCount": 3}, "modelVersion": "m"})


@pytest.mark.parametrize(
    "data",
    [
        b"{not json",
        b"<html>",
        b"[1]",
        b"null",
        b"{}",
        b'{"choices":[]}',
        b'{"candidates":"secret"}',
        b'{"candidates":[3]}',
        b'{"candidates":[{"content":{"parts":[3]}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":3}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"args":{}}}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"?"}}]}}]}',
        b'{"candidates":[{"finishReason":3}]}',
    ],
)
def test_a_malformed_event_is_never_skipped(data: bytes) -> None:
    for before in (b"", frames(scripts.stream(scripts.ANSWERS["text"])[:2], named=False)):
        stream = before + b"data: " + data + b"\n\n"
        error = raised(lambda stream=stream: streamed(CODEC, stream))
        assert isinstance(error, ProtocolError)
        assert error.in_stream
        assert "secret" not in str(error)


@pytest.mark.parametrize("body", [None, 3, "x", {}, {"choices": []}, {"candidates": 3}])
def test_json_that_is_no_answer(body: object) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(ASK, body)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings() -> None:
    request = EmbedRequest(inputs=("a", "b"))
    body = {"embeddings": [{"values": [0.5, 1]}, {"values": [2, 3]}], "usageMetadata": {"promptTokenCount": 2}}
    decoded = CODEC.decode(request, body)
    assert decoded.embeddings == [[0.5, 1], [2, 3]]
    assert decoded.events == [UsageUpdate(Usage(input=2))]
    assert not CODEC.decode(request, {"embeddings": body["embeddings"]}).events
    for bad in (None, [], {}, {"embeddings": [{}, {}]}, {"embeddings": body["embeddings"][:1]}):
        with pytest.raises(ProtocolError):
            CODEC.decode(request, bad)


# ---- through the provider -------------------------------------------------------------------------------------------


def provider(transport: Scripted, model: str = "gemini-3-flash") -> Google:
    return Google(model, api_key="k", http=HTTPOptions(client=httpx.AsyncClient(transport=transport)))


async def test_end_to_end_stream() -> None:
    transport = Scripted([bytes([byte]) for byte in body("tools")])
    async with aclosing(provider(transport)) as target:
        response = await target.send(STREAM, Context.new())
        events = [event async for event in response]
    assert isinstance(events[-1], Finish)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == scripts.TEXT["text"]
    assert facts(response) == facts(whole(CODEC, scripts.ANSWERS["tools"]))
    assert response.complete
    sent = transport.requests[0]
    root = "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash"
    assert str(sent.url) == f"{root}:streamGenerateContent?alt=sse"
    assert sent.headers["x-goog-api-key"] == "k"
    assert "authorization" not in sent.headers


async def test_end_to_end_whole_and_embeddings() -> None:
    transport = Scripted([json.dumps(scripts.ANSWERS["tools"]).encode()], kind="application/json")
    async with aclosing(provider(transport)) as target:
        response = await target.send(ASK, Context.new())
    assert facts(response) == facts(whole(CODEC, scripts.ANSWERS["tools"]))
    assert response.raw == scripts.ANSWERS["tools"]
    transport = Scripted([b'{"embeddings":[{"values":[1.5]}]}'], kind="application/json")
    async with aclosing(provider(transport, "gemini-embedding-001")) as target:
        response = await target.send(EmbedRequest(inputs=("a",)), Context.new())
    assert response.embeddings == [[1.5]]
    assert str(transport.requests[0].url).endswith("/models/gemini-embedding-001:batchEmbedContents")


async def test_an_answer_that_breaks_off_keeps_what_came() -> None:
    chunks = scripts.stream(scripts.ANSWERS["text"])[:3]
    async with aclosing(provider(Scripted([frames(chunks, named=False)]))) as target:
        response = await target.send(STREAM, Context.new())
        with pytest.raises(StreamInterrupted):
            await response.read()
    assert response.text == scripts.TEXT["text"][:15]
    assert response.usage is not None


@pytest.mark.parametrize("name", scripts.ANSWERS)
def test_replay_gives_each_part_back_with_its_signature(name: str) -> None:
    parts = scripts.ANSWERS[name]["candidates"][0]["content"]["parts"]
    turn = Message.assistant(*whole(CODEC, scripts.ANSWERS[name]).parts)
    contents = CODEC.encode(GenerateRequest(messages=(Message.user("Hi"), turn))).body["contents"]
    # Summaries of thinking without a signature are for people; the API needs none of them.
    expected = [part for part in parts if part != scripts.THOUGHT]
    assert (contents[1]["parts"] if len(contents) > 1 else []) == expected
