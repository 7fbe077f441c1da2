"""A prompt's tokens by part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import (
    Audio,
    EmbedRequest,
    File,
    GenerateRequest,
    Image,
    InvalidArgument,
    Message,
    OutputSchema,
    Refusal,
    Thinking,
    Tool,
)
from llmprod.mechanisms.token_estimate import TokenEstimate, rough_tokens
from llmprod.mechanisms.token_prompt import PromptTokens, message_tokens, most_bytes, prompt_tokens
from llmprod.types import Opaque, Text, ToolCall, ToolResult

MODELS = st.sampled_from([
    "openai:gpt-5", "openai:gpt-4", "anthropic:claude-opus-4-8", "google:gemini-2.5-pro", "mistral:mistral-large",
    "vllm:Qwen/Qwen3-8B", "vllm:meta-llama/Llama-3.1-8B", "deepseek:deepseek-chat", "simulated:instant", "",
])  # fmt: skip
TEXTS = st.text(st.characters(), max_size=60)
MEDIA = st.binary(max_size=40)
PARTS = st.one_of(
    st.builds(Text, TEXTS),
    st.builds(Image, data=MEDIA, media_type=st.just("image/png")),
    st.builds(Image, url=st.just("https://example.com/i"), detail=st.sampled_from(["low", "high", None])),
    st.builds(Audio, data=MEDIA, media_type=st.sampled_from(["audio/wav", "audio/pcm"])),
    st.builds(File, data=MEDIA, media_type=st.sampled_from(["application/pdf", "text/plain", "x/y"])),
    st.builds(Thinking, TEXTS),
    st.builds(Refusal, TEXTS),
    st.builds(ToolCall, TEXTS, TEXTS, TEXTS),
    st.builds(ToolResult, TEXTS, TEXTS),
    st.builds(ToolResult, TEXTS, st.tuples(st.builds(Text, TEXTS))),
    st.builds(Opaque, st.just("thing"), st.just({"openai": {"odd": "\ud800", "set": {1}, "bytes": b"\xff"}})),
)
MESSAGES = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(PARTS).map(tuple))


def ask(*content, **options):
    return GenerateRequest(messages=(Message.user(*content),), **options)


@given(st.lists(MESSAGES, min_size=1, max_size=4).map(tuple), MODELS)
def test_any_request_has_a_count_within_its_bounds(messages, model):
    parts = prompt_tokens(GenerateRequest(messages=messages), model)
    for part in (*parts, parts.total):
        assert 0 <= part.low <= part.tokens <= part.high


@given(st.lists(MESSAGES, min_size=1, max_size=4).map(tuple), MESSAGES, MODELS)
def test_a_message_more_is_hardly_a_token_less(messages, more, model):
    before = prompt_tokens(GenerateRequest(messages=messages), model).total.tokens
    after = prompt_tokens(GenerateRequest(messages=(*messages, more)), model).total.tokens
    assert after >= 0.6 * before - 3


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=5).map(tuple), MODELS)
def test_texts_to_embed_have_no_marks(texts, model):
    parts = prompt_tokens(EmbedRequest(inputs=texts), model)
    assert parts == PromptTokens(text=parts.text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "anyOf", "$defs", "enum", "description", "required"])
            | TEXTS,
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["properties", "items", "anyOf", "$defs", "enum", "x"]), JSON), TEXTS, MODELS)
def test_any_schema_that_a_tool_may_have_is_counted(schema, description, model):
    try:
        tool = Tool(name="look", description=description, parameters={"type": "object", **schema})
    except InvalidArgument:
        return
    found = prompt_tokens(ask("Hi", tools=(tool,)), model).tools
    assert 0 < found.low <= found.tokens <= found.high


def test_a_schema_that_is_nested_for_ever_ends():
    schema: dict = {"type": "object", "properties": {"a": {}}}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = Tool(name="look", description="", parameters=schema)
    assert prompt_tokens(ask("Hi", tools=(tool,)), "openai:gpt-5").tools.tokens > 50


def test_what_is_no_request_has_none():
    assert prompt_tokens(object(), "openai:gpt-5") == PromptTokens()


def test_each_part_is_where_it_belongs():
    tool = Tool(name="look", description="Look it up", parameters={"type": "object", "properties": {}})
    parts = prompt_tokens(
        ask(
            "Hi",
            Image(url="https://example.com/a.png"),
            Audio(url="https://example.com/a.wav"),
            File(url="https://example.com/a.pdf"),
            tools=(tool,),
            output=OutputSchema.of(dict[str, int]),
        ),
        "openai:gpt-5",
    )
    assert all(part.tokens > 0 for part in parts)
    assert parts.schema.low == 0


def test_openai_s_formula_for_tools():
    """The cookbook's: 7 for a function, 3 and 3 for properties, -3 and 3 for each choice, 12 at the end."""
    tool = Tool(
        name="get_current_weather",
        description="Get the current weather in a given location",
        parameters={
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {"type": "string", "description": "The unit", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    )
    found = prompt_tokens(ask("Hi", tools=(tool,)), "openai:gpt-4o", lambda text: 0)
    assert found.tools.tokens == 7 + 3 + 3 + 3 - 3 + 3 + 3 + 12
    nested = Tool(
        name="t",
        description="",
        parameters={
            "type": "object",
            "properties": {"list": {"type": "array", "items": {"type": "object", "properties": {"a": {}, "b": {}}}}},
            "$defs": {"one": {"type": "object", "properties": {"c": {}}}},
        },
    )
    assert prompt_tokens(ask("Hi", tools=(nested,)), "openai:gpt-4o", lambda text: 0).tools.tokens == 12 + 7 + 6 + 9 + 6


def test_anthropic_adds_a_system_prompt_to_tools():
    tool = Tool(name="look", description="", parameters={"type": "object", "properties": {}})
    found = prompt_tokens(ask("Hi", tools=(tool,)), "anthropic:claude-opus-4-8").tools
    assert found.tokens > 346


def test_what_the_provider_may_leave_out_has_no_lower_bound():
    thought = Message("assistant", (Thinking("because " * 100),))
    parts = prompt_tokens(GenerateRequest(messages=(thought,)), "openai:gpt-5")
    assert parts.text.low == 0 < 50 < parts.text.tokens


def test_an_exact_count_of_text_has_no_spread():
    parts = prompt_tokens(ask("Hi", "there"), "openai:gpt-5", len)
    assert parts.text == (7, 7, 7)


def test_one_message_by_itself():
    message = Message.user("word " * 100)
    whole = prompt_tokens(GenerateRequest(messages=(message,)), "openai:gpt-5").total.tokens
    assert message_tokens(message, "openai:gpt-5") == pytest.approx(whole - 3)


@given(st.lists(st.builds(Message.user, TEXTS), min_size=1, max_size=4).map(tuple), MODELS)
def test_lengths_alone_are_never_too_low(messages, model):
    request = GenerateRequest(messages=messages)
    most = most_bytes(request)
    assert most is not None
    assert most >= prompt_tokens(request, model).total.tokens


def test_lengths_tell_nothing_of_media_tools_and_schemas():
    tool = Tool(name="look", description="", parameters={"type": "object", "properties": {}})
    assert most_bytes(ask("Hi", Image(url="https://example.com/a.png"))) is None
    assert most_bytes(ask("Hi", tools=(tool,))) is None
    assert most_bytes(ask("Hi", output=OutputSchema.of(dict[str, int]))) is None
    assert most_bytes(object()) is None
    assert most_bytes(EmbedRequest(inputs=("ab", "é"))) == 6


def test_the_limiter_takes_bytes_by_four_for_ascii_alone():
    estimate = TokenEstimate(model="openai:gpt-5")
    plain = ask("word " * 100)
    assert estimate.raw_input(plain) == rough_tokens(plain)
    russian = ask("Утром будет дождь, а потом он кончится. " * 10)
    assert estimate.raw_input(russian) == prompt_tokens(russian, "openai:gpt-5").total.tokens
    assert estimate.raw_input(russian) < 0.8 * rough_tokens(russian)
    picture = ask("Hi", Image(url="https://example.com/a.png"))
    assert estimate.raw_input(picture) == prompt_tokens(picture, "openai:gpt-5").total.tokens
    result = GenerateRequest(messages=(Message.tool("1", "ответ"),))
    assert estimate.raw_input(result) == prompt_tokens(result, "openai:gpt-5").total.tokens
    assert estimate.raw_input(EmbedRequest(inputs=("a" * 40,))) == 10
    assert estimate.raw_input(object()) == 0
