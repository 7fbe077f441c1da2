"""What prompt caching did: tokens read, written and missed, and the money that it saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TypeAlias

from llmprod.errors import InvalidArgument
from llmprod.mechanisms.cache_prices import CachePrices
from llmprod.usage import Usage

__all__ = ["CacheLedger", "PricesGiven", "PromptCacheStats", "as_prices"]

PricesGiven: TypeAlias = CachePrices | Mapping[str, CachePrices] | Callable[[str, Usage], Decimal | None] | None
"""One model's prices, those of several by the provider's name (``openai:gpt-5.6``) or model, or a function of the
provider's name and a usage that returns what it costs, None where it doesn't know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCacheStats:
    """Totals of the calls whose usage is known.

    Attributes:
        calls: calls that ended with a usage.
        unknown: calls that ended without one.
        fresh: prompt tokens that were neither read nor written.
        read: prompt tokens that were read.
        written: prompt tokens that were written.
        missed: prompt tokens that ought to have been there by what was sent before, in calls that read nothing.
        misses: number of such calls.
        cost: US dollars for the calls whose price is known; None where none is.
        uncached: what the same calls would have cost without any caching.
        unpriced: calls whose price is not known.
    """

    calls: int = 0
    unknown: int = 0
    fresh: int = 0
    read: int = 0
    written: int = 0
    missed: int = 0
    misses: int = 0
    cost: Decimal | None = None
    uncached: Decimal | None = None
    unpriced: int = 0

    @property
    def saved(self) -> Decimal | None:
        """US dollars saved against no caching, negative where writing cost more than reading saved."""
        return None if self.cost is None or self.uncached is None else self.uncached - self.cost

    @property
    def read_share(self) -> float:
        """Share of the prompt tokens that were read; 0 without any."""
        total = self.fresh + self.read + self.written
        return self.read / total if total else 0.0

    def __add__(self, other: PromptCacheStats) -> PromptCacheStats:
        """Add two targets' totals."""
        return PromptCacheStats(
            calls=self.calls + other.calls,
            unknown=self.unknown + other.unknown,
            fresh=self.fresh + other.fresh,
            read=self.read + other.read,
            written=self.written + other.written,
            missed=self.missed + other.missed,
            misses=self.misses + other.misses,
            cost=_sum(self.cost, other.cost),
            uncached=_sum(self.uncached, other.uncached),
            unpriced=self.unpriced + other.unpriced,
        )

    def __str__(self) -> str:
        told = f"{self.calls} calls: {self.read_share:.0%} of the prompt read, {self.written:,} tokens written"
        if self.misses:
            told += f", {self.misses} misses of {self.missed:,}"
        if self.saved is None:
            return told
        verb = "saved" if self.saved >= 0 else "lost"
        return f"{told}; ${abs(self.saved):,.4f} {verb} against ${self.uncached:,.4f} without"


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return other if one is None else one if other is None else one + other


def as_prices(given: PricesGiven) -> Callable[[str, Usage], Decimal | None] | None:
    """Return what was given as a function of provider and usage.

    Raises:
        InvalidArgument: it is no prices.
    """
    if given is None:
        return None
    if isinstance(given, CachePrices):
        return lambda _name, usage: given.cost(usage)
    if callable(given):
        return given
    if not isinstance(given, Mapping):
        raise InvalidArgument("prices", type(given).__name__, "CachePrices, a dict of them, a function, or None")
    return _by_name(given)


def _by_name(prices: Mapping[str, CachePrices]) -> Callable[[str, Usage], Decimal | None]:
    for name, one in prices.items():
        if not isinstance(one, CachePrices):
            raise InvalidArgument(f"prices[{name!r}]"[:60], type(one).__name__, "CachePrices")

    def price(name: str, usage: Usage) -> Decimal | None:
        found = prices.get(name) or prices.get(name.partition(":")[2])
        return None if found is None else found.cost(usage)

    return price


class CacheLedger:
    """Adds up one target's calls.

    Args:
        target: its name, for the prices.
        price: what a usage costs.
    """

    def __init__(self, target: str, price: Callable[[str, Usage], Decimal | None] | None) -> None:
        self._target = target
        self._price = price
        self.stats: PromptCacheStats = PromptCacheStats()

    def add(self, usage: Usage | None, expected: float = 0.0) -> None:
        """Add a call.

        Args:
            usage: its tokens; None where the provider didn't tell.
            expected: prompt tokens that ought to have been read.
        """
        if usage is None:
            self.stats += PromptCacheStats(unknown=1)
            return
        written = usage.cache_written
        missed = round(expected) if not usage.cached else 0
        cost = uncached = None
        if self._price is not None:
            cost, uncached = self._price(self._target, usage), self._price(self._target, _uncached(usage))
            if cost is None or uncached is None:
                cost = uncached = None
        self.stats += PromptCacheStats(
            calls=1,
            fresh=usage.total_input - usage.cached - written,
            read=usage.cached,
            written=written,
            missed=missed,
            misses=1 if missed else 0,
            cost=cost,
            uncached=uncached,
            unpriced=1 if cost is None else 0,
        )


def _uncached(usage: Usage) -> Usage:
    """The same call where nothing is ever cached: all of it is plain input."""
    return replace(
        usage,
        input=usage.input + usage.cache_read + usage.cache_written,
        input_audio=usage.input_audio + usage.cache_read_audio,
        input_image=usage.input_image + usage.cache_read_image,
        cost=None,  # what the provider says it took is of the call as it was
        cache_read=0,
        cache_read_audio=0,
        cache_read_image=0,
        cache_write=0,
        cache_write_5m=0,
        cache_write_30m=0,
        cache_write_1h=0,
        cache_write_12h=0,
    )
