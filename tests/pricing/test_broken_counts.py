"""Counts of a server that is out of order: never a wrong sum of money, and no answer that is lost for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from llmprod.pricing import Price, PriceBook
from llmprod.providers._anthropic_answer import MessageDecoder
from llmprod.providers._anthropic_answer import usage_of as anthropic_usage
from llmprod.providers._google_usage import usage_of as google_usage
from llmprod.providers._openai_usage import usage_of as openai_usage
from llmprod.providers.anthropic import AnthropicCodec
from llmprod.providers.google import GoogleCodec
from llmprod.providers.openai_chat import ChatCodec
from llmprod.usage import Usage
from tests.providers import anthropic_scripts, google_scripts, openai_scripts
from tests.providers.codec_drive import whole

NAMES = [
    "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens",
    "cache_write_tokens", "prompt_tokens_details", "completion_tokens_details", "num_requests", "cost",
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation",
    "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens", "thinking_tokens", "output_tokens_details",
    "server_tool_use", "web_search_requests", "iterations", "type", "service_tier", "speed",
    "promptTokenCount", "cachedContentTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "tokenCount",
    "toolUsePromptTokenCount", "promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails", "modality",
]  # fmt: skip
BAD: list[Any] = [
    -1,
    -(10**30),
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**30,
    "many",
    "-3",
    "²",
    True,
    [],
    [7],
    {},
]

leaf: st.SearchStrategy[Any] = (
    st.sampled_from([*BAD, None, "AUDIO", "IMAGE", "compaction", "advisor_message", "7", 3.0])
    | st.integers(-(10**12), 10**12)
    | st.floats()
)
told: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), leaf, max_size=9),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), leaf | inner | st.lists(inner, max_size=3), max_size=9),
    max_leaves=4,
)
BOOK = PriceBook({"*": Price(input=1, output=2, cache_read="0.5", server_tools={"web_search": 1})}, prices="none")


@given(told=told)
@pytest.mark.parametrize("read", [openai_usage, anthropic_usage, google_usage], ids=["openai", "anthropic", "google"])
def test_whatever_is_told_a_usage_has_whole_numbers_and_money_is_not_below_nothing(
    read: Callable[[Any], Usage | None], told: dict[str, Any]
) -> None:
    usage = read(told)
    if usage is not None:
        counts = [getattr(usage, item.name) for item in fields(Usage) if item.type == "int"]
        for count in [*counts, *usage.server_tools.values()]:
            assert type(count) is int
            assert 0 <= count < 2**36
        assert BOOK.cost(usage, provider="x", model="m").at_least >= 0


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_an_answer_is_not_lost_for_its_counts(bad: Any) -> None:
    """It has been paid for."""
    message = anthropic_scripts.message(anthropic_scripts.TEXT, usage={"input_tokens": bad, "output_tokens": 4})
    response = whole(AnthropicCodec("m"), message)
    assert response.text
    assert response.usage == Usage(input=0, output=4)
    counts = {"promptTokenCount": bad, "candidatesTokenCount": 4, "promptTokensDetails": bad}
    response = whole(GoogleCodec("m"), {**google_scripts.ANSWERS["text"], "usageMetadata": counts})
    assert response.text
    assert response.usage == Usage(output=4)
    body = {**openai_scripts.CHAT["text"], "usage": {"prompt_tokens": bad, "completion_tokens": 4}}
    response = whole(ChatCodec("m"), body)
    assert response.text
    assert response.usage == Usage(output=4)


def test_a_usage_that_is_no_object_is_none() -> None:
    message = anthropic_scripts.message(anthropic_scripts.TEXT, usage="none")
    assert whole(AnthropicCodec("m"), message).usage is None
    body = {**google_scripts.ANSWERS["text"], "usageMetadata": [1]}
    assert whole(GoogleCodec("m"), body).usage is None


def test_a_compaction_leaves_the_tier_as_it_is() -> None:
    steps = [{"type": "compaction", "input_tokens": 100, "output_tokens": 20}]
    usage = anthropic_usage({"input_tokens": 3, "output_tokens": 4, "service_tier": "batch", "iterations": steps})
    assert usage == Usage(input=103, output=24, tier="batch")


def test_what_an_advisor_costs_is_unknown_rather_than_nothing() -> None:
    steps = [
        {"type": "message", "input_tokens": 3, "output_tokens": 4},
        {"type": "advisor_message", "model": "claude-opus-5-5", "input_tokens": 900, "output_tokens": 90},
    ]
    usage = anthropic_usage({"input_tokens": 3, "output_tokens": 4, "iterations": steps})
    assert usage == Usage(input=3, output=4, server_tools={"advisor": 1})
    cost = BOOK.cost(usage, provider="anthropic", model="claude-haiku-5-5")
    assert cost.amount is None
    assert cost.reason == "no price for advisor"
    assert cost.at_least == Decimal("0.000011")


def test_a_stream_that_closes_with_a_prompt_of_nothing_keeps_the_prompt() -> None:
    decoder = MessageDecoder()
    start = {"model": "m", "usage": {"input_tokens": 90, "cache_read_input_tokens": 9, "output_tokens": 1}}
    decoder.feed(b"", to_json({"type": "message_start", "message": start}))
    end = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 5}
    (told,) = decoder.feed(b"", to_json({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end}))
    assert told.usage == Usage(input=90, cache_read=9, output=5)  # type: ignore[union-attr]
    corrected = {"input_tokens": 0, "cache_read_input_tokens": 99, "output_tokens": 5}
    (told,) = decoder.feed(b"", to_json({"type": "message_delta", "delta": {}, "usage": corrected}))
    assert told.usage == Usage(cache_read=99, output=5)  # type: ignore[union-attr]


def test_geminis_details_never_make_more_of_a_prompt_than_its_count() -> None:
    counts = {
        "promptTokenCount": 1000, "cachedContentTokenCount": 600, "candidatesTokenCount": 5,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 1000}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}],
    }  # fmt: skip
    assert google_usage(counts) == Usage(input_audio=400, cache_read=600, output_audio=5)
