"""Chat Completions' answers: whole = streamed, at every cut, with all that imitators do to the form."""

import json
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import httpx
import pytest

from llmprod.context import Context
from llmprod.errors import Overloaded, ProtocolError, ServerError, StreamInterrupted, TruncatedAnswer
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
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_compatible import PROFILES, OpenAICompatible
from llmprod.request import GenerateRequest
from llmprod.types import Audio, Image, Message, Refusal, Text, Thinking, ToolCall
from llmprod.usage import Usage
from tests.providers.codec_drive import ASK, Scripted, decode_stream, every_split, facts, raised, streamed, whole
from tests.providers.openai_scripts import (
    CHAT,
    CHAT_USAGE,
    CITED,
    TEXT,
    call,
    chat_chunks,
    chat_stream,
    completion,
    sse,
)

CODEC = ChatCodec("gpt-5.6")
GENERIC = ChatCodec("m", PROFILES["generic"])
OLLAMA = ChatCodec("m", PROFILES["ollama"])
STREAM = GenerateRequest(messages=ASK.messages, stream=True)
LOGPROBS = GenerateRequest(messages=ASK.messages, logprobs=2)
CHUNK: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


def calls(*deltas: dict[str, Any], finish: str = "tool_calls") -> bytes:
    return sse([*(chunk({"tool_calls": [delta]}) for delta in deltas), chunk({}, finish)])


def call_facts(body: bytes, codec: ChatCodec = GENERIC, request: GenerateRequest = ASK) -> list[tuple[str, str, str]]:
    return [(one.id, one.name, one.arguments) for one in streamed(codec, body, request).tool_calls]


# ---- whole and streamed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAT)
def test_streamed_is_whole(name: str) -> None:
    request = LOGPROBS if name == "logprobs" else ASK
    assert facts(streamed(CODEC, chat_stream(CHAT[name]), request)) == facts(whole(CODEC, CHAT[name], request))


@pytest.mark.parametrize("name", ["text", "tools", "refusal", "cited"])
def test_cut_at_every_byte(name: str) -> None:
    body = chat_stream(CHAT[name])
    want = decode_stream(CODEC, [body])
    for cut in every_split(body):
        assert decode_stream(CODEC, cut) == want


def test_byte_by_byte() -> None:
    body = chat_stream(CHAT["text"])
    assert decode_stream(CODEC, [bytes([byte]) for byte in body]) == decode_stream(CODEC, [body])


@pytest.mark.parametrize("name", ["text", "tools"])
@pytest.mark.parametrize("size", [1, 11, 10_000])
async def test_through_the_provider(name: str, size: int) -> None:
    body = chat_stream(CHAT[name])
    transport = Scripted([body[at : at + size] for at in range(0, len(body), size)])
    async with httpx.AsyncClient(transport=transport) as client:
        async with aclosing(OpenAI("gpt-5.6", api_key="sk-test", http=HTTPOptions(client=client))) as provider:
            response = await (await provider.send(STREAM, Context.new())).read()
    assert facts(response) == facts(whole(CODEC, CHAT[name]))
    assert response.complete


def test_what_a_whole_answer_tells() -> None:
    response = whole(CODEC, CHAT["text"])
    assert (response.text, response.finish_reason, response.raw_finish) == (TEXT, "stop", "stop")
    assert (response.model, response.response_id) == ("gpt-5.6-2026-06-01", "chatcmpl-1")
    assert response.usage == Usage(
        input=38, cache_read=40, cache_write=10, input_audio=5, input_image=7, output=27, reasoning=20, output_audio=3
    )
    assert response.parts == (Text(TEXT),)


def test_events_of_a_stream() -> None:
    events = decode_stream(CODEC, [chat_stream(CHAT["text and tools"])])
    kinds = [type(event) for event in events]
    assert kinds[0] is Start
    assert kinds[-2:] == [UsageUpdate, Finish]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Let me ", "see."]
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert (deltas[0].id, deltas[0].name, deltas[0].part) == ("call_a", "weather", 1)
    assert "".join(delta.arguments for delta in deltas) == '{"city":"Bern"}'
    (done,) = [event for event in events if isinstance(event, ToolCallDone)]
    assert done.call == ToolCall("call_a", "weather", '{"city":"Bern"}')
    # The call is told with the finish reason, not only at the end of the stream.
    assert kinds.index(ToolCallDone) < kinds.index(UsageUpdate)


def test_refusal() -> None:
    response = whole(CODEC, CHAT["refusal"])
    assert response.parts == (Refusal("I can't help with that."),)
    assert (response.finish_reason, response.raw_finish) == ("refusal", "stop")
    assert any(isinstance(event, RefusalDelta) for event in decode_stream(CODEC, [chat_stream(CHAT["refusal"])]))


def test_logprobs() -> None:
    response = streamed(CODEC, chat_stream(CHAT["logprobs"]), LOGPROBS)
    assert [(token.token, token.logprob) for token in response.logprobs] == [
        ("It is", -0.1),
        (" noon", -0.5),
        (".", -0.01),
    ]
    assert response.logprobs[0].top == (("It is", -0.1), ("Its", -3.0))
    assert streamed(CODEC, chat_stream(CHAT["logprobs"])).logprobs == []


def test_logprobs_of_a_token_without_text_wait_for_the_next() -> None:
    told = {"content": [{"token": "<0xE4>", "logprob": -1.0}]}
    first, second = chunk({"content": ""}), chunk({"content": "ä"}, "stop")
    first["choices"][0]["logprobs"] = second["choices"][0]["logprobs"] = told
    events = decode_stream(GENERIC, [sse([first, second])], LOGPROBS)
    (delta,) = [event for event in events if isinstance(event, TextDelta)]
    assert (delta.text, len(delta.logprobs)) == ("ä", 2)


def test_annotations_and_sound() -> None:
    assert whole(CODEC, CHAT["cited"]).parts == (Text(TEXT, meta={"openai-chat": {"annotations": [CITED]}}),)
    request = GenerateRequest(messages=ASK.messages, extra={"openai": {"audio": {"format": "mp3", "voice": "ash"}}})
    (sound,) = streamed(CODEC, chat_stream(CHAT["sound"]), request).parts
    assert isinstance(sound, Audio)
    assert (sound.data, sound.media_type, sound.transcript) == (b"hello!", "audio/mp3", "Hello!")
    assert sound.meta["openai-chat"]["id"] == "audio_1"


def test_images_of_the_answer() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    body = completion(content="Here.", images=[image])
    assert whole(GENERIC, body).parts == (Text("Here."), Image(b"hi", media_type="image/png"))
    assert (
        streamed(GENERIC, sse([chunk({"content": "Here."}), chunk({"images": [image]}, "stop")])).parts[1].data == b"hi"
    )


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_the_end_of_the_body_is_no_end() -> None:
    chunks = chat_chunks(CHAT["text"])[:-2]
    error = raised(lambda: decode_stream(CODEC, [sse(chunks, done=False)]))
    assert isinstance(error, TruncatedAnswer)
    assert error.in_stream


def test_done_without_a_finish_reason_is_no_end() -> None:
    body = sse([chunk({"content": "It is"})])
    assert isinstance(raised(lambda: decode_stream(GENERIC, [body])), TruncatedAnswer)


def test_a_finish_reason_without_done_is_an_end() -> None:
    response = streamed(CODEC, sse(chat_chunks(CHAT["text"]), done=False))
    assert response.text == TEXT
    assert response.usage is not None


def test_ollama_ends_with_done_alone() -> None:
    body = sse([chunk({"role": "assistant", "content": "Noon."}), chunk({"content": ""})])
    assert streamed(OLLAMA, body).finish_reason == "stop"
    cut = sse([chunk({"content": "Noon."})], done=False)
    assert isinstance(raised(lambda: decode_stream(OLLAMA, [cut])), TruncatedAnswer)
    assert isinstance(raised(lambda: decode_stream(OLLAMA, [sse([])])), TruncatedAnswer)
    assert whole(OLLAMA, completion(None, content="Noon.")).finish_reason == "stop"
    assert isinstance(raised(lambda: whole(GENERIC, completion(None, content="Noon."))), TruncatedAnswer)


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("end of the world", "unknown"),
    ],
)
def test_finish_reasons(raw: str, want: str) -> None:
    response = streamed(GENERIC, sse([chunk({"content": "a"}), chunk({}, raw)]))
    assert (response.finish_reason, response.raw_finish) == (want, raw)


@pytest.mark.parametrize(
    ("raw", "kind"), [("insufficient_system_resource", Overloaded), ("error", ServerError), ("abort", ServerError)]
)
def test_a_finish_that_tells_of_a_failure_is_one(raw: str, kind: type) -> None:
    used = chunk({}, raw, usage={"prompt_tokens": 3, "completion_tokens": 1})
    error = raised(lambda: decode_stream(GENERIC, [sse([chunk({"content": "a"}), used])]))
    assert type(error) is kind
    assert error.in_stream
    assert error.usage == Usage(input=3, output=1)
    assert type(raised(lambda: whole(GENERIC, completion(raw, content="a")))) is kind


def test_a_profile_knows_finish_reasons_of_its_own() -> None:
    from dataclasses import replace

    codec = ChatCodec("m", replace(PROFILES["generic"], finish_reasons={"nap": "pause"}))
    assert streamed(codec, sse([chunk({"content": "a"}, "nap")])).finish_reason == "pause"


def test_stop_with_tool_calls_is_tool_calls() -> None:
    body = calls({"index": 0, **call("a", "f", "{}")}, finish="stop")
    assert (streamed(GENERIC, body).finish_reason, streamed(GENERIC, body).raw_finish) == ("tool_calls", "stop")
    cut = calls({"index": 0, **call("a", "f", '{"x')}, finish="length")
    assert streamed(GENERIC, cut).finish_reason == "length"


def test_what_follows_the_finish_reason_counts() -> None:
    body = sse([chunk({"content": "It is"}), chunk({}, "stop"), chunk({"content": " noon."})])
    assert streamed(GENERIC, body).text == "It is noon."


# ---- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "want"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(input=3, output=2)),
        ({"prompt_tokens": 3}, Usage(input=3)),
        (
            {"prompt_tokens": 3, "completion_tokens": None, "prompt_tokens_details": None, "total_tokens": None},
            Usage(input=3),
        ),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}}, Usage(input=3)),
        # More from the cache than the prompt has: it is counted beside it.
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(input=3, cache_read=9)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
            Usage(input=9, cache_read=4, output=1),
        ),
        # Gateways to Gemini: the thinking stands in the total alone.
        (
            {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
            Usage(input=20, output=198, reasoning=405, estimated=True),
        ),
        ({"prompt_tokens": 3, "total_tokens": 9}, Usage(input=3, output=6)),
        ({"completion_tokens": 3, "total_tokens": 9}, Usage(input=6, output=3)),
        ({"prompt_tokens": "12", "completion_tokens": 2.0}, Usage(input=12, output=2)),
        ({"prompt_tokens": -1, "completion_tokens": 2}, Usage(output=2)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 2}, Usage(output=2)),
        ({"prompt_tokens": float("inf"), "completion_tokens": 1e300}, None),
        ({"prompt_tokens": 2**40, "completion_tokens": 2, "total_tokens": 2**40 + 2}, Usage(output=2)),
        (
            {"prompt_tokens": 3, "completion_tokens": 2, "cost": {"total_cost": 0.5}},
            Usage(input=3, output=2, cost=Decimal("0.5")),
        ),
        ({"prompt_tokens": 3, "completion_tokens": 2, "cost": 1e300}, Usage(input=3, output=2)),
        (
            {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "completion_tokens": 1},
            Usage(input=5, cache_read=4, output=1),
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}},
            Usage(input=1, output=5, reasoning=4),
        ),
        # xAI counts reasoning beside the completion, and its total says so.
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 9,
                "total_tokens": 14,
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            Usage(input=1, output=9, reasoning=4),
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 4}},
            Usage(input=1, output=2, reasoning=4),
        ),
        ({}, None),
        ([], None),
        ({"prompt_tokens": "many"}, None),
    ],
)
def test_usage(told: Any, want: Usage | None) -> None:
    response = whole(GENERIC, {**completion(content="a"), "usage": told})
    assert response.usage == want


def test_the_buckets_sum_is_what_was_told() -> None:
    usage = whole(CODEC, CHAT["text"]).usage
    assert usage is not None
    assert (usage.total_input, usage.total_output) == (CHAT_USAGE["prompt_tokens"], CHAT_USAGE["completion_tokens"])


def test_usage_told_twice_is_counted_once() -> None:
    used = {"prompt_tokens": 3, "completion_tokens": 2}
    body = sse([chunk({"content": "a"}), chunk({}, "stop", usage=used), {**CHUNK, "choices": [], "usage": used}])
    assert streamed(GENERIC, body).usage == Usage(input=3, output=2)


def test_usage_so_far_replaces_what_came_before() -> None:
    body = sse(
        [
            chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
            chunk({"content": "b"}, usage={"prompt_tokens": 3, "completion_tokens": 2}),
            chunk({}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}),
        ]
    )
    events = decode_stream(GENERIC, [body])
    assert [event.usage.output for event in events if isinstance(event, UsageUpdate)] == [1, 2, 2]


# ---- the form, as others write it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {**CHUNK, "choices": None},
        {**CHUNK, "choices": []},
        {**CHUNK, "choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {**CHUNK, "choices": [], "moderation": {"input": {"type": "error", "code": "x", "message": "m"}}},
        chunk(None),
        chunk({}),
        {"choices": [{"delta": {"content": None}}]},
        {"object": "keepalive"},
        chunk({"content": "", "unheard_of": {"of": 1}}, service_tier=None),
        {**CHUNK, "error": None, "choices": []},
    ],
)
def test_empty_chunks_are_tolerated(bad: dict[str, Any]) -> None:
    body = sse([bad, chunk({"content": "It is"}), bad, chunk({"content": " noon."}), chunk(None, "stop"), bad])
    assert streamed(GENERIC, body).text == "It is noon."


def test_nothing_but_the_text_is_needed() -> None:
    body = sse([{"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"finish_reason": "stop"}]}])
    response = streamed(GENERIC, body)
    assert (response.text, response.response_id, response.usage) == ("a", None, None)
    assert whole(GENERIC, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}).text == "a"


def test_the_model_may_be_told_late() -> None:
    body = sse([{"choices": [], "model": ""}, chunk({"content": "a"}), chunk({}, "stop")])
    assert streamed(GENERIC, body).model == "m"


@pytest.mark.parametrize("content", [[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["a", "b"], "ab"])
def test_content_may_be_a_list(content: Any) -> None:
    assert streamed(GENERIC, sse([chunk({"content": content}), chunk({}, "stop")])).text == "ab"
    assert whole(GENERIC, completion(content=content)).text == "ab"


def test_thinking_may_stand_in_the_content_list() -> None:
    content = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "a"}]
    response = streamed(GENERIC, sse([chunk({"content": content}), chunk({}, "stop")]))
    assert (response.thinking, response.text) == ("Hm.", "a")


STYLES = {
    "crlf": lambda body: body.replace(b"\n", b"\r\n"),
    "cr": lambda body: body.replace(b"\n", b"\r"),
    "bom": lambda body: b"\xef\xbb\xbf" + body,
    "comments": lambda body: body.replace(b"data:", b": OPENROUTER PROCESSING\n\ndata:"),
    "no space": lambda body: body.replace(b"data: ", b"data:"),
    "no last blank line": lambda body: body.rstrip(b"\n"),
    "empty data": lambda body: body.replace(b"data:", b"data:\n\ndata:", 1),
    "several lines": lambda body: body.replace(b'data: {"id": ', b'data: {"id":\ndata: '),
    "ids and retry": lambda body: body.replace(b"data:", b"id: 7\nretry: 100\ndata:"),
}


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_server_sent_events(style: str) -> None:
    body = STYLES[style](chat_stream(CHAT["tools"]))
    assert facts(streamed(CODEC, body)) == facts(whole(CODEC, CHAT["tools"]))


# ---- thinking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_fields(field: str) -> None:
    body = completion(content="Noon.", **{field: "The sun is high."})
    response = streamed(GENERIC, chat_stream(body))
    assert facts(response) == facts(whole(GENERIC, body))
    assert response.parts == (Thinking("The sun is high.", meta={"openai-chat": {"field": field}}), Text("Noon."))
    assert any(isinstance(event, ThinkingDelta) for event in decode_stream(GENERIC, [chat_stream(body)]))


def test_thinking_told_in_both_fields_counts_once() -> None:
    body = sse([chunk({"reasoning": "Hm.", "reasoning_content": "Hm."}), chunk({"content": "a"}, "stop")])
    assert streamed(GENERIC, body).thinking == "Hm."


TAGGED = {
    "<think>\nThe sun\nis high.\n</think>\n\nNoon.": ("The sun\nis high.", "Noon."),
    "  <think>Hm.</think>Noon. <think>": ("Hm.", "Noon. <think>"),
    "<think>\n\n</think>\n\nNoon.": ("", "Noon."),
    "<think>Cut off here": ("Cut off here", ""),
    "<think>a < b </thin k></think>c": ("a < b </thin k>", "c"),
    "Use <think> tags.": ("", "Use <think> tags."),
    "<thin": ("", "<thin"),
    "  Noon.": ("", "  Noon."),
}


@pytest.mark.parametrize("text", TAGGED)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_think_tags(text: str, size: int) -> None:
    chunks = [chunk({"content": text[at : at + size]}) for at in range(0, len(text), size)]
    response = streamed(GENERIC, sse([*chunks, chunk({}, "stop")]))
    assert (response.thinking, response.text) == TAGGED[text]
    assert facts(response)["parts"] == facts(whole(GENERIC, completion(content=text)))["parts"]


def test_openai_itself_writes_no_think_tags() -> None:
    assert whole(CODEC, completion(content="<think>a</think>b")).text == "<think>a</think>b"


def test_reasoning_details_are_put_together() -> None:
    block = {"type": "reasoning.text", "format": "x", "index": 0}
    body = sse(
        [
            chunk({"reasoning": "The ", "reasoning_details": [{**block, "text": "The "}]}),
            chunk({"reasoning": "sun.", "reasoning_details": [{**block, "text": "sun."}]}),
            chunk({"reasoning_details": [{**block, "signature": "sig=="}]}),
            chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": "e==", "index": 1}]}),
            chunk({"content": "Noon."}, "stop"),
        ]
    )
    details = [
        {**block, "text": "The sun.", "signature": "sig=="},
        {"type": "reasoning.encrypted", "data": "e==", "index": 1},
    ]
    response = streamed(ChatCodec("m", PROFILES["openrouter"]), body)
    assert response.parts[0].meta["openai-chat"] == {"field": "reasoning", "reasoning_details": details}
    message = completion(content="Noon.", reasoning="The sun.", reasoning_details=details)
    assert response.parts == whole(ChatCodec("m", PROFILES["openrouter"]), message).parts


# ---- tool calls -----------------------------------------------------------------------------------------------------


def test_all_calls_at_index_0() -> None:
    body = calls({"index": 0, **call("a", "f", '{"x":1}')}, {"index": 0, **call("b", "f", '{"x":2}')})
    assert call_facts(body) == [("a", "f", '{"x":1}'), ("b", "f", '{"x":2}')]


def test_pieces_at_a_reused_index_belong_to_the_latest_call() -> None:
    pieces = [{"index": 0, **call("a", "f", '{"x"')}, {"index": 0, "function": {"arguments": ":1}"}}]
    pieces += [{"index": 0, **call("b", "g", '{"y"')}, {"index": 0, "function": {"arguments": ":2}"}}]
    assert call_facts(calls(*pieces)) == [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')]


def test_interleaved_calls() -> None:
    pieces = [{"index": 0, **call("a", "f", "")}, {"index": 1, **call("b", "g", "")}]
    pieces += [{"index": at % 2, "function": {"arguments": piece}} for at, piece in enumerate(["[", "{", "1]", "}"])]
    assert call_facts(calls(*pieces)) == [("a", "f", "[1]"), ("b", "g", "{}")]


def test_id_and_name_in_every_piece() -> None:
    pieces = [{"index": 0, **call("a", "f", piece)} for piece in ('{"x"', ":1", "}")]
    assert call_facts(calls(*pieces)) == [("a", "f", '{"x":1}')]


def test_no_index() -> None:
    pieces = [call("a", "f", '{"x"'), {"function": {"arguments": ":1}"}}, call("b", "g", "{}"), {**call("a", "f", "")}]
    assert call_facts(calls(*pieces)) == [("a", "f", '{"x":1}'), ("b", "g", "{}"), ("a", "f", "{}")]
    both = sse([chunk({"tool_calls": [call("a", "f", "{}"), call("b", "g", "{}")]}), chunk({}, "tool_calls")])
    assert call_facts(both) == [("a", "f", "{}"), ("b", "g", "{}")]


@pytest.mark.parametrize("index", [{}, {"index": 0}])
def test_no_id(index: dict[str, int]) -> None:
    function = {"function": {"name": "f", "arguments": {"x": 1}}}
    other = {"function": {"name": "g", "arguments": '{"y":2}'}}
    same = {"function": {"name": "f", "arguments": {"x": 3}}}
    body = calls({**index, **function}, {**index, **other}, {**index, **same})
    assert call_facts(body) == [("call_0", "f", '{"x":1}'), ("call_1", "g", '{"y":2}'), ("call_2", "f", '{"x":3}')]


def test_made_up_ids_never_repeat_in_a_conversation() -> None:
    history = (Message.user("a"), Message.assistant(ToolCall("call_0", "f")), Message.tool("call_0", "x"))
    request = GenerateRequest(messages=history)
    body = calls({"function": {"name": "f", "arguments": "{}"}})
    assert call_facts(body, request=request) == [("call_1", "f", "{}")]


def test_an_id_may_come_late() -> None:
    pieces = [{"index": 0, "function": {"name": "f"}}, {"index": 0, "id": "a", "function": {"arguments": "{}"}}]
    assert call_facts(calls(*pieces)) == [("a", "f", "{}")]


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_no_arguments(arguments: Any) -> None:
    piece = {"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}
    assert call_facts(calls(piece)) == [("a", "f", "{}")]


def test_the_call_before_there_were_several() -> None:
    pieces = [
        chunk({"function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"x":1}'}}),
    ]
    response = streamed(GENERIC, sse([*pieces, chunk({}, "function_call")]))
    assert response.tool_calls == (ToolCall("call_0", "f", '{"x":1}'),)
    assert response.finish_reason == "tool_calls"


def test_custom_tools_and_signatures() -> None:
    custom = {"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}
    signed = {**call("b", "f", "{}"), "extra_content": {"google": {"thought_signature": "s=="}}}
    body = completion("tool_calls", tool_calls=[custom, signed])
    assert whole(CODEC, body).tool_calls == (
        ToolCall("a", "sh", "ls", meta={"openai-chat": {"type": "custom"}}),
        ToolCall("b", "f", "{}", meta={"openai-chat": {"extra_content": {"google": {"thought_signature": "s=="}}}}),
    )


# ---- what is no answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices": [{"delta": {"content": "no',
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b'{"choices": 7}',
        b'{"choices": {"delta": {}}}',
        b'{"choices": [7]}',
        b'{"choices": [{"delta": [1]}]}',
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": [{"delta": {"tool_calls": [7]}}]}',
        b'{"choices": [{"delta": {"tool_calls": 7}}]}',
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_malformed_chunks_are_never_skipped(data: bytes, first: bool) -> None:
    start = b"" if first else sse([chunk({"content": "a"})], done=False)
    error = raised(lambda: decode_stream(GENERIC, [start, b"data: " + data + b"\n\n", sse([chunk({}, "stop")])]))
    assert type(error) is ProtocolError
    assert error.in_stream


@pytest.mark.parametrize(
    "body", [{}, [], 7, {"choices": []}, {"choices": None}, {"choices": [7]}, {"choices": [{"message": 7}]}]
)
def test_malformed_bodies(body: Any) -> None:
    assert isinstance(raised(lambda: whole(GENERIC, body)), (ProtocolError, TruncatedAnswer))


async def test_a_stream_answered_with_a_whole_body() -> None:
    transport = Scripted([json.dumps(CHAT["tools"]).encode()], kind="application/json")
    async with httpx.AsyncClient(transport=transport) as client:
        async with aclosing(OpenAI("gpt-5.6", api_key="sk-test", http=HTTPOptions(client=client))) as provider:
            response = await provider.send(STREAM, Context.new())
            assert facts(await response.read()) == facts(whole(CODEC, CHAT["tools"]))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Bad gateway</html>", "text/html"),
        (b"<html>Bad gateway</html>", "text/event-stream"),
        (b"upstream connect error", "text/plain"),
        (b"", "text/event-stream"),
        (b"", "application/json"),
        (b": OPENROUTER PROCESSING\n\n", "text/event-stream"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_200_that_is_no_answer(body: bytes, kind: str, stream: bool) -> None:
    async with httpx.AsyncClient(transport=Scripted([body], kind=kind)) as client:
        async with aclosing(
            OpenAICompatible("m", base_url="http://server/v1", http=HTTPOptions(client=client))
        ) as provider:
            with pytest.raises((ProtocolError, TruncatedAnswer)) as caught:
                await provider.send(GenerateRequest(messages=ASK.messages, stream=stream), Context.new())
    assert (caught.value.provider, caught.value.model) == ("openai-compatible", "m")


async def test_keepalive_white_space_before_a_whole_answer() -> None:
    body = b"\n  \n\n" + json.dumps(CHAT["text"]).encode()
    async with httpx.AsyncClient(transport=Scripted([body], kind="application/json")) as client:
        async with aclosing(
            OpenAICompatible("m", base_url="http://server/v1", http=HTTPOptions(client=client))
        ) as provider:
            assert (await provider.send(ASK, Context.new())).text == TEXT


async def test_a_cut_after_text_leaves_the_partial() -> None:
    body = sse(chat_chunks(CHAT["text"])[:4], done=False)
    async with httpx.AsyncClient(transport=Scripted([body])) as client:
        async with aclosing(
            OpenAICompatible("m", base_url="http://server/v1", http=HTTPOptions(client=client))
        ) as provider:
            response = await provider.send(STREAM, Context.new())
            with pytest.raises(StreamInterrupted) as caught:
                await response.read()
    assert TEXT.startswith(caught.value.partial.text)
    assert isinstance(caught.value.__cause__, TruncatedAnswer)
    assert TEXT[:5] not in repr(caught.value)


def test_parts_told_whole_replace_their_pieces() -> None:
    events = decode_stream(CODEC, [chat_stream(CHAT["cited"])])
    (done,) = [event for event in events if isinstance(event, PartDone)]
    assert done.part == next(event.part for event in events if isinstance(event, TextDelta))
