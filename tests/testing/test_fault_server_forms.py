"""The forms that a healthy answer may take: usage, tools, quirks of imitators, styles of event streams."""

import json

import httpx
import pytest

from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    FaultServer,
    Quirks,
    SseStyle,
    TokenCounts,
    ToolCall,
    words,
)

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse"
TOOLS = (ToolCall(id="a", name="f", arguments={"x": 1}), ToolCall(id="b", name="f", arguments={"x": 2}))


def post(behaviour: Behaviour, path: str = CHAT, **fields: object) -> httpx.Response:
    with FaultServer(behaviour) as server:
        return httpx.post(server.url + path, json={"model": "m", **fields})


def chunks(behaviour: Behaviour, **fields: object) -> list[dict]:
    """The JSON events of a Chat Completions stream."""
    text = post(behaviour, stream=True, **fields).text
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and "[DONE]" not in line]


def test_usage_as_asked_and_missing():
    counts = TokenCounts(input=100, output=50, cache_read=60, cache_write=10, reasoning=20)
    told = Behaviour(answer=Answer(usage=counts))
    assert post(told).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 60
    assert post(told, MESSAGES).json()["usage"]["input_tokens"] == 30
    assert post(told, RESPONSES).json()["usage"]["output_tokens_details"]["reasoning_tokens"] == 20
    gemini = post(told, "/v1beta/models/g:generateContent").json()["usageMetadata"]
    assert (gemini["candidatesTokenCount"], gemini["thoughtsTokenCount"], gemini["totalTokenCount"]) == (30, 20, 150)
    silent = Behaviour(answer=Answer(usage=None))
    for path in (CHAT, MESSAGES, RESPONSES, "/v1beta/models/g:generateContent"):
        body = post(silent, path).json()
        assert body.get("usage") is None
        assert body.get("usageMetadata") is None
    assert not any(chunk.get("usage") for chunk in chunks(silent, stream_options={"include_usage": True}))


def test_usage_of_a_stream_only_when_asked():
    assert not any("usage" in chunk for chunk in chunks(Behaviour()))
    assert chunks(Behaviour(), stream_options={"include_usage": True})[-1]["choices"] == []
    so_far = [
        c["usage"]["completion_tokens"] for c in chunks(Behaviour(quirks=Quirks(continuous_usage=True))) if "usage" in c
    ]
    assert so_far == [1, 2, 3, 4, 5, 6]
    assert chunks(Behaviour(quirks=Quirks(usage_in_finish=True)))[-1]["usage"]["total_tokens"] == 18


def tool_deltas(quirks: Quirks) -> list[dict]:
    behaviour = Behaviour(answer=Answer(text="", tool_calls=TOOLS), quirks=quirks)
    return [
        call
        for chunk in chunks(behaviour)
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]


def test_tool_deltas_and_their_quirks():
    healthy = tool_deltas(Quirks())
    assert [delta["index"] for delta in healthy if "id" in delta] == [0, 1]
    assert "".join(d["function"]["arguments"] for d in healthy if d["index"] == 1) == '{"x": 2}'
    zero = tool_deltas(Quirks(tool_index_zero=True))
    assert [(delta["index"], delta["id"]) for delta in zero] == [(0, "a"), (0, "b")]
    assert [delta["function"]["arguments"] for delta in tool_deltas(Quirks(tool_arguments_object=True))] == [
        {"x": 1},
        {"x": 2},
    ]
    assert all("index" not in delta for delta in tool_deltas(Quirks(tool_index_missing=True)))
    assert all("id" not in delta for delta in tool_deltas(Quirks(tool_id_missing=True)))


def test_null_and_missing_fields():
    assert post(Behaviour(quirks=Quirks(null_choices=True))).json()["choices"] is None
    assert any(chunk["choices"] is None for chunk in chunks(Behaviour(quirks=Quirks(null_choices=True))))
    assert chunks(Behaviour(quirks=Quirks(null_delta=True)))[-1]["choices"][0]["delta"] is None
    bare = chunks(Behaviour(quirks=Quirks(bare=True)))[0]
    assert not {"id", "created", "model"} & set(bare)
    unfinished = Behaviour(answer=Answer(finish=None))
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks(unfinished))
    assert post(unfinished).json()["choices"][0]["finish_reason"] is None
    parts = post(Behaviour(quirks=Quirks(content_parts=True))).json()
    assert parts["choices"][0]["message"]["content"][0]["type"] == "text"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_fields(field):
    behaviour = Behaviour(answer=Answer(reasoning="let me see"), quirks=Quirks(reasoning_field=field))
    assert post(behaviour).json()["choices"][0]["message"][field] == "let me see"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(behaviour)]
    assert "".join(delta.get(field, "") for delta in deltas) == "let me see"


def test_finish_reasons_are_translated():
    cut_short = Behaviour(answer=Answer(finish="length"))
    assert post(cut_short).json()["choices"][0]["finish_reason"] == "length"
    assert post(cut_short, MESSAGES).json()["stop_reason"] == "max_tokens"
    assert post(cut_short, RESPONSES).json()["incomplete_details"] == {"reason": "max_output_tokens"}
    assert '"finishReason":"MAX_TOKENS"' in post(cut_short, GEMINI).text
    odd = Behaviour(answer=Answer(finish="insufficient_system_resource"))
    assert post(odd).json()["choices"][0]["finish_reason"] == "insufficient_system_resource"


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (SseStyle(bom=True), b"\xef\xbb\xbfdata: {"),
        (SseStyle(crlf=True), b"}\r\n\r\ndata: "),
        (SseStyle(comments=True), b": still here\ndata: {"),
        (SseStyle(multiline=True), b'data: {\ndata: "id"'),
        (SseStyle(space=False), b'data:{"id"'),
    ],
)
def test_event_styles(style, expected):
    assert expected in post(Behaviour(sse=style), stream=True).content


def test_the_last_blank_line_may_be_missing():
    assert post(Behaviour(sse=SseStyle(last_blank_line=False)), stream=True).text.endswith("[DONE]\n")


def test_text_is_told_in_pieces_that_add_up():
    for text in ("", "one", "  two  words \n", words(3), ["given ", "pieces"]):
        whole = "".join(text)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks(Behaviour(answer=Answer(text=text)))]
        assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_unknown_paths_and_model_lists():
    with FaultServer(models=("one", "two")) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/nowhere").status_code == 404
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert client.get("/v1beta/models").json()["models"][0]["name"] == "models/one"
        listed = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert listed["last_id"] == "two"
