"""What is read from results and exceptions by their shape alone, without any SDK."""

from __future__ import annotations

import json
import socket
import urllib.error
from types import SimpleNamespace as Obj

import anyio
import pytest

import llmprod
from llmprod import Usage, capture, errors, resilient
from llmprod._functions.sdk_errors import explain
from llmprod._functions.sdk_stream import StreamReader
from tests.decorators.scripted import retry


def read(value, **options):
    with capture() as calls:
        assert resilient(retry(1), **options)(lambda: value)() is value
    return calls[-1].response


CHAT = {
    "id": "c1", "object": "chat.completion", "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {
        "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 4}
    },
}  # fmt: skip
RESPONSES = {
    "id": "r1", "object": "response", "status": "completed", "model": "m",
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "hello"}]},
    ],
    "usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}},
}  # fmt: skip
MESSAGE = {
    "id": "m1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "hello"}],
    "usage": {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 5},
}  # fmt: skip
GOOGLE = {
    "candidates": [
        {"content": {"parts": [{"text": "hmm", "thought": True}, {"text": "hello"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 5},
    "modelVersion": "m", "responseId": "g1",
}  # fmt: skip


@pytest.mark.parametrize("value", [CHAT, RESPONSES, MESSAGE, GOOGLE], ids=["chat", "responses", "message", "google"])
def test_an_apis_json(value):
    response = read(value)
    assert response.text == "hello"
    assert response.usage == Usage(input=6, cache_read=4, output=5)
    assert (response.model, response.finish_reason) == ("m", "stop")
    assert response.response_id is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("hello", "hello"),
        ("", ""),
        ({"text": "hello"}, "hello"),
        ({"answer": "hello", "sources": [1]}, "hello"),
        ({"answer": 3}, ""),
        ({"choices": None}, ""),
        ({"choices": []}, ""),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "hello"}]}}]}, "hello"),
        (3, ""),
    ],
)
def test_text(value, text):
    response = read(value)
    assert response.text == text
    assert response.finish_reason == "unknown"


def test_usage_of_a_dict_of_the_applications():
    assert read({"text": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).usage == Usage(input=3, output=4)
    assert read({"text": "x", "usage": Usage(input=3)}).usage == Usage(input=3)
    assert read({"text": "x", "usage": {"prompt_tokens": "many"}}).usage is None
    assert read({"text": "x"}).usage is None


def test_a_response_of_this_library():
    client = llmprod.Client(llmprod.Static("hello"))
    response = read(client.generate("q"))
    assert (response.text, response.finish_reason) == ("hello", "stop")


def test_a_whole_answer_without_a_finish_is_an_answer():
    body = {**CHAT, "choices": [{**CHAT["choices"][0], "finish_reason": None}]}
    assert read(body).finish_reason == "unknown"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({**RESPONSES, "status": "failed", "error": {"code": "server_error", "message": "x"}}, errors.ServerError),
        ({**RESPONSES, "status": "failed", "error": {"code": "rate_limit_exceeded"}}, errors.RateLimited),
        ({"object": "chat.completion", "choices": None, "error": {"code": 502, "message": "x"}}, errors.ServerError),
    ],
)
def test_a_failure_that_looks_like_an_answer(value, error):
    with pytest.raises(error):
        read(value)
    assert read(value, check_complete=False).finish_reason == "unknown"


def test_objects_whose_attributes_fail_are_passed_on():
    class Lazy:
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert read(Lazy()).text == ""


def test_streams_of_this_library():
    client = llmprod.Client("simulated:small")

    @resilient(retry())
    def ask():
        return client.stream("q", max_tokens=5)

    with capture() as calls, ask() as response:
        events = list(response)
    assert calls[-1].text == response.text == "".join(e.text for e in events if isinstance(e, llmprod.TextDelta))
    assert calls[-1].usage == response.usage
    assert calls[-1].response.finish_reason == "length"


# ---- streams --------------------------------------------------------------------------------------------------------


def chunk(index=0, finish=None, usage=None, **delta):
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "m", "id": "c", "choices": [choice], "usage": usage}


def feed(*items):
    reader = StreamReader()
    return reader, [event for item in items for event in reader.feed(item)]


@pytest.mark.parametrize(
    ("item", "commits"),
    [
        ("", False),
        (None, False),
        ("x", True),
        (b"bytes", True),
        (object(), True),
        ({}, True),
        (chunk(role="assistant"), False),
        (chunk(content=""), False),
        (chunk(content="x"), True),
        (chunk(refusal="x"), True),
        (chunk(tool_calls=[{"index": 0}]), True),
        (chunk(index=1, content="x"), True),
        (chunk(finish="stop"), True),
        ({"object": "chat.completion.chunk", "choices": []}, False),
        ({"type": "message_start", "message": {"model": "m"}}, False),
        ({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, False),
        ({"type": "content_block_start", "content_block": {"type": "tool_use", "name": "x"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}, True),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, True),
        ({"type": "response.created", "response": {"model": "m"}}, False),
        ({"type": "response.output_text.delta", "delta": "x"}, True),
        ({"type": "response.function_call_arguments.delta", "delta": "{"}, True),
        ({"type": "response.of_some_future", "x": 1}, False),
        ({"candidates": [], "usageMetadata": {"promptTokenCount": 3}}, False),
        ({"candidates": [{"content": {"parts": [{"text": "x"}]}}]}, True),
        ({"candidates": [{"content": {"parts": [{"functionCall": {"name": "x"}}]}}]}, True),
        (llmprod.Start("m"), False),
        (llmprod.TextDelta("x"), True),
    ],
)
def test_what_commits_a_stream(item, commits):
    assert feed(item)[0].committed is commits


def test_searches_of_googles_answer_are_counted():
    grounded = {**GOOGLE, "modelVersion": "gemini-3.8-flash"}
    grounded["candidates"] = [{**GOOGLE["candidates"][0], "groundingMetadata": {"webSearchQueries": ["a", "b"]}}]
    assert read(grounded).usage.server_tools == {"web_search": 2}


def test_usage_of_anthropics_stream_is_put_together():
    _, events = feed(
        {"type": "message_start", "message": {"model": "m", "usage": {
            "input_tokens": 6, "output_tokens": 1, "cache_creation_input_tokens": 9,
            "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 7}}}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 30}},
    )  # fmt: skip
    assert events[-2].usage == Usage(input=6, cache_write_5m=2, cache_write_1h=7, output=30)
    assert events[-1] == llmprod.Finish("length", "max_tokens")


def test_later_usage_takes_the_place_of_earlier():
    used = {"prompt_tokens": 3, "completion_tokens": 1}
    reader, events = feed(
        chunk(content="x", usage=used), chunk(finish="length", usage={**used, "completion_tokens": 9})
    )
    assert events[-1].usage == Usage(input=3, output=9)
    assert reader.finished


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}}, errors.RateLimited),
        ({"type": "error", "sequence_number": 3, "code": "server_error", "message": "x"}, errors.ServerError),
        ({"object": "chat.completion.chunk", "choices": [], "error": {"code": 529, "message": "x"}}, errors.Overloaded),
    ],
)
def test_failures_inside_a_stream(item, error):
    with pytest.raises(error):
        StreamReader().feed(item)
    StreamReader(check=False).feed(item)


def test_events_of_this_library_are_read_as_they_are():
    async def ask():
        for event in (llmprod.TextDelta("x"), llmprod.Finish("length")):
            yield event

    async def main():
        with capture() as calls:
            assert len([event async for event in resilient(retry())(ask)()]) == 2
        return calls[-1].response

    response = anyio.run(main)
    assert (response.text, response.finish_reason) == ("x", "length")


# ---- exceptions -----------------------------------------------------------------------------------------------------


def exception(module, name, *bases, **attributes):
    error = type(name, bases or (Exception,), {"__module__": module})("a secret")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def replied(status, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Obj(status_code=status, headers=named, json=lambda: {"error": {"code": "x"}})


OPENAI = exception("openai", "APIConnectionError")
TIMED_OUT = exception("openai", "APITimeoutError")
TIMED_OUT.__cause__ = exception("httpx2", "ConnectTimeout")
CONNECT = exception("anthropic", "APIConnectionError")
CONNECT.__cause__ = exception("httpx2", "ConnectError")
STATUS = exception("groq", "APIStatusError", status_code=429, response=replied(429), body={"error": {"code": "x"}})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OPENAI, errors.ReadError),
        (TIMED_OUT, errors.ConnectTimeout),
        (CONNECT, errors.ConnectError),
        (STATUS, errors.RateLimited),
        (exception("openai", "APITimeoutError"), errors.CallTimeout),
        (exception("some_sdk", "Oops", status_code=503, response=replied(503)), errors.Overloaded),
        (exception("google.genai.errors", "APIError", code=504, status="DEADLINE_EXCEEDED"), errors.ServerError),
        (exception("google.genai.errors", "UnknownApiResponseError", ValueError), errors.ProtocolError),
        (exception("httpx", "ConnectTimeout"), errors.ConnectTimeout),
        (exception("httpx", "PoolTimeout"), errors.ConnectTimeout),
        (exception("requests.exceptions", "Timeout"), errors.CallTimeout),
        (exception("requests.exceptions", "ConnectionError"), errors.ReadError),
        (exception("requests.exceptions", "HTTPError", response=replied(529)), errors.Overloaded),
        (exception("aiohttp", "ClientConnectorError"), errors.ConnectError),
        (exception("aiohttp", "ClientPayloadError"), errors.ReadError),
        (exception("aiohttp", "ClientResponseError", status=500), errors.ServerError),
        (exception("httpx", "DecodingError"), errors.ProtocolError),
        (urllib.error.HTTPError("http://x", 503, "x", {}, None), errors.Overloaded),
        (urllib.error.URLError("x"), errors.ConnectError),
        (TimeoutError(), errors.CallTimeout),
        (exception("trio", "TooSlowError"), errors.CallTimeout),
        (ConnectionRefusedError(), errors.ConnectError),
        (ConnectionResetError(), errors.ReadError),
        (BrokenPipeError(), errors.ReadError),
        (socket.gaierror(), errors.ConnectError),
        (anyio.EndOfStream(), errors.ReadError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else f"{type(value).__module__}.{type(value).__name__}",
)
def test_errors_are_recognised(error, kind, request):
    known = explain(error, target="ask")
    assert type(known) is kind
    assert known.__cause__ is error
    assert known.provider == "ask"
    assert "secret" not in f"{known} {known!r}"
    if isinstance(error, urllib.error.HTTPError):
        error.close()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("status_code"),
        json.JSONDecodeError("x", "", 0),  # the application's own JSON
        OSError("disk"),
        exception("starlette.exceptions", "HTTPException", status_code=500, headers=None),
        exception("openai", "OpenAIError"),
        exception("openai", "LengthFinishReasonError"),
        exception("httpx", "InvalidURL"),
        errors.RateLimited(),
        errors.InvalidArgument("a", "b", "c"),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_others_are_the_applications_own(error):
    assert explain(error, target="ask") is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry_After": "7"}, 7.0), ({"retry_after_ms": "250"}, 0.25), ({"x": "y"}, None)],
)
def test_retry_after(headers, seconds):
    error = exception("openai", "RateLimitError", exception("openai", "APIStatusError").__class__)
    error.response, error.status_code = replied(429, **headers), 429
    known = explain(error, target="ask")
    assert known.retry_after == seconds
    assert llmprod.classify(known).retry_after == seconds


def test_an_exception_without_room_for_notes():
    class Slotted(ConnectionResetError):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    def ask():
        raise Slotted

    with pytest.raises(Slotted):
        resilient(retry(2))(ask)()
