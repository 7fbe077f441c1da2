"""The money is genai-prices' own, on every model and bucket that it knows; each difference has its reason."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data import providers
from genai_prices.types import ModelPrice, TieredPrices
from genai_prices.types import Usage as TheirUsage
from genai_prices.units import _get_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprod.pricing import PriceBook
from llmprod.pricing._genai import TOKEN_RATES, USE_RATES
from llmprod.usage import Usage

BOOK = PriceBook(prices="genai-prices").load()
SNAPSHOT = PriceBook(prices="snapshot").load()
OURS = {ours: key for key, ours in TOKEN_RATES.items()}
TIMES = [
    datetime(2025, 3, 1, 3, tzinfo=UTC),
    datetime(2025, 11, 20, 18, tzinfo=UTC),
    datetime(2026, 11, 28, 3, 30, tzinfo=UTC),
    datetime(2026, 11, 28, 20, tzinfo=UTC),
]
SIZES = [1, 40_000, 110_000, 300_000, 600_000]  # below, between and above the cliffs
BUCKETS = [
    "input", "cache_read", "cache_read_audio", "cache_read_image", "cache_write", "cache_write_5m", "cache_write_30m",
    "cache_write_1h", "input_audio", "input_image", "tool_prompt", "output", "reasoning", "output_audio",
    "output_image",
]  # fmt: skip

PARTS = {
    "input_tokens": BUCKETS[:11], "output_tokens": BUCKETS[11:], "input_audio_tokens": ["cache_read_audio",
    "input_audio"], "input_image_tokens": ["cache_read_image", "input_image"], "cache_read_tokens": BUCKETS[1:4],
    "cache_write_tokens": BUCKETS[4:8], "cache_write_5m_tokens": ["cache_write_5m"],
    "cache_write_1h_tokens": ["cache_write_1h"], "cache_audio_read_tokens": ["cache_read_audio"],
    "cache_image_read_tokens": ["cache_read_image"], "output_reasoning_tokens": ["reasoning"],
    "output_audio_tokens": ["output_audio"], "output_image_tokens": ["output_image"],
    "input_tool_tokens": ["tool_prompt"],
}  # fmt: skip
"""Their counts hold one another; ours do not."""


def theirs_of(usage: Usage, prices: ModelPrice) -> TheirUsage:
    counts: dict[str, int] = {}
    for key, parts in PARTS.items():
        counts[key] = sum(getattr(usage, part) for part in parts)
    # What a modality did not take is text; they want it told where text is priced apart, which no model does.
    for key in counts.keys() & {"input_text_tokens"}:
        raise AssertionError(key)
    counts["web_searches"] = usage.server_tools.get("web_search", 0)
    counts["storage_searches"] = usage.server_tools.get("file_search", 0)
    return TheirUsage(**counts)


def all_models() -> list[Any]:
    return [(provider, model) for provider in providers for model in provider.models]


def usages(sizes: list[int] = SIZES) -> list[Usage]:
    """Each bucket alone at every size, and all together."""
    alone = [Usage(**{name: size}) for name in BUCKETS for size in sizes]
    return [
        *alone,
        Usage(**{name: 1000 + place for place, name in enumerate(BUCKETS) if name != "cache_write_1h"}),
        Usage(**{name: 50_000 + place for place, name in enumerate(BUCKETS)}),
        Usage(input=10, output=5, server_tools={"web_search": 3}),
        Usage(input=10, output=5, server_tools={"file_search": 2}),
    ]


def ours_of(provider: Any, model: Any, usage: Usage, at: datetime, **how: Any) -> Any:
    """Our cost by this very model's sheet, not by the one that its id leads to."""
    from llmprod.pricing._genai import sheet_of

    key = (id(model), provider.id)
    sheet = SHEETS.get(key)
    if sheet is None:
        sheet = SHEETS[key] = sheet_of(provider.id, model)
    tiers = tuple(how.values())
    rates = sheet.rates(at, tiers)
    if isinstance(rates, str):
        return None, rates
    money, missing = sheet.price(usage, rates)
    return (None if missing else sum(money.values(), Decimal(0))), missing


SHEETS: dict[Any, Any] = {}


def their_money(
    provider: Any, model: Any, usage: Usage, at: datetime, context: dict[str, str] | None = None
) -> Decimal:
    prices = model.get_prices(at, context)
    return model.calc_price(
        theirs_of(usage, prices), provider, genai_request_timestamp=at, price_context=context
    ).total_price


FREE = "they count what has no price as free"
TOOL = "they count uses of a tool without a price as free"
HOUR = "they bill an hour's cache write at the price of five minutes"
AUDIO = "they bill OpenAI's audio as text where the data has no price of it"


def explained(provider: Any, model: Any, at: datetime, missing: str) -> str:
    """Why we tell no cost where they tell one; fails where there is no reason."""
    prices = {key for key, value in vars(model.get_prices(at)).items() if value is not None}
    reasons = [_reason(provider, name, prices) for name in missing.removeprefix("no price for ").split(", ")]
    assert all(reasons), (provider.id, model.id, missing, prices)
    return reasons[0]


def _reason(provider: Any, name: str, prices: set[str]) -> str | None:
    tool = {"web_search": "web_searches_kcount", "file_search": "storage_searches_kcount"}.get(name)
    if tool is not None:
        return TOOL if tool not in prices else None
    if ("output_mtok" if name in BUCKETS[11:] else "input_mtok") not in prices:
        return FREE
    if name == "cache_write_1h":
        return HOUR if "cache_write_mtok" in prices and "cache_write_1h_mtok" not in prices else None
    if name in ("input_audio", "output_audio", "cache_read_audio") and provider.id in ("openai", "azure"):
        return AUDIO if OURS[name] not in prices else None
    return None


@pytest.mark.slow
def test_each_bucket_of_each_model_costs_what_they_say() -> None:
    differences: Counter[str] = Counter()
    same = 0
    cliffs, flat = usages(), usages([SIZES[0], SIZES[-1]])
    for provider, model in all_models():
        dated = isinstance(model.prices, list)
        for at in TIMES if dated else TIMES[-1:]:
            tiered = any(isinstance(price, TieredPrices) for price in vars(model.get_prices(at)).values())
            for usage in cliffs if tiered else flat:
                amount, missing = ours_of(provider, model, usage, at)
                if amount is None:
                    differences[explained(provider, model, at, missing)] += 1
                    continue
                theirs = their_money(provider, model, usage, at)
                assert amount == theirs, (provider.id, model.id, usage, at)
                same += 1
    assert set(differences) == {FREE, TOOL, HOUR, AUDIO}
    assert same > 50_000, same


def test_each_tier_costs_what_they_say() -> None:
    at = TIMES[-1]
    same = 0
    left_out: Counter[str] = Counter()
    for provider, model in all_models():
        for variant in model.price_variants or ():
            ((key, value),) = variant.when.items()
            tier = "batch" if key == "processing" else value
            if key not in ("service_tier", "speed", "processing"):
                left_out[key] += 1  # by search type (Perplexity) and by route (OpenRouter, which tells its cost itself)
                continue
            if tier == "default" or (variant.constraint is not None and not variant.constraint.active(at)):
                continue
            for usage in usages():
                amount, missing = ours_of(provider, model, usage, at, tier=tier)
                if amount is None:
                    explained(provider, model, at, missing)
                    continue
                assert amount == their_money(provider, model, usage, at, {key: value}), (model.id, tier, usage)
                same += 1
    assert left_out.keys() == {"search_type", "route"}
    assert same > 10_000


def test_what_they_price_and_we_do_not_count() -> None:
    """Their units that no answer of a language model tells, or that our usage does not keep apart."""
    priced = {
        key
        for _, model in all_models()
        for each in (model.prices if isinstance(model.prices, list) else [model])
        for key, value in vars(each.prices).items()
        if value is not None
    }
    assert priced - TOKEN_RATES.keys() - USE_RATES.keys() == {
        "audio_hours", "input_audio_hours",  # transcription and voices, by time
        "input_annotated_document_kpages", "input_document_kpages",  # OCR, by page
        "input_mchars",  # voices, by character
        "input_text_messages_kcount",  # a voice session's messages
        "input_video_mtok", "output_video_mtok",  # usage counts video as plain input: Gemini Omni and a robotics model
        "output_citation_mtok",  # Perplexity's, of one model
    }  # fmt: skip
    registry = _get_registry()
    assert all(registry.unit_for_price_key(key).per == 1_000_000 for key in TOKEN_RATES)
    assert all(registry.unit_for_price_key(key).per == 1000 for key in USE_RATES)


def test_every_model_is_found_by_its_id_as_they_find_it() -> None:
    at = TIMES[-1]
    usage = Usage(input=1000, output=100)
    wrong = []
    for provider, model in all_models():
        found = provider.find_model(model.id, all_providers=providers)
        cost = BOOK.cost(usage, provider=provider.id, model=model.id, at=at)
        amount, _ = ours_of(provider, found, usage, at) if found is not None else (None, None)
        if cost.amount != amount:
            wrong.append((provider.id, model.id, cost, amount))
    assert not wrong


def test_the_extract_gives_the_same_money_or_none() -> None:
    known = 0
    for provider, model in all_models():
        if provider.id not in ("openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "groq"):
            continue
        for at in TIMES:
            for usage in usages()[-4:]:
                for tier in (None, "flex", "priority", "fast", "batch"):
                    extract = SNAPSHOT.cost(usage, provider=provider.id, model=model.id, at=at, tier=tier)
                    if extract.source is None:
                        continue
                    whole = BOOK.cost(usage, provider=provider.id, model=model.id, at=at, tier=tier)
                    assert (extract.amount, extract.reason, extract.buckets) == (
                        whole.amount, whole.reason, whole.buckets,
                    ), (model.id, tier)  # fmt: skip
                    known += 1
    assert known > 1000


counts = st.integers(0, 2_000_000)


@settings(max_examples=300)
@given(
    place=st.integers(0, len(all_models()) - 1),
    usage=st.builds(Usage, **{name: counts for name in BUCKETS if name != "cache_write_1h"}),
    at=st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_any_usage_of_any_model_at_any_time(place: int, usage: Usage, at: datetime) -> None:
    provider, model = all_models()[place]
    amount, missing = ours_of(provider, model, usage, at)
    if amount is None:
        explained(provider, model, at, missing)
    else:
        assert amount == their_money(provider, model, usage, at)


def test_an_unknown_provider_or_model_is_no_crash() -> None:
    assert BOOK.cost(Usage(input=1), provider="nobody", model="x").reason == "no price list for the provider nobody"
    assert BOOK.cost(Usage(input=1), provider="openai", model="x").reason == "no price for this model of openai"
    assert BOOK.cost(Usage(input=1), provider=None, model="x").reason == "unknown provider"


def test_models_that_another_provider_sells_too() -> None:
    """Azure's list falls back to OpenAI's, whose tiers it does not take over: they tell the standard price, we none."""
    usage = Usage(input=1000, output=100)
    sold = BOOK.cost(usage, provider="azure", model="gpt-5.4", at=TIMES[-1])
    assert sold.amount == BOOK.cost(usage, provider="openai", model="gpt-5.4", at=TIMES[-1]).amount is not None
    flex = BOOK.cost(usage, provider="azure", model="gpt-5.4", at=TIMES[-1], tier="flex")
    assert flex.reason == "no price for the tier flex"
    assert BOOK.cost(usage, provider="openai", model="gpt-5.4", at=TIMES[-1], tier="flex").amount is not None


@pytest.mark.parametrize("model", ["gpt-5.2-20251211", "gpt-5.2-2025-12-11", "GPT-5.2", "models/gpt-5.2"])
def test_spellings_of_a_model(model: str) -> None:
    for book in (BOOK, SNAPSHOT):
        assert book.cost(Usage(input=4), provider="openai", model=model, at=TIMES[-1]).amount == Decimal("0.000007")
