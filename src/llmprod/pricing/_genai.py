"""The prices of an installed genai-prices.

Nothing is fetched: an application that wants newer data than the package brings runs genai-prices' own
``UpdatePrices``, whose data is used as soon as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib import import_module
from importlib.metadata import version
from typing import Any, cast

from llmprod.pricing.lists import ALIASES, Found, as_date, plain_model
from llmprod.pricing.sheet import REQUESTS, Cliff, Period, Rate, Sheet, Variant, When, tool

__all__ = ["GenaiPrices", "sheet_of"]

TOKEN_RATES: Mapping[str, str] = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_audio_read_mtok": "cache_read_audio",
    "cache_image_read_mtok": "cache_read_image",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "input_image_mtok": "input_image",
    "input_tool_mtok": "tool_prompt",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
}
USE_RATES: Mapping[str, tuple[str, ...]] = {
    "requests_kcount": (REQUESTS,),
    "web_searches_kcount": (tool("web_search"),),
    "social_searches_kcount": (tool("x_search"), tool("social_search")),
    "storage_searches_kcount": (tool("file_search"), tool("storage_search")),
    "code_executions_kcount": (tool("code_execution"), tool("code_interpreter")),
}
"""genai-prices' names of what we count; what it prices beside them (seconds, characters, pages) is in no usage."""

_AUDIO_APART = frozenset({"input_audio", "output_audio", "cache_read_audio"})
_PRICES_AUDIO_APART = frozenset({"openai", "azure"})
_TIER_KEYS = ("service_tier", "speed")
_THOUSAND = Decimal(1000)


class GenaiPrices:
    """Looks up models in genai-prices.

    Raises:
        ImportError: it is not installed, or not a version that this can read.
    """

    def __init__(self) -> None:
        data: Any = import_module("genai_prices.data_snapshot")
        self._snapshot: Callable[[], Any] = data.get_snapshot
        self._release = f"genai-prices {version('genai-prices')}"
        self._sheets: dict[int, tuple[Any, Sheet]] = {}
        self._seen: Any = self._snapshot()  # loads the data, which takes most of a second

    def renewed(self) -> bool:
        """Tell whether the application has renewed the data."""
        now = self._snapshot()
        renewed, self._seen = now is not self._seen, now
        return renewed

    def find(self, provider: str | None, model: str, url: str | None) -> Found | str:
        """Return a model's prices, or why there are none."""
        snapshot = self._snapshot()
        model = plain_model(model)
        seller = _provider(snapshot.providers, provider, model, url)
        if seller is None:
            return "unknown provider" if provider is None else f"no price list for the provider {provider}"
        info = seller.find_model(model, all_providers=snapshot.providers)
        if info is None:
            return f"no price for this model of {seller.id}"
        own = any(info is other for other in seller.models)
        known = self._sheets.get(id(info) if own else -id(info))
        if known is None or known[0] is not info:
            # The data's objects are kept beside, so that an id stays theirs.
            known = (info, sheet_of(seller.id, info, own=own))
            self._sheets[id(info) if own else -id(info)] = known
        dated = snapshot.from_auto_update
        return Found(known[1], "genai-prices", as_date(snapshot.timestamp) if dated else self._release)


def _provider(providers: list[Any], name: str | None, model: str, url: str | None) -> Any:
    if name is not None:
        name = ALIASES.get(name, name)
        for provider in providers:
            if provider.id == name:
                return provider
    if url is not None:
        for provider in providers:
            if re.match(provider.api_pattern, url):
                return provider
    if name is None and url is None:
        for provider in providers:
            if provider.model_match is not None and provider.model_match.is_match(model):
                return provider
    return None


def sheet_of(seller: str, info: Any, *, own: bool = True) -> Sheet:
    """Turn one model of genai-prices into a sheet.

    Args:
        seller: the id of the provider that sells it.
        info: the model.
        own: it is the seller's own entry, not one of a provider whose models it sells too: tiers are not passed on.
    """
    told: Any = info.prices
    several: tuple[Any, ...] = tuple(cast("Any", told)) if isinstance(told, list) else ()
    periods = tuple(Period(_rates(each.prices), _when(each.constraint)) for each in several)
    variants: list[Variant] = []
    for variant in (info.price_variants or ()) if own else ():
        ((key, value), *others) = variant.when.items()
        tier = "batch" if (key, value) == ("processing", "batch") else value if key in _TIER_KEYS else None
        if tier is not None and tier != "default" and not others:
            variants.append(Variant(tier, _rates(variant.prices), _when(variant.constraint)))
    return Sheet(
        periods or (Period(_rates(told)),),
        tuple(variants),
        _AUDIO_APART if seller in _PRICES_AUDIO_APART else frozenset(),
    )


def _when(constraint: Any) -> When | None:
    if constraint is None:
        return None
    since = getattr(constraint, "start_date", None)
    if since is not None:
        return When(since=since)
    return When(hours=(_utc(constraint.start_time), _utc(constraint.end_time)))


def _utc(told: time) -> time:
    """A time of day in UTC, without its zone."""
    if told.tzinfo is None:
        return told
    return datetime.combine(datetime(1970, 1, 2, tzinfo=UTC), told).astimezone(UTC).time()


def _rates(prices: Any) -> dict[str, Rate]:
    rates: dict[str, Rate] = {}
    for key, value in cast("dict[str, Any]", vars(prices)).items():
        if value is None:
            continue
        if key in TOKEN_RATES:
            rates[TOKEN_RATES[key]] = _rate(value, Decimal(1))
        for name in USE_RATES.get(key, ()):
            rates[name] = _rate(value, _THOUSAND)
    return rates


def _rate(value: Any, per: Decimal) -> Rate:
    if isinstance(value, Decimal):
        return value / per
    return Cliff(value.base / per, tuple((step.start, step.price / per) for step in value.tiers))
