"""Which prices count, what is unknown, and that no token is paid twice."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod.cost import Cost
from llmprod.errors import InvalidArgument
from llmprod.pricing import Price, PriceBook
from llmprod.pricing.sheet import TOKENS
from llmprod.usage import Usage

AT = datetime(2026, 11, 28, 12, tzinfo=UTC)


def cost(book: PriceBook, usage: Usage | None, model: str = "m", provider: str | None = "p", **how: Any) -> Cost:
    return book.cost(usage, provider=provider, model=model, **{"at": AT, **how})


def book(**overrides: Price | list[Price]) -> PriceBook:
    return PriceBook(overrides, prices="none")


# ---- order -----------------------------------------------------------------------------------------------------------


def test_the_order_of_sources() -> None:
    usage = Usage(input=1_000_000)
    own = PriceBook({"openai:gpt-5": Price(input=7)}, prices="snapshot")
    told = cost(own, replace(usage, cost=Decimal(3)), "gpt-5", "openai")
    assert (told.amount, told.source) == (3, "provider")
    override = cost(own, usage, "gpt-5", "openai")
    assert (override.amount, override.source, override.price_version) == (7, "override", None)
    data = cost(own, usage, "gpt-5-mini", "openai")
    assert (data.amount, data.source) == (Decimal("0.25"), "snapshot")
    assert date.fromisoformat(data.price_version or "")
    nowhere = cost(own, usage, "gpt-nothing", "openai")
    assert (nowhere.amount, nowhere.source, nowhere.reason) == (None, None, "no price for this model of openai")


def test_genai_prices_goes_before_the_extract_which_is_behind_it() -> None:
    assert cost(PriceBook(), Usage(input=1), "gpt-5", "openai").source == "genai-prices"
    assert cost(PriceBook(prices="snapshot"), Usage(input=1), "gpt-5", "openai").source == "snapshot"
    assert cost(PriceBook(prices="none"), Usage(input=1), "gpt-5", "openai").reason == "no price data"


def test_exact_names_go_before_patterns_and_provider_and_model_before_the_model() -> None:
    prices = PriceBook(
        {
            "p:*": Price(input=1),
            "*:big-*": Price(input=2),
            "P:Big-One": Price(input=3),
            "big-two": Price(input=4),
            "other:big-two": Price(input=5),
        },
        prices="none",
    )
    one = Usage(input=1_000_000)
    assert cost(prices, one, "small").amount == 1
    assert cost(prices, one, "big-three").amount == 1
    assert cost(prices, one, "big-three", "q").amount == 2
    assert cost(prices, one, "big-one").amount == 3
    assert cost(prices, one, "big-two").amount == 4
    assert cost(prices, one, "big-two", "other:big-two").amount == 5
    assert cost(prices, one, "small", "q").amount is None


def test_a_provider_is_known_by_its_address_or_by_the_model_where_its_name_says_nothing() -> None:
    for prices in (PriceBook(), PriceBook(prices="snapshot")):
        one = Usage(input=1_000_000, output=1)
        there = cost(prices, one, "deepseek-v4-pro", "openai-compatible", url="https://api.deepseek.com/v1")
        assert there.amount == cost(prices, one, "deepseek-v4-pro", "deepseek").amount is not None
        assert cost(prices, one, "gpt-5", "openai-compatible", url="http://127.0.0.1:8000/v1").amount is None
        assert cost(prices, one, "gpt-5", "openai-compatible").amount is None
        assert cost(prices, one, "gpt-5", "ask_openai").amount is None
        assert (
            cost(prices, one, "claude-opus-5-5", None).amount
            == cost(prices, one, "claude-opus-5-5", "anthropic").amount
        )
        assert cost(prices, one, "mystery", None).amount is None


# ---- the user's own prices -------------------------------------------------------------------------------------------


def test_cliffs() -> None:
    price = Price(input=1, output=2, cache_read="0.5", above={200: Price(input=10, output=20), 300: Price(input=100)})
    prices = book(m=price)
    scale = 1_000_000
    assert cost(prices, Usage(input=100, cache_read=100, output=1)).amount == Decimal(100 + 50 + 2) / scale
    assert cost(prices, Usage(input=101, cache_read=100, output=1)).amount == Decimal(1010 + 50 + 20) / scale
    assert cost(prices, Usage(input=201, cache_read=100, output=1)).amount == Decimal(20100 + 50 + 20) / scale


def test_dates() -> None:
    prices = book(m=[Price(input=2, since=date(2026, 6, 1)), Price(input=1, since=date(2026, 1, 1))])
    one = Usage(input=1_000_000)
    assert cost(prices, one, at=datetime(2026, 5, 31, 23, 59)).amount == 1  # noqa: DTZ001 - UTC
    assert cost(prices, one, at=datetime(2026, 6, 1, tzinfo=UTC)).amount == 2
    before = cost(prices, one, at=datetime(2025, 12, 31, tzinfo=UTC))
    assert (before.amount, before.reason) == (None, "no price for that date")


def test_tiers_and_batches() -> None:
    prices = book(m=Price(input=4, output=8, tiers={"flex": Price(input=2), "batch": Price(input=1, output=3)}))
    one = Usage(input=1_000_000, output=1_000_000)
    assert cost(prices, one).amount == 12
    assert cost(prices, one, tier="standard").amount == 12
    flex = cost(prices, replace(one, tier="flex"))
    assert (flex.amount, flex.tier) == (10, "flex")
    assert cost(prices, replace(one, tier="flex"), tier="default").amount == 12
    assert cost(prices, one, batch=True).amount == 4
    assert cost(prices, replace(one, tier="batch"), batch=True).amount == 4
    other = cost(prices, replace(one, tier="priority"))
    assert (other.amount, other.reason) == (None, "no price for the tier priority")


def test_tools_and_fees() -> None:
    prices = book(m=Price(input=0, request="0.01", server_tools={"web_search": "0.02"}))
    known = cost(prices, Usage(input=5, server_tools={"web_search": 3, "web_fetch": 9}))
    assert known.amount == Decimal("0.07")
    assert known.buckets == {"input": 0, "web_search": Decimal("0.06"), "requests": Decimal("0.01")}
    missing = cost(prices, Usage(input=5, server_tools={"code_execution": 1}))
    assert (missing.amount, missing.reason) == (None, "no price for code_execution")
    assert missing.at_least == Decimal("0.01")


@pytest.mark.parametrize(
    ("priced", "used", "amount"),
    [
        (Price(input=1), "cache_read", 1),
        (Price(input=1, cache_read=2), "cache_read", 2),
        (Price(input=1, cache_write=2), "cache_write_5m", 2),
        (Price(input=1, cache_write=2), "cache_write_30m", 2),
        (Price(input=1, cache_write=2), "cache_write_1h", None),
        (Price(input=1, cache_write=2), "cache_write_12h", None),
        (Price(input=1, cache_write=2, cache_write_1h=3), "cache_write_1h", 3),
        (Price(input=1), "cache_write_12h", 1),  # a provider that charges nothing for writing
        (Price(cache_write=2), "cache_write", 2),
        (Price(output=1), "cache_write", None),
        (Price(output=5), "reasoning", 5),
        (Price(output=5, reasoning=6), "reasoning", 6),
        (Price(input=1), "output", None),
        (Price(output=1), "input", None),
        (Price(input=1, input_image=4), "cache_read_image", 4),
        (Price(input=1, input_image=4, cache_read=3), "cache_read_image", 3),
    ],
)
def test_what_is_billed_as_what(priced: Price, used: str, amount: int | None) -> None:
    told = cost(book(m=priced), Usage(**{used: 1_000_000}))
    assert told.amount == amount
    assert told.reason == (None if amount is not None else f"no price for {used}")


def test_what_is_refused() -> None:
    wrong: list[Callable[[], object]] = [
        lambda: Price(),
        lambda: Price(input=-1),
        lambda: Price(input="ten"),
        lambda: Price(input=float("nan")),
        lambda: Price(input=float("inf")),
        lambda: Price(input=True),
        lambda: Price(input=1, server_tools={"web_search": -1}),
        lambda: Price(input=1, server_tools=[1]),
        lambda: Price(input=1, above={0: Price(input=2)}),
        lambda: Price(input=1, above={"200": Price(input=2)}),
        lambda: Price(input=1, above={200: Price(output=2)}),
        lambda: Price(input=1, above={200: Price(input=2, above={300: Price(input=3)})}),
        lambda: Price(input=1, tiers={"flex": 1}),
        lambda: Price(input=1, tiers={"flex": Price(input=1, tiers={"batch": Price(input=1)})}),
        lambda: Price(input=1, since=datetime(2026, 1, 1, tzinfo=UTC)),
        lambda: PriceBook(prices="litellm"),
        lambda: PriceBook({"m": 3}),
        lambda: PriceBook({"m": []}),
        lambda: PriceBook({"m": [Price(input=1), 2]}),
        lambda: PriceBook({"": Price(input=1)}),
        lambda: PriceBook([("m", Price(input=1))]),
    ]
    for make in wrong:
        with pytest.raises(InvalidArgument):
            make()


def test_a_float_counts_as_what_it_prints_as() -> None:
    assert Price(input=0.1).input == Decimal("0.1")
    assert cost(book(m=Price(input=0.1)), Usage(input=3)).amount == Decimal("3E-7")


# ---- unknown is not 0 ------------------------------------------------------------------------------------------------


def test_no_usage_and_no_model() -> None:
    prices = book(m=Price(input=1))
    assert cost(prices, None).reason == "no usage"
    assert prices.cost(Usage(input=1), provider="p", model=None).reason == "no model"


def test_a_server_of_ones_own_has_no_price_but_ones_own() -> None:
    prices = PriceBook({"ollama:large": Price(input=1)})
    assert cost(prices, Usage(input=1_000_000), "large", "ollama").amount == 1
    told = cost(prices, Usage(input=1_000_000), "small", "ollama:small")
    assert told.reason == "no price list for the provider ollama; give it one of your own"
    assert not prices.loaded


def test_nothing_used_costs_nothing() -> None:
    assert cost(book(m=Price(input=1)), Usage()).amount == 0


prices_of_all = st.fixed_dictionaries({}, optional={name: st.decimals(0, 1000, places=4) for name in TOKENS}).filter(
    bool
)
usages = st.builds(Usage, **{name: st.integers(0, 10**7) for name in TOKENS}, estimated=st.booleans())


@given(priced=prices_of_all, usage=usages)
def test_the_buckets_sum_to_the_amount_and_unknown_is_not_0(priced: dict[str, Decimal], usage: Usage) -> None:
    told = cost(book(m=Price(**priced)), usage)
    assert told.estimated is usage.estimated
    assert sum(told.buckets.values()) == told.at_least
    used = {name for name in TOKENS if getattr(usage, name)}
    if told.amount is None:
        assert used - told.buckets.keys() == set((told.reason or "").removeprefix("no price for ").split(", "))
    else:
        assert told.buckets.keys() == used
        assert sum(told.buckets.values()) == told.amount
    for name in used:  # what has a price of its own is billed at it
        if name in priced:
            assert told.buckets[name] == priced[name] * getattr(usage, name) / 1_000_000


@given(priced=prices_of_all.filter(lambda prices: "input" in prices and "output" in prices), usage=usages)
def test_each_token_is_paid_once(priced: dict[str, Decimal], usage: Usage) -> None:
    """The money is that of the buckets one by one: none is in another."""
    prices = book(m=Price(**priced))
    apart = [cost(prices, Usage(**{name: getattr(usage, name)}, estimated=usage.estimated)) for name in TOKENS]
    together = cost(prices, usage)
    if together.amount is None:
        assert any(one.amount is None for one in apart)
    else:
        assert together.amount == sum((one.at_least for one in apart), Decimal(0))
    # One price for all: what was cached, written or thought changes nothing in the sum.
    flat = cost(book(m=Price(**dict.fromkeys(TOKENS, Decimal(3)))), usage)
    assert flat.amount == Decimal(3) * usage.total / 1_000_000


@given(first=usages, second=usages)
def test_costs_add(first: Usage, second: Usage) -> None:
    prices = book(m=Price(input=1, output=2, cache_write_1h=3, cache_write_12h=4))
    one, two = cost(prices, first), cost(prices, second)
    both = one + two
    assert both.amount == (one.amount or 0) + (two.amount or 0)
    assert sum(both.buckets.values()) == both.amount
    assert both.estimated is (first.estimated or second.estimated)
    unknown = both + cost(prices, None)
    assert unknown.amount is None
    assert unknown.at_least == both.amount


def test_a_cost_prints_and_travels() -> None:
    told = cost(book(m=Price(input=1)), Usage(input=1500, estimated=True))
    assert str(told) == "~$0.0015"
    assert str(cost(book(m=Price(input=1)), Usage(output=1))) == "unknown (no price for output)"
    assert pickle.loads(pickle.dumps(told)) == told


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_no_price_data_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, llmprod.pricing as p; b = p.PriceBook({'m': p.Price(input=1)}); from llmprod.usage import Usage;"
        "b.cost(Usage(input=1), provider='p', model='m'); assert not b.loaded;"
        "assert not [m for m in sys.modules if m.startswith(('genai_prices', 'httpx', 'llmprod.pricing._'))], 1;"
        "b.cost(Usage(input=1), provider='p', model='n'); assert b.loaded and 'genai_prices' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_genai_prices_the_extract_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmprod.pricing import book as module

    monkeypatch.setattr(module, "_genai", lambda: None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert cost(PriceBook(), Usage(input=1), "gpt-5", "openai").source == "snapshot"
    with pytest.raises(InvalidArgument, match="not installed"):
        PriceBook(prices="genai-prices")


def test_a_release_that_can_not_be_read_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from genai_prices import data_snapshot

    from llmprod.pricing import book as module

    monkeypatch.delattr(data_snapshot, "get_snapshot")
    monkeypatch.setattr(module, "_genai", module._genai.__wrapped__)
    assert cost(PriceBook().load(), Usage(input=1), "gpt-5", "openai").source == "snapshot"
    assert "can't be read (AttributeError)" in caplog.text


def test_data_that_the_application_renews_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_prices import data_snapshot
    from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, Provider

    prices = PriceBook(prices="genai-prices")
    assert cost(prices, Usage(input=1_000_000), "new", "openai").amount is None
    model = ModelInfo(id="new", match=ClauseEquals("new"), prices=ModelPrice(input_mtok=Decimal(9)))
    provider = Provider(id="openai", name="OpenAI", api_pattern="x", models=[model])
    monkeypatch.setattr(
        data_snapshot, "_custom_snapshot", data_snapshot.DataSnapshot([provider], from_auto_update=True)
    )
    renewed = cost(prices, Usage(input=1_000_000), "new", "openai")
    assert renewed.amount == 9
    assert date.fromisoformat(renewed.price_version or "")


def test_many_models_are_not_kept_for_ever() -> None:
    prices = PriceBook(prices="snapshot")
    for number in range(3000):
        cost(prices, Usage(input=1), f"gpt-{number}", "openai")
    assert len(prices._looked_up) <= 1024


def test_every_bucket_of_usage_can_be_priced() -> None:
    assert {item.name for item in fields(Price)} >= set(TOKENS)
