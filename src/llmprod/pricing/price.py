"""Prices of the user's own, checked when they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias, cast

from llmprod.errors import InvalidArgument
from llmprod.pricing.sheet import REQUESTS, TOKENS, Cliff, Period, Rate, Sheet, Variant, When, tool

__all__ = ["Money", "Price"]

Money: TypeAlias = Decimal | int | str | float
"""An amount. A float counts as what it prints as, so ``0.1`` is a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs, in US dollars a million tokens: ``Price(input="2.50", output="10")``.

    What has no price of its own is billed as what it is a kind of: reasoning as output, images as input, what the cache
    gave as input. A cache write that lasts an hour or longer, where only ``cache_write`` is priced, is unknown.

    Attributes:
        input, output: prompt and answer. No default: a price that is not known must not be 0.
        cache_read, cache_read_audio, cache_read_image: prompt tokens that came from the provider's cache.
        cache_write, cache_write_5m, cache_write_30m, cache_write_1h, cache_write_12h: those that were written to it.
        input_audio, input_image, tool_prompt, reasoning, output_audio, output_image: the other buckets of
            :class:`llmprod.Usage`.
        request: a fee by request, in dollars.
        server_tools: the price of one use of the provider's own tools, in dollars: ``{"web_search": "0.01"}``.
        above: other prices for prompts of more than so many tokens, for everything in the request:
            ``{200_000: Price(input=6, output="22.5")}``. What they leave out stays as it is.
        tiers: other prices by service tier, ``batch`` among them: ``{"batch": Price(input=1, output=5)}``.
        since: the day (UTC) from which on this price holds; for a list of prices.

    Raises:
        InvalidArgument: an amount is no number, or below 0.
    """

    input: Money | None = None
    output: Money | None = None
    cache_read: Money | None = None
    cache_read_audio: Money | None = None
    cache_read_image: Money | None = None
    cache_write: Money | None = None
    cache_write_5m: Money | None = None
    cache_write_30m: Money | None = None
    cache_write_1h: Money | None = None
    cache_write_12h: Money | None = None
    input_audio: Money | None = None
    input_image: Money | None = None
    tool_prompt: Money | None = None
    reasoning: Money | None = None
    output_audio: Money | None = None
    output_image: Money | None = None
    request: Money | None = None
    server_tools: Mapping[str, Money] = field(default_factory=dict[str, Money])
    above: Mapping[int, Price] = field(default_factory=dict[int, "Price"])
    tiers: Mapping[str, Price] = field(default_factory=dict[str, "Price"])
    since: date | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.name in TOKENS or item.name == "request":
                value = getattr(self, item.name)
                if value is not None:
                    object.__setattr__(self, item.name, _money(item.name, value))
        tools: Any = self.server_tools
        if not isinstance(tools, Mapping):
            raise InvalidArgument("server_tools", type(tools).__name__, "a dict of prices by the tool's name")
        object.__setattr__(
            self,
            "server_tools",
            {
                name: _money(f"server_tools[{name!r}]", value)
                for name, value in cast("Mapping[str, Any]", tools).items()
            },
        )
        _check_prices("above", self.above, int)
        _check_prices("tiers", self.tiers, str)
        since: Any = self.since
        if since is not None and type(since) is not date:
            raise InvalidArgument("since", type(since).__name__, "a date, or None")
        rates = self._rates()
        if not rates:
            raise InvalidArgument("input", "no price at all", "at least one price; 0 for what is free")
        for start, higher in self.above.items():
            for name in higher._rates().keys() - rates.keys():
                raise InvalidArgument(f"above[{start}]", f"a price of {name} alone", "prices that stand below it too")

    def _rates(self) -> dict[str, Decimal]:
        rates: dict[str, Decimal] = {}
        for name in TOKENS:
            value = getattr(self, name)
            if value is not None:
                rates[name] = value
        if self.request is not None:
            rates[REQUESTS] = self.request  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
        for name, value in self.server_tools.items():
            rates[tool(name)] = value  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
        return rates

    def rates(self) -> dict[str, Rate]:
        """Return the prices with their cliffs."""
        rates: dict[str, Rate] = dict(self._rates())
        steps = [(start, self.above[start]._rates()) for start in sorted(self.above)]
        for name in {name for _, higher in steps for name in higher}:
            base = self._rates().get(name)
            above = [(start, higher[name]) for start, higher in steps if name in higher]
            assert base is not None
            rates[name] = Cliff(base, tuple(above))
        return rates


def sheet(prices: Price | tuple[Price, ...]) -> Sheet:
    """Return the prices as a sheet; of several, each holds from its ``since``."""
    several = (prices,) if isinstance(prices, Price) else prices
    ordered = sorted(several, key=lambda price: price.since or date.min)
    return Sheet(
        tuple(Period(price.rates(), When(since=price.since) if price.since else None) for price in ordered),
        tuple(
            Variant(name, other.rates(), When(since=price.since) if price.since else None)
            for price in reversed(ordered)
            for name, other in price.tiers.items()
        ),
        always=False,
    )


def _money(name: str, value: Any) -> Decimal:
    allowed = "US dollars, 0 or more, as a string, a Decimal or a number"
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str, float)):
        raise InvalidArgument(name, type(value).__name__, allowed)
    try:
        money = Decimal(str(value))
    except InvalidOperation:
        raise InvalidArgument(name, repr(value)[:40], allowed) from None
    if not money.is_finite() or money < 0:
        raise InvalidArgument(name, repr(value)[:40], allowed)
    return money


def _check_prices(name: str, prices: Any, kind: type) -> None:
    allowed = f"a dict of Price by {'tokens' if kind is int else 'tier'}"
    if not isinstance(prices, Mapping):
        raise InvalidArgument(name, type(prices).__name__, allowed)
    for key, price in cast("Mapping[object, object]", prices).items():
        if type(key) is not kind or (isinstance(key, int) and key < 1) or not isinstance(price, Price):
            raise InvalidArgument(name, f"{repr(key)[:40]}: {type(price).__name__}", allowed)
        if (price.above and kind is int) or price.tiers:
            raise InvalidArgument(name, "prices within prices", "plain prices")
