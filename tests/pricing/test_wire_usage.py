"""From each API's usage on the wire to money: what genai-prices reads and charges, and we.

Their reader and ours take the same body; each difference has its test.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import extract_usage
from hypothesis import given
from hypothesis import strategies as st

from llmprod.cost import Cost
from llmprod.pricing import PriceBook
from llmprod.providers._anthropic_answer import usage_of as anthropic_usage
from llmprod.providers._google_usage import usage_of as google_usage
from llmprod.providers._openai_usage import usage_of as openai_usage
from llmprod.providers.anthropic import AnthropicCodec
from llmprod.usage import Usage
from tests.providers import anthropic_scripts, google_scripts, openai_scripts
from tests.providers.codec_drive import frames, streamed, whole

BOOK = PriceBook(prices="genai-prices").load()
AT = datetime(2026, 11, 28, 3, 30, tzinfo=UTC)

Body = dict[str, Any]


def theirs(provider: str, flavor: str, body: Body, **context: str) -> Decimal:
    read = extract_usage(body, provider_id=provider, api_flavor=flavor)
    return read.calc_price(genai_request_timestamp=AT, price_context=context or None).total_price


def ours(provider: str, model: str, usage: Usage | None) -> Cost:
    return BOOK.cost(usage, provider=provider, model=model, at=AT)


# ---- what was recorded -----------------------------------------------------------------------------------------------


def test_anthropic() -> None:
    body = {"model": "claude-sonnet-5-5-20260901", "usage": anthropic_scripts.USAGE}
    cost = ours("anthropic", body["model"], anthropic_usage(body["usage"]))
    assert cost.amount == theirs("anthropic", "default", body)
    assert cost.buckets.keys() == {
        "input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning", "web_search",
    }  # fmt: skip


def test_chat_without_audio() -> None:
    details = {**openai_scripts.CHAT_USAGE["prompt_tokens_details"], "audio_tokens": 0}
    spoken = {**openai_scripts.CHAT_USAGE["completion_tokens_details"], "audio_tokens": 0}
    usage = {**openai_scripts.CHAT_USAGE, "prompt_tokens_details": details, "completion_tokens_details": spoken}
    body = {"model": "gpt-5.6-sol", "usage": usage}
    cost = ours("openai", "gpt-5.6-sol", openai_usage(usage))
    assert cost.amount == theirs("openai", "chat", body)


def test_responses() -> None:
    usage = openai_scripts.RESPONSES_USAGE
    body = {"model": "gpt-5.6-sol", "usage": usage}
    cost = ours("openai", "gpt-5.6-sol", openai_usage(usage))
    # They read no lifetimes, and bill 12 hours like 30 minutes. How much more they cost is not in the data.
    assert cost.amount is None
    assert cost.reason == "no price for cache_write_12h"
    short = {**usage["input_tokens_details"], "cache_write_tokens_details": {"ttl_30m_tokens": 30}}
    known = ours("openai", "gpt-5.6-sol", openai_usage({**usage, "input_tokens_details": short}))
    assert known.amount == theirs("openai", "responses", body)


def test_gemini() -> None:
    body = {"modelVersion": "gemini-2.5-flash", "usageMetadata": google_scripts.USAGE}
    cost = ours("google", "gemini-2.5-flash", google_usage(google_scripts.USAGE))
    assert cost.amount == theirs("google", "default", body)
    assert {"cache_read_audio", "input_audio", "tool_prompt"} <= cost.buckets.keys()


def test_openrouter_tells_its_cost() -> None:
    usage = openai_usage({"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.00014})
    cost = ours("openrouter", "anthropic/claude-sonnet-5.5", usage)
    assert (cost.amount, cost.source, cost.buckets) == (
        Decimal("0.00014"), "provider", {"total": Decimal("0.00014")},
    )  # fmt: skip
    own_key: Body = {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.000005, "is_byok": True}
    told = openai_usage({**own_key, "cost_details": {"upstream_inference_cost": 0.0001}})
    assert ours("openrouter", "x", told).amount == Decimal("0.000105")
    assert ours("openrouter", "x", openai_usage(own_key)).amount is None


@pytest.mark.parametrize("cost", [-1, float("nan"), "0.5", True, None])
def test_a_cost_that_is_none(cost: object) -> None:
    usage = openai_usage({"prompt_tokens": 10, "completion_tokens": 2, "cost": cost})
    assert usage is not None
    assert usage.cost is None


@pytest.mark.parametrize(
    ("usage", "tier"),
    [
        (openai_usage({"prompt_tokens": 1, "completion_tokens": 1}, tier="flex"), "flex"),
        (openai_usage({"prompt_tokens": 1, "completion_tokens": 1}, tier="default"), None),
        (anthropic_usage({"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"}), "batch"),
        (
            anthropic_usage({"input_tokens": 1, "output_tokens": 1, "service_tier": "standard", "speed": "fast"}),
            "fast",
        ),
        (google_usage({"promptTokenCount": 1, "serviceTier": "PRIORITY"}), "priority"),
        (google_usage({"promptTokenCount": 1, "serviceTier": "STANDARD"}), None),
    ],
)
def test_tiers_on_the_wire(usage: Usage, tier: str | None) -> None:
    assert usage.tier == tier


def test_openais_own_tools() -> None:
    own = {"usage": {"input_tokens": 10, "output_tokens": 2}, "tool_usage": {"web_search": {"num_requests": 2}}}
    read = openai_usage(own["usage"], own["tool_usage"], None, ["message", "file_search_call", "file_search_call"])
    assert read is not None
    assert read.server_tools == {"web_search": 2, "file_search": 2}
    cost = ours("openai", "gpt-5.4", read)
    assert cost.buckets["web_search"] == Decimal("0.02")
    assert cost.buckets["file_search"] == Decimal("0.005")
    container = openai_usage(own["usage"], None, None, ["code_interpreter_call", None, {}])
    assert ours("openai", "gpt-5.4", container).reason == "no price for code_interpreter"


# ---- whatever may come -----------------------------------------------------------------------------------------------

count = st.integers(0, 400_000)


@given(
    model=st.sampled_from(["gpt-5.4", "gpt-6-sol", "gpt-5.6-luna", "gpt-4.1-mini", "o4-mini", "gpt-5-nano"]),
    tier=st.sampled_from(["default", "flex", "priority"]),
    plain=count, cached=count, written=count, answer=count, thought=count,
    flavor=st.sampled_from(["chat", "responses"]),
)  # fmt: skip
def test_openai(
    model: str, tier: str, plain: int, cached: int, written: int, answer: int, thought: int, flavor: str
) -> None:
    prompt, completion = ("prompt", "completion") if flavor == "chat" else ("input", "output")
    usage = {
        f"{prompt}_tokens": plain + cached + written,
        f"{completion}_tokens": answer + thought,
        "total_tokens": plain + cached + written + answer + thought,
        f"{prompt}_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        f"{completion}_tokens_details": {"reasoning_tokens": thought},
    }
    read = openai_usage(usage, tier=tier)
    cost = ours("openai", model, read)
    if cost.amount is None:
        assert cost.reason == f"no price for the tier {tier}"
    else:
        body = {"model": model, "usage": usage}
        assert cost.amount == theirs("openai", flavor, body, service_tier=tier)
        assert sum(cost.buckets.values()) == cost.amount


@given(
    model=st.sampled_from(["claude-sonnet-4-5", "claude-haiku-5-5", "claude-opus-5-5", "claude-opus-4-8"]),
    tier=st.sampled_from(["standard", "batch"]),
    plain=count, cached=count, short=count, long=count, answer=count, thought=count, searches=st.integers(0, 20),
)  # fmt: skip
def test_anthropic_streamed_and_whole(
    model: str, tier: str, plain: int, cached: int, short: int, long: int, answer: int, thought: int, searches: int
) -> None:
    usage = {
        "input_tokens": plain,
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": cached,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "output_tokens": answer + thought,
        "output_tokens_details": {"thinking_tokens": thought},
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": searches},
        "service_tier": tier,
    }
    body = {**anthropic_scripts.MESSAGES["text"], "model": model, "usage": usage}
    codec = AnthropicCodec(model)
    once = whole(codec, body)
    events = anthropic_scripts.stream(body)
    events[0]["message"]["usage"] = {**usage, "output_tokens": 1, "output_tokens_details": None}
    stream = streamed(codec, frames(events, named=True))
    cost = ours("anthropic", model, once.usage)
    context = {"processing": "batch"} if tier == "batch" else {}
    assert cost.amount == theirs("anthropic", "default", body, **context)
    assert ours("anthropic", model, stream.usage) == cost


@given(
    model=st.sampled_from(["gemini-2.5-pro", "gemini-2.5-flash", "gemini-3.6-flash", "gemini-4-argon"]),
    text=count, sound=count, kept=count, kept_sound=count, tools=count, answer=count, thought=count,
)  # fmt: skip
def test_google(
    model: str, text: int, sound: int, kept: int, kept_sound: int, tools: int, answer: int, thought: int
) -> None:
    counts = {
        "promptTokenCount": text + sound + kept + kept_sound,
        "cachedContentTokenCount": kept + kept_sound,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": text + kept}, {"modality": "AUDIO", "tokenCount": sound + kept_sound},
        ],
        "cacheTokensDetails": [
            {"modality": "TEXT", "tokenCount": kept}, {"modality": "AUDIO", "tokenCount": kept_sound},
        ],
        "toolUsePromptTokenCount": tools, "candidatesTokenCount": answer, "thoughtsTokenCount": thought,
    }  # fmt: skip
    cost = ours("google", model, google_usage(counts))
    assert cost.amount == theirs("google", "default", {"modelVersion": model, "usageMetadata": counts})


@given(
    provider=st.sampled_from([
        ("mistral", "mistral-large-2512", "default"), ("groq", "openai/gpt-oss-120b", "default"),
        ("deepseek", "deepseek-v4-pro", "chat"),
    ]),
    plain=count, cached=count, answer=count, thought=count,
)  # fmt: skip
def test_compatible_servers(provider: tuple[str, str, str], plain: int, cached: int, answer: int, thought: int) -> None:
    name, model, flavor = provider
    usage: Body = {
        "prompt_tokens": plain + cached,
        "completion_tokens": answer + thought,
        "total_tokens": plain + cached + answer + thought,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    if name == "deepseek":
        usage |= {"prompt_cache_hit_tokens": cached, "prompt_cache_miss_tokens": plain}
    cost = ours(name, model, openai_usage(usage))
    assert cost.amount == theirs(name, flavor, {"model": model, "usage": usage})


@given(plain=count, cached=count, answer=count, thought=st.integers(1, 400_000))
def test_xai_counts_reasoning_beside_the_completion(plain: int, cached: int, answer: int, thought: int) -> None:
    usage = {
        "prompt_tokens": plain + cached,
        "completion_tokens": answer,
        "total_tokens": plain + cached + answer + thought,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    cost = ours("xai", "grok-4.5", openai_usage(usage))
    assert cost.amount == theirs("x-ai", "chat", {"model": "grok-4.5", "usage": usage})
