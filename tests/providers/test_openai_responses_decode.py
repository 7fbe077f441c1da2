"""The Responses API's answers: whole = streamed, at every cut, and what is no answer."""

import copy
import json
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from llmprod.context import Context
from llmprod.errors import ProtocolError, TruncatedAnswer
from llmprod.events import (
    Finish,
    PartDone,
    RefusalDelta,
    Start,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.providers._http import HTTPOptions
from llmprod.providers.openai import OpenAI
from llmprod.providers.openai_responses import ResponsesCodec
from llmprod.request import GenerateRequest
from llmprod.types import Opaque, Refusal, Text, Thinking, ToolCall
from llmprod.usage import Usage
from tests.providers.codec_drive import ASK, Scripted, decode_stream, every_split, facts, raised, streamed, whole
from tests.providers.openai_scripts import (
    CUSTOM,
    FUNCTION,
    HIDDEN,
    OTHERS,
    REASONING,
    RESPONSES,
    TEXT,
    answered,
    named,
    responses_events,
    responses_stream,
    said,
)

CODEC = ResponsesCodec("gpt-5.6")
STREAM = GenerateRequest(messages=ASK.messages, stream=True)


@pytest.mark.parametrize("name", RESPONSES)
def test_streamed_is_whole(name: str) -> None:
    assert facts(streamed(CODEC, responses_stream(RESPONSES[name]))) == facts(whole(CODEC, RESPONSES[name]))


@pytest.mark.parametrize("name", ["text", "reasoning", "custom tool"])
def test_cut_at_every_byte(name: str) -> None:
    body = responses_stream(RESPONSES[name])
    want = decode_stream(CODEC, [body])
    for cut in every_split(body):
        assert decode_stream(CODEC, cut) == want


@pytest.mark.parametrize("size", [1, 13, 100_000])
async def test_through_the_provider(size: int) -> None:
    body = responses_stream(RESPONSES["hidden reasoning and tools"])
    transport = Scripted([body[at : at + size] for at in range(0, len(body), size)])
    async with httpx.AsyncClient(transport=transport) as client:
        async with aclosing(
            OpenAI("gpt-5.6", api="responses", api_key="sk-test", http=HTTPOptions(client=client))
        ) as provider:
            response = await (await provider.send(STREAM, Context.new())).read()
    assert facts(response) == facts(whole(CODEC, RESPONSES["hidden reasoning and tools"]))
    assert transport.requests[0].url.path == "/v1/responses"


def test_what_an_answer_tells() -> None:
    response = whole(CODEC, RESPONSES["text"])
    about = {"item": {"id": "msg_1", "status": "completed"}, "annotations": []}
    assert response.parts == (Text(TEXT, meta={"openai-responses": about}),)
    assert (response.finish_reason, response.raw_finish) == ("stop", "completed")
    assert (response.model, response.response_id) == ("gpt-5.6-2026-06-01", "resp_1")
    assert response.usage == Usage(
        input=30, cache_read=40, cache_write=5, cache_write_30m=10, cache_write_12h=15, output=30, reasoning=20
    )
    assert (response.usage.total_input, response.usage.total_output) == (100, 50)


@pytest.mark.parametrize(
    ("name", "reason", "raw"),
    [
        ("hidden reasoning and tools", "tool_calls", "completed"),
        ("custom tool", "tool_calls", "completed"),
        ("refusal", "refusal", "completed"),
        ("cut by length", "length", "max_output_tokens"),
        ("cut by filter", "content_filter", "content_filter"),
        ("own tools", "stop", "completed"),
    ],
)
def test_finish(name: str, reason: str, raw: str) -> None:
    response = streamed(CODEC, responses_stream(RESPONSES[name]))
    assert (response.finish_reason, response.raw_finish) == (reason, raw)


def test_events_of_a_stream() -> None:
    events = decode_stream(CODEC, [responses_stream(RESPONSES["reasoning"])])
    assert type(events[0]) is Start
    assert [type(event) for event in events[-2:]] == [UsageUpdate, Finish]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == TEXT
    thought = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
    assert thought == "First, the city.\n\nThen, the hour."
    first, second = (event.value for event in events if isinstance(event, PartDone))
    assert first == Thinking(thought, meta={"openai-responses": {"item": REASONING}})
    assert isinstance(second, Text)


def test_tool_calls() -> None:
    events = decode_stream(CODEC, [responses_stream(answered(FUNCTION))])
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert (deltas[0].id, deltas[0].name) == ("call_a", "weather")
    assert "".join(delta.arguments for delta in deltas) == FUNCTION["arguments"]
    (done,) = [event for event in events if isinstance(event, ToolCallDone)]
    about = {"id": "fc_1", "type": "function_call", "status": "completed"}
    assert done.call == ToolCall("call_a", "weather", FUNCTION["arguments"], meta={"openai-responses": about})
    (custom,) = streamed(CODEC, responses_stream(answered(CUSTOM))).tool_calls
    assert (custom.name, custom.arguments) == ("shell", '["ls", "-l"]')


def test_refusals() -> None:
    events = decode_stream(CODEC, [responses_stream(RESPONSES["refusal"])])
    assert "".join(event.text for event in events if isinstance(event, RefusalDelta)) == "I can't help with that."
    assert streamed(CODEC, responses_stream(RESPONSES["refusal"])).parts == (Refusal("I can't help with that."),)


def test_logprobs() -> None:
    response = streamed(CODEC, responses_stream(RESPONSES["logprobs"]))
    assert [token.token for token in response.logprobs] == ["It is", " noon", "."]
    assert response.logprobs[0].top == (("It is", -0.1), ("Its", -3.0))


def test_items_of_other_kinds_are_kept() -> None:
    response = streamed(CODEC, responses_stream(RESPONSES["own tools"]))
    kept = [part for part in response.parts if isinstance(part, Opaque)]
    assert [part.meta["openai-responses"]["item"] for part in kept] == list(OTHERS.values())
    assert response.usage is not None
    assert response.usage.server_tools == {
        "web_search": 2, "file_search": 1, "code_interpreter": 1, "image_generation": 1,
    }  # fmt: skip
    assert response.text == TEXT


# ---- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "reasoning", "hidden reasoning and tools"])
def test_only_a_terminal_event_ends_an_answer(name: str) -> None:
    events = responses_events(RESPONSES[name])
    for count in range(len(events)):
        for tail in (b"", b"data: [DONE]\n\n"):
            error = raised(lambda count=count, tail=tail: decode_stream(CODEC, [named(events[:count]) + tail]))
            assert isinstance(error, TruncatedAnswer)


@pytest.mark.parametrize("status", ["in_progress", "queued", None, "something new"])
def test_a_whole_answer_that_is_none_yet(status: Any) -> None:
    assert isinstance(raised(lambda: whole(CODEC, answered(said("It"), status=status))), TruncatedAnswer)


def test_what_follows_the_terminal_event_is_not_read() -> None:
    body = responses_stream(RESPONSES["text"]) + b"data: <html>\n\n"
    assert streamed(CODEC, body).text == TEXT


# ---- the form, as others write it -----------------------------------------------------------------------------------


def test_unknown_events_and_fields_are_skipped() -> None:
    events = responses_events(RESPONSES["text"])
    odd = {"type": "response.telepathy.delta", "sequence_number": 0, "delta": "x"}
    mixed = [item for event in events for item in (odd, {**event, "new": 1})]
    assert facts(streamed(CODEC, named(mixed))) == facts(whole(CODEC, RESPONSES["text"]))


def test_the_type_may_stand_in_the_events_name_alone() -> None:
    body = b""
    for event in responses_events(RESPONSES["text"]):
        data = {key: value for key, value in event.items() if key != "type"}
        body += f"event: {event['type']}\ndata: {json.dumps(data)}\n\n".encode()
    with pytest.raises(ProtocolError):
        decode_stream(CODEC, [body.replace(b'"response": {', b'"response": 7, "x": {')])


@pytest.mark.parametrize("gone", ["output_item.added", "output_item.done", "content_part.added", "output_text.done"])
def test_servers_that_leave_events_out(gone: str) -> None:
    for name in ("text", "hidden reasoning and tools", "reasoning"):
        events = [event for event in responses_events(RESPONSES[name]) if event["type"] != f"response.{gone}"]
        assert facts(streamed(CODEC, named(events))) == facts(whole(CODEC, RESPONSES[name]))


def test_only_the_finished_items() -> None:
    kept = ("response.created", "response.output_item.done", "response.completed")
    for name in ("text", "hidden reasoning and tools", "reasoning", "refusal"):
        events = [event for event in responses_events(RESPONSES[name]) if event["type"] in kept]
        decoded = decode_stream(CODEC, [named(events)])
        assert facts(streamed(CODEC, named(events))) == facts(whole(CODEC, RESPONSES[name]))
        told = "".join(event.text for event in decoded if isinstance(event, TextDelta))
        assert told == streamed(CODEC, named(events)).text


def test_calls_that_are_never_finished() -> None:
    events = [event for event in responses_events(answered(FUNCTION)) if event["type"] != "response.output_item.done"]
    events[-1] = copy.deepcopy(events[-1])
    events[-1]["response"]["output"] = []
    (call,) = streamed(CODEC, named(events)).tool_calls
    assert (call.id, call.name, call.input) == ("call_a", "weather", {"city": "Zürich", "days": [1, 2.5]})


def test_no_output_index() -> None:
    events = copy.deepcopy(responses_events(RESPONSES["text"]))
    for event in events:
        event.pop("output_index", None)
        event.pop("sequence_number", None)
    assert streamed(CODEC, named(events)).text == TEXT


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"<html>",
        b"[]",
        b"null",
        b'{"type": "response.output_text.delta"}',
        b'{"type": "response.output_text.delta", "delta": "a", "output_index": []}',
        b'{"type": "response.output_item.done", "item": 7}',
        b'{"type": "response.output_item.added"}',
        b'{"type": "response.output_item.done", "item": {"type": "function_call"}}',
    ],
)
def test_malformed_events_are_never_skipped(data: bytes) -> None:
    body = b"data: " + data + b"\n\n" + responses_stream(RESPONSES["text"])
    error = raised(lambda: decode_stream(CODEC, [body]))
    assert type(error) is ProtocolError
    assert error.in_stream


@pytest.mark.parametrize(
    "body", [{}, [], 7, {"output": None}, {"status": "completed"}, {"output": [7], "status": "completed"}]
)
def test_malformed_bodies(body: Any) -> None:
    assert type(raised(lambda: whole(CODEC, body))) is ProtocolError


def test_hidden_reasoning_is_a_part_all_the_same() -> None:
    parts = whole(CODEC, answered(HIDDEN, FUNCTION)).parts
    assert parts[0] == Thinking("", meta={"openai-responses": {"item": HIDDEN}})
