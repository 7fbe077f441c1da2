"""Anthropic's answers: whole = streamed, at every cut, and what is no answer."""

import json
from contextlib import aclosing

import httpx
import pytest

from llmprod.context import Context
from llmprod.errors import ProtocolError, StreamInterrupted, TruncatedAnswer
from llmprod.events import Finish, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallDone, UsageUpdate
from llmprod.providers._http import HTTPOptions
from llmprod.providers.anthropic import Anthropic, AnthropicCodec
from llmprod.request import GenerateRequest
from llmprod.types import Message, Opaque, Refusal, Text, Thinking, ToolCall
from llmprod.usage import Usage
from tests.providers import anthropic_scripts as scripts
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

CODEC = AnthropicCodec("claude-opus-5-5")
STREAM = GenerateRequest(messages=ASK.messages, stream=True)


def body(name: str) -> bytes:
    return frames(scripts.stream(scripts.MESSAGES[name]), named=True)


@pytest.mark.parametrize("name", scripts.MESSAGES)
def test_streamed_is_whole(name: str) -> None:
    assert facts(streamed(CODEC, body(name))) == facts(whole(CODEC, scripts.MESSAGES[name]))


@pytest.mark.parametrize("name", ["tools", "server tools and citations", "hidden and redacted thinking"])
def test_cut_at_every_byte(name: str) -> None:
    expected = facts(streamed(CODEC, body(name)))
    for pieces in every_split(body(name)):
        assert facts(as_response(decode_stream(CODEC, pieces))) == expected
    single = [bytes([byte]) for byte in body(name)]
    assert facts(as_response(decode_stream(CODEC, single))) == expected


def test_every_kind_of_block() -> None:
    answer = whole(
        CODEC, scripts.message(scripts.THINKING, scripts.REDACTED, scripts.TEXT, scripts.TOOL, scripts.CITED)
    )
    thinking, redacted, text, call, cited = answer.parts
    assert isinstance(thinking, Thinking)
    assert thinking.text == "First, let me see…"
    assert thinking.meta["anthropic"] == scripts.THINKING
    assert isinstance(redacted, Thinking)
    assert redacted.text == ""
    assert redacted.meta["anthropic"] == scripts.REDACTED
    assert text == Text("Héllo — 世界 🎉, it is noon.")
    assert not text.meta
    assert isinstance(call, ToolCall)
    assert call.input == scripts.TOOL["input"]
    assert not call.meta
    assert isinstance(cited, Text)
    assert cited.meta["anthropic"] == {"citations": scripts.CITED["citations"]}


def test_usage_is_disjoint_and_keeps_the_lifetimes_of_cache_writes() -> None:
    expected = Usage(
        input=12, cache_read=40, cache_write_5m=10, cache_write_1h=20, output=16, reasoning=9,
        server_tools={"web_search": 2},
    )  # fmt: skip
    assert streamed(CODEC, body("text")).usage == expected
    assert expected.total_input == 12 + 40 + 30
    assert expected.total_output == 25


def test_usage_is_known_while_the_answer_is_open() -> None:
    events = decode_stream(CODEC, [body("text")])
    first = next(event for event in events if isinstance(event, UsageUpdate))
    assert first.usage.cache_write_1h == 20
    assert first.usage.output == 1


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"input_tokens": 3, "output_tokens": 4}, Usage(input=3, output=4)),
        (
            {"input_tokens": 3, "output_tokens": 4, "cache_creation_input_tokens": 7},
            Usage(input=3, cache_write=7, output=4),
        ),
        ({"input_tokens": None, "output_tokens": 0, "server_tool_use": None}, Usage()),
        (
            {"cache_creation_input_tokens": 5, "cache_creation": {"ephemeral_5m_input_tokens": 9}},
            Usage(cache_write=5),
        ),
        (
            {
                "input_tokens": 3,
                "output_tokens": 4,
                "iterations": [
                    {"type": "compaction", "input_tokens": 100, "output_tokens": 20},
                    {"type": "message", "input_tokens": 3, "output_tokens": 4},
                    {"type": "fallback_message", "model": "other", "input_tokens": 900, "output_tokens": 900},
                ],
            },
            Usage(input=103, output=24),
        ),
    ],
)
def test_usage(counts: dict[str, object], expected: Usage) -> None:
    assert whole(CODEC, scripts.message(scripts.TEXT, usage=counts)).usage == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "context_overflow"),
        ("a_new_one", "unknown"),
    ],
)
def test_finish_reasons(reason: str, expected: str) -> None:
    answer = whole(CODEC, scripts.message(scripts.TEXT, stop_reason=reason))
    assert (answer.finish_reason, answer.raw_finish) == (expected, reason)


def test_a_refusal_tells_its_category_and_explanation() -> None:
    answer = streamed(CODEC, body("refusal"))
    assert answer.finish_reason == "refusal"
    assert answer.raw_finish == "refusal:cyber"
    assert answer.refusal == "This could enable harm."
    assert answer.parts == (Refusal("This could enable harm."),)


def test_events_of_a_tool_call_come_as_it_is_written() -> None:
    events = decode_stream(CODEC, [body("tools")])
    deltas = [event for event in events if isinstance(event, ToolCallDelta) and event.part == 2]
    assert (deltas[0].id, deltas[0].name, deltas[0].arguments) == ("toolu_01", "weather", "")
    done = [event for event in events if isinstance(event, ToolCallDone)]
    assert "".join(delta.arguments for delta in deltas) == done[0].call.arguments
    assert done[1].call.arguments == "{}"  # no arguments come as an empty string
    assert done[1].call.meta == {"anthropic": {"caller": {"type": "direct"}}}


def test_hidden_thinking_moves_nothing_but_is_kept() -> None:
    events = decode_stream(CODEC, [body("hidden and redacted thinking")])
    assert not any(isinstance(event, ThinkingDelta) for event in events)
    answer = as_response(events)
    assert [part.meta["anthropic"] for part in answer.parts[:2]] == [scripts.HIDDEN, scripts.REDACTED]


def test_unknown_blocks_and_deltas_are_kept() -> None:
    events = [
        {"type": "message_start", "message": scripts.message(stop_reason=None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "compaction", "content": None}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": "summary"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "some_delta", "x": 1}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "a_new_event", "index": 9},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    answer = streamed(CODEC, frames(events, named=True))
    assert answer.parts[0] == Opaque("compaction", {"anthropic": {"type": "compaction", "content": "summary"}})
    assert answer.text == "Hi"


def test_tolerance() -> None:
    """Chunks without a type, a closing [DONE], blocks whole at their start, missing closes and repeated indexes."""
    events = [
        {"type": "message_start", "message": {"id": "m", "model": "served"}},
        {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "All "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "here"}},
        {"type": "content_block_start", "index": 0, "content_block": {**scripts.TOOL}},
        {"type": "content_block_start", "index": 0, "content_block": {**scripts.TOOL_TWO}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ]
    answer = streamed(CODEC, frames(events, named=False) + b"data: [DONE]\n\n")
    assert answer.text == "All here"
    assert [(call.id, call.input) for call in answer.tool_calls] == [
        ("toolu_01", scripts.TOOL["input"]),
        ("toolu_02", {}),
    ]
    assert answer.model == "served"
    assert answer.usage is None


def test_the_stop_reason_or_the_last_event_is_the_end() -> None:
    events = scripts.stream(scripts.MESSAGES["text"])
    no_stop_event = streamed(CODEC, frames(events[:-1], named=True))
    assert no_stop_event.finish_reason == "stop"
    no_reason = streamed(CODEC, frames([*events[:-2], events[-1]], named=True))
    assert (no_reason.finish_reason, no_reason.raw_finish) == ("unknown", None)


@pytest.mark.parametrize("kept", range(1, 9))
def test_a_stream_without_its_end_is_no_success(kept: int) -> None:
    events = scripts.stream(scripts.MESSAGES["text"])
    assert kept < len(events) - 2
    with pytest.raises(TruncatedAnswer):
        streamed(CODEC, frames(events[:kept], named=True))


@pytest.mark.parametrize(
    "data",
    [
        b"{not json",
        b"<html>",
        b"[1]",
        b"null",
        b'"text"',
        b'{"type":"content_block_delta"}',
        b'{"type":"content_block_delta","index":0,"delta":null}',
        b'{"type":"content_block_delta","index":7,"delta":{"type":"text_delta","text":"x"}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta"}}',
        b'{"type":"content_block_start","index":1,"content_block":{"text":""}}',
        b'{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":null,"name":"f"}}',
        b'{"type":"message_delta","delta":"secret"}',
        b'{"type":"message_delta","delta":{"stop_reason":3}}',
    ],
)
def test_a_malformed_event_is_never_skipped(data: bytes) -> None:
    before = frames(scripts.stream(scripts.MESSAGES["text"])[:3], named=True)
    error = raised(lambda: streamed(CODEC, before + b"data: " + data + b"\n\n"))
    assert isinstance(error, ProtocolError)
    assert error.in_stream
    assert "secret" not in str(error)


@pytest.mark.parametrize("body", [None, [], 3, {}, {"content": "text"}, {"content": [{"text": "x"}]}, {"choices": []}])
def test_json_that_is_no_message(body: object) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(ASK, body)


def test_a_whole_message_without_a_reason_is_truncated() -> None:
    with pytest.raises(TruncatedAnswer):
        CODEC.decode(ASK, {**scripts.MESSAGES["text"], "stop_reason": None})


# ---- through the provider -------------------------------------------------------------------------------------------


def provider(transport: Scripted) -> Anthropic:
    return Anthropic("claude-opus-5-5", api_key="k", http=HTTPOptions(client=httpx.AsyncClient(transport=transport)))


async def test_end_to_end_stream() -> None:
    transport = Scripted([bytes([byte]) for byte in body("tools")])
    async with aclosing(provider(transport)) as target:
        response = await target.send(STREAM, Context.new())
        events = [event async for event in response]
    assert isinstance(events[-1], Finish)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == scripts.TEXT["text"]
    assert facts(response) == facts(whole(CODEC, scripts.MESSAGES["tools"]))
    assert response.complete
    assert response.request_id == "req_1"


async def test_end_to_end_whole() -> None:
    transport = Scripted([json.dumps(scripts.MESSAGES["tools"]).encode()], kind="application/json")
    async with aclosing(provider(transport)) as target:
        response = await target.send(ASK, Context.new())
    assert facts(response) == facts(whole(CODEC, scripts.MESSAGES["tools"]))
    assert response.raw == scripts.MESSAGES["tools"]
    sent = transport.requests[0]
    assert str(sent.url) == "https://api.anthropic.com/v1/messages"
    assert sent.headers["x-api-key"] == "k"
    assert sent.headers["anthropic-version"] == "2023-06-01"


async def test_an_answer_that_breaks_off_keeps_what_came() -> None:
    events = scripts.stream(scripts.MESSAGES["text"])[:6]
    async with aclosing(provider(Scripted([frames(events, named=True)]))) as target:
        response = await target.send(STREAM, Context.new())
        with pytest.raises(StreamInterrupted) as caught:
            await response.read()
    assert caught.value.partial is response
    assert response.text == scripts.TEXT["text"][:15]
    assert response.usage is not None
    assert response.usage.input == 12


def test_replay_is_byte_for_byte() -> None:
    answer = streamed(CODEC, body("server tools and citations"))
    turn = Message.assistant(*answer.parts)
    request = GenerateRequest(messages=(Message.user("Hi"), turn, Message.user("Go on")))
    sent = CODEC.encode(request).body["messages"][1]["content"]
    given = [{key: value for key, value in block.items() if value is not None} for block in answer_blocks()]
    assert sent == given


def answer_blocks() -> list[dict[str, object]]:
    return scripts.MESSAGES["server tools and citations"]["content"]
