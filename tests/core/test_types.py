"""Messages and parts: what callers may pass, and what a repr never shows."""

import base64

import pytest

from llmprod import (
    Audio,
    EmbedRequest,
    File,
    GenerateRequest,
    Image,
    InvalidArgument,
    Message,
    Opaque,
    Refusal,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from llmprod.types import coerce_messages

SECRET = "sesame-4711"


def test_a_string_is_one_user_message():
    assert coerce_messages("Hi") == (Message.user("Hi"),)
    assert coerce_messages("Hi", system="Be brief") == (Message.system("Be brief"), Message.user("Hi"))


def test_messages_and_openai_dicts_mix():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    got = coerce_messages(
        [
            {"role": "developer", "content": "rules"},
            Message.user("one", Image(url="https://example.com/a.png")),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "model", "content": [{"type": "output_text", "text": "two"}]},
        ]
    )
    assert [message.role for message in got] == ["system", "user", "assistant", "tool", "assistant"]
    assert got[2].parts == (ToolCall("c1", "add", '{"a": 1}'),)
    assert got[3].parts == (ToolResult("c1", "2"),)
    assert got[4].parts == (Text("two"),)


def test_openai_media_parts():
    data = base64.b64encode(b"\x89PNG").decode()
    (message,) = coerce_messages(
        {
            "role": "user",
            "content": [
                "look",
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "low"}},
                {"type": "image_url", "image_url": "https://example.com/a.png"},
                {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            ],
        }
    )
    assert message.parts == (
        Text("look"),
        Image(data=b"\x89PNG", media_type="image/png", detail="low"),
        Image(url="https://example.com/a.png"),
        Audio(data=b"\x89PNG", media_type="audio/wav"),
    )
    assert message.parts[1].data_url == f"data:image/png;base64,{data}"


def test_a_tool_message_may_hold_text_parts():
    (message,) = coerce_messages({"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "18"}]})
    assert message.parts == (ToolResult("c", (Text("18"),)),)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ((), "messages"),
        ("", "messages"),
        (None, "messages"),
        (5, "messages"),
        (b"Hi", "messages"),
        ({"a", "b"}, "messages"),
        ([5], r"messages\[0\]"),
        (["Hi"], r"messages\[0\]"),
        ([Message.user("a"), {"content": "b"}], r"messages\[1\]\.role"),
        ([{"role": "boss", "content": "b"}], r"messages\[0\]\.role"),
        ([{"role": ["user"], "content": "b"}], r"messages\[0\]\.role"),
        ([{"role": "user"}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": ""}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": []}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "video"}]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "%"}}]}], r"messages\[0\]"),
        ([{"role": "assistant", "tool_calls": ["add"]}], r"messages\[0\]\.tool_calls"),
        ([{"role": "assistant", "tool_calls": 5}], r"messages\[0\]\.tool_calls"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(messages, field):
    with pytest.raises(InvalidArgument, match=rf"^{field}[^:]*: got .+; allowed: .+"):
        coerce_messages(messages)


def test_parts_are_checked():
    for wrong in (lambda: Message("user", (5,)), lambda: Message.user(5), lambda: Message("user", 5)):
        with pytest.raises(InvalidArgument, match=r"^(parts|content): got int"):
            wrong()
    with pytest.raises(InvalidArgument, match=r"^role: got 'boss'; allowed: system, user, assistant, tool"):
        Message("boss", ())
    with pytest.raises(InvalidArgument, match=r"^image: got both or neither"):
        Image()
    with pytest.raises(InvalidArgument, match=r"^image: got both or neither"):
        Image(data=b"a", url="b", media_type="image/png")
    with pytest.raises(InvalidArgument, match=r"^audio\.media_type"):
        Audio(data=b"a")
    with pytest.raises(InvalidArgument, match=r"^file\.data: got str"):
        File(data="a", media_type="b")


def test_media_are_read_from_files(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(b"%PDF")
    assert File.from_file(path) == File(data=b"%PDF", media_type="application/pdf", name="report.pdf")


def test_tool_results_are_text_parts_or_json():
    call = ToolCall("c", "weather")
    assert Message.tool(call, "18").parts[0] == ToolResult("c", "18", "weather")
    assert Message.tool("c", {"celsius": 18}).parts[0].text == '{"celsius":18}'
    assert Message.tool("c", "no such city", is_error=True).parts[0].is_error
    parts = (Text("a"), Image(url="https://example.com"), Text("b"))
    assert Message.tool("c", parts).parts[0].text == "ab"


@pytest.mark.parametrize("arguments", ["[1]", "{", "5", '"a"'])
def test_arguments_that_are_no_object_are_an_error_without_their_text(arguments):
    with pytest.raises(InvalidArgument, match=r"^arguments of tool call 'f': got .* chars; allowed: a JSON object"):
        _ = ToolCall("c", "f", arguments + SECRET * (arguments != "5")).input
    assert ToolCall("c", "f", "").input == {}


PARTS = [
    Text(SECRET),
    Image(data=SECRET.encode(), media_type="image/png"),
    Image(url=f"https://example.com/{SECRET}"),
    Audio(data=SECRET.encode(), media_type="audio/wav", transcript=SECRET),
    File(data=SECRET.encode(), media_type="application/pdf", name=f"{SECRET}.pdf"),
    Thinking(SECRET, meta={"anthropic": {"signature": SECRET}}),
    ToolCall("c1", "f", f'{{"a": "{SECRET}"}}'),
    ToolResult("c1", SECRET),
    ToolResult("c1", (Text(SECRET),)),
    Refusal(SECRET),
    Opaque("web_search", {"anthropic": {"text": SECRET}}),
]


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_a_repr_shows_kind_and_size_never_content(part):
    message = Message("user", (part,))
    for shown in (part, message, GenerateRequest(messages=(message,), stop=(SECRET,)), {"a": [message]}):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
    assert type(part).__name__ in repr(message)


def test_an_embedding_requests_repr_shows_no_input():
    assert repr(EmbedRequest(inputs=(SECRET,))) == "EmbedRequest(1 inputs)"
