"""Where prompts are marked, by any conversation; digests of prefixes; and the rules by model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import GenerateRequest, Message, Tool
from llmprod.mechanisms.cache_plan import TOOLS, anthropic_marks, breakpoint_marks, has_marks, marked
from llmprod.mechanisms.cache_rules import rules_for
from llmprod.mechanisms.prefix_chain import leading_system, part_tokens, prefix_chain, prefix_order
from llmprod.providers.anthropic import AnthropicCodec
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_responses import ResponsesCodec
from llmprod.types import File, Image, Text, Thinking, ToolCall, ToolResult

MODEL = "claude-sonnet-5-5"
SIGNED = {"anthropic": {"type": "thinking", "thinking": "hm", "signature": "s"}, "anthropic.model": {"id": MODEL}}
words = st.sampled_from(["", " ", "Hi", "word " * 40, "long " * 900])
texts = st.builds(Text, words)
users = st.lists(texts | st.just(Image(data=b"png", media_type="image/png")), min_size=1, max_size=3)
answers = st.lists(
    texts
    | st.just(Thinking("hm", meta=SIGNED))
    | st.builds(ToolCall, st.sampled_from(["a", "b"]), st.just("search"), st.just("{}")),
    min_size=1,
    max_size=3,
)
results = st.lists(st.builds(ToolResult, st.sampled_from(["a", "b"]), words), min_size=1, max_size=3)
systems = st.lists(st.builds(Message.system, words), max_size=2)
turns = st.lists(
    st.builds(lambda parts: Message("user", tuple(parts)), users)
    | st.builds(lambda parts: Message("assistant", tuple(parts)), answers)
    | st.builds(lambda parts: Message("tool", tuple(parts)), results),
    max_size=40,
)
tools = st.sampled_from([(), (Tool(name="search", parameters={"type": "object"}),)])
requests = st.builds(
    lambda head, body, given: GenerateRequest(messages=(*head, *body, Message.user("The question")), tools=given),
    systems,
    turns,
    tools,
)
lifetimes = st.sampled_from([("5m", "5m"), ("1h", "5m"), ("1h", "1h")])


def blocks_of(request: GenerateRequest) -> list[dict[str, Any]]:
    body = AnthropicCodec(MODEL).encode(request).body
    return [
        *body.get("tools", []),
        *body.get("system", []),
        *(block for turn in body["messages"] for block in turn["content"]),
    ]


@given(requests, lifetimes, st.booleans(), st.sampled_from([0, 512, 1024, 4096]))
def test_marks_for_anthropic(request_: GenerateRequest, lives: Any, conversation: bool, minimum: int) -> None:
    cuts, stable = prefix_chain(request_), leading_system(request_)
    marks = anthropic_marks(request_, cuts, stable, minimum=minimum, conversation=conversation, lifetimes=lives)
    sent = marked(request_, marks, "anthropic", "cache_control", lambda mark: {"ttl": mark.lifetime})
    blocks = blocks_of(sent)
    places = [place for place, block in enumerate(blocks) if "cache_control" in block]
    # Every mark arrives, as one of the API's four, on a block that may carry one, the longer lifetimes first.
    assert len(places) == len(marks) <= 4
    assert all(
        blocks[place]["type"] in ("text", "image", "tool_use", "tool_result")
        for place in places
        if "type" in blocks[place]
    )
    assert all(blocks[place].get("text", "x").strip() for place in places)
    assert [blocks[place]["cache_control"]["ttl"] for place in places] == sorted(mark.lifetime for mark in marks)
    assert all(mark.tokens >= minimum for mark in marks)
    assert [mark.tokens for mark in marks] == sorted(mark.tokens for mark in marks)
    # Less its marks, the request is what it was.
    bare = [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks]
    assert bare == blocks_of(request_)
    if conversation and minimum == 0:
        assert blocks[-1] is blocks[places[-1]]  # the question, which is text


@given(requests, st.booleans())
def test_breakpoints_for_openai(request_: GenerateRequest, conversation: bool) -> None:
    cuts, stable = prefix_chain(request_), leading_system(request_)
    marks = breakpoint_marks(request_, cuts, stable, minimum=1024, conversation=conversation)
    assert len(marks) <= 2
    for mark in marks:
        assert mark.message != TOOLS
        assert request_.messages[mark.message].role != "assistant"
        assert mark.tokens >= 1024
        assert mark.message < len(request_.messages) - 1 or stable == len(request_.messages)


@given(requests, words)
def test_a_turn_later_the_newest_message_of_before_is_marked(request_: GenerateRequest, said: str) -> None:
    later = GenerateRequest(messages=(*request_.messages, Message.assistant("Yes."), Message.user("And " + said)))
    cuts = prefix_chain(later)
    marks = breakpoint_marks(later, cuts, leading_system(later), minimum=0, conversation=True)
    asked = max(place for place, message in enumerate(request_.messages) if message.role != "assistant")
    assert any(mark.message == asked for mark in marks)


@given(requests, requests)
def test_prefixes_are_equal_where_their_digests_are(one: GenerateRequest, other: GenerateRequest) -> None:
    cuts, others = prefix_chain(one), prefix_chain(other)
    assert len(cuts) == len(one.messages) + 1
    for place, (a, b) in enumerate(zip(cuts, others, strict=False)):
        same = one.tools == other.tools and one.messages[:place] == other.messages[:place]
        assert (a.digest == b.digest) is same
    assert [cut.tokens for cut in cuts] == sorted(cut.tokens for cut in cuts)
    longer = GenerateRequest(messages=(*one.messages, Message.user("More")), tools=one.tools)
    assert prefix_chain(longer)[:-1] == cuts


@given(requests)
def test_marks_change_no_digest(request_: GenerateRequest) -> None:
    cuts = prefix_chain(request_)
    marks = anthropic_marks(request_, cuts, leading_system(request_), minimum=0, conversation=True)
    assert prefix_chain(marked(request_, marks, "anthropic", "cache_control", {})) == cuts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Text("a"), Text("b")),
        (Text("ab"), (Text("a"), Text("b"))),
        (ToolCall("1", "f", "{}"), ToolCall("1", "g", "{}")),
        (ToolCall("1", "f", "{}"), ToolCall("1", "f", "[]")),
        (ToolResult("1", "a"), ToolResult("1", "a", is_error=True)),
        (ToolResult("1", "a"), ToolResult("2", "a")),
        (Image(data=b"a", media_type="image/png"), Image(data=b"b", media_type="image/png")),
        (File(data=b"a", media_type="text/plain"), Image(data=b"a", media_type="image/png")),
        (Text("a"), Thinking("a")),
    ],
)
def test_what_differs_has_another_digest(one: Any, other: Any) -> None:
    digests = [
        prefix_chain(GenerateRequest(messages=(Message("user", item if isinstance(item, tuple) else (item,)),)))[1]
        for item in (one, other)
    ]
    assert digests[0].digest != digests[1].digest


def test_order_of_tools_and_of_their_keys_counts() -> None:
    a = Tool(name="a", parameters={"type": "object", "properties": {}})
    b = Tool(name="b", parameters={"type": "object"})
    turned = Tool(name="a", parameters={"properties": {}, "type": "object"})
    made = [
        prefix_chain(GenerateRequest(messages=(Message.user("x"),), tools=given))[0].digest
        for given in ((a, b), (b, a), (turned, b))
    ]
    assert len(set(made)) == 3


def test_tokens_by_rules_of_thumb() -> None:
    assert part_tokens(Text("abcd" * 10)) == 10
    assert part_tokens(Text("中" * 4)) == 3
    assert part_tokens(Image(url="https://x/y.png")) == 800
    assert part_tokens(File(data=b"x" * 4000, media_type="application/pdf")) == 100


@given(st.lists(requests, max_size=8))
def test_prefix_order_is_an_order_that_groups(many: list[GenerateRequest]) -> None:
    order = prefix_order(many)
    assert sorted(order) == list(range(len(many)))
    heads = [prefix_chain(many[place])[1].digest for place in order]
    groups = [digest for place, digest in enumerate(heads) if place == 0 or digest != heads[place - 1]]
    assert len(groups) == len(set(groups))  # each beginning stands in one run


def test_prefix_order_of_nothing_in_common_is_as_given() -> None:
    many = [GenerateRequest(messages=(Message.user(f"{number}"),)) for number in range(5)]
    assert prefix_order(many) == [0, 1, 2, 3, 4]
    a, b = (Message.system("a"), Message.system("b"))
    mixed = [GenerateRequest(messages=(head, Message.user(f"{n}"))) for n, head in enumerate([a, b, a, b, a])]
    assert prefix_order(mixed) == [0, 2, 4, 1, 3]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, False),
        ({"extra": {"openai": {"store": False}}}, False),
        ({"extra": {"openai": {"prompt_cache_options": {}}}}, True),
        ({"extra": {"openai": {"messages": []}}}, True),
        ({"messages": (Message("user", (Text("x", meta={"openai-chat": {"prompt_cache_breakpoint": {}}}),)),)}, True),
        (
            {"messages": (Message("user", (Text("x", meta={"openai-responses": {"prompt_cache_breakpoint": {}}}),)),)},
            False,
        ),
        (
            {
                "messages": (
                    Message.user("x"),
                    Message.tool("1", (Text("x", meta={"openai-chat": {"prompt_cache_breakpoint": {}}}),)),
                )
            },
            True,
        ),
    ],
)
def test_marks_by_hand(fields: Any, found: bool) -> None:
    request = GenerateRequest(**{"messages": (Message.user("x"),), **fields})
    assert has_marks(request, "openai-chat", "openai", "prompt_cache_breakpoint") is found


def test_a_breakpoint_on_every_part_that_can_carry_one() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    parts = (
        Text("x"),
        Image(data=b"p", media_type="image/png"),
        File(data=b"f", media_type="application/pdf", name="f.pdf"),
    )
    call = ToolCall("c", "f", "{}")

    def both(fmt: str) -> GenerateRequest:
        def with_mark(part: Any) -> Any:
            from dataclasses import replace

            return replace(part, meta={fmt: mark})

        result = ToolResult("c", (Text("t"), Image(data=b"p", media_type="image/png")))
        return GenerateRequest(
            messages=(
                Message("user", tuple(map(with_mark, parts))),
                Message.assistant(call),
                Message("tool", (with_mark(ToolResult("c", "done")),)),
                Message("tool", (with_mark(result),)),
            )
        )

    chat = ChatCodec("gpt-5.6").encode(both("openai-chat")).body["messages"]
    assert all(part["prompt_cache_breakpoint"] == {"mode": "explicit"} for part in chat[0]["content"])
    assert chat[2]["content"] == [{"type": "text", "text": "done", **mark}]
    items = ResponsesCodec("gpt-5.6").encode(both("openai-responses")).body["input"]
    assert all(part["prompt_cache_breakpoint"] == {"mode": "explicit"} for part in items[0]["content"])
    assert items[2]["output"] == [{"type": "input_text", "text": "done", **mark}]
    assert ["prompt_cache_breakpoint" in part for part in items[3]["output"]] == [False, True]


@pytest.mark.parametrize(
    ("style", "model", "expected"),
    [
        ("anthropic", "claude-opus-5-5", ("anthropic", 512)),
        ("anthropic", "claude-opus-4-8", ("anthropic", 1024)),
        ("anthropic", "claude-opus-4-7", ("anthropic", 2048)),
        ("anthropic", "claude-opus-4-5-20251101", ("anthropic", 4096)),
        ("anthropic", "us.anthropic.claude-sonnet-4-6", ("anthropic", 1024)),
        ("anthropic", "claude-haiku-4-5", ("anthropic", 4096)),
        ("anthropic", "claude-3-5-haiku-20241022", ("anthropic", 1024)),
        ("anthropic", "claude-fable-5-1", ("anthropic", 512)),
        ("openai", "gpt-5.6-terra", ("openai-breakpoints", 1024)),
        ("openai", "gpt-6-astra", ("openai-breakpoints", 1024)),
        ("openai", "gpt-5.5", ("openai", 1024)),
        ("openai", "gpt-5-mini", ("openai", 1024)),
        ("openai", "o4-mini", ("openai", 1024)),
        ("google", "gemini-2.5-flash", ("google", 2048)),
        ("google", "gemini-3-pro-preview", ("google", 4096)),
        ("google", "gemini-3.8-flash", ("google", 4096)),
        ("google", "gemini-3-flash", ("google", 1024)),
        ("key", "mistral-large", ("key", 1024)),
        ("automatic", "m", ("automatic", 0)),
        ("none", "m", ("none", 1024)),
        ("something new", "m", ("none", 1024)),
    ],
)
def test_rules(style: str, model: str, expected: tuple[str, int]) -> None:
    rules = rules_for(style, model)
    assert (rules.style, rules.minimum) == expected
