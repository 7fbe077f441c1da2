"""One model's prices, and what a usage costs by them.

Prices are by bucket, may have cliffs by the length of the prompt, change by date or by the time of day, and differ by
service tier and for batches. The rules are those of genai-prices' data (github.com/pydantic/genai-prices, MIT), so that
both come to the same money, save where its rule is to bill at another kind's price what is known to cost more:

* Above a cliff, everything is billed at the higher price, the answer too; the whole prompt counts, cached or not.
* Of periods, the last whose condition holds counts; the first where none does.
* A tier's prices replace those of the standard tier, one by one. A tier that the model has no prices for is unknown.
* A kind that has no price of its own is billed as what it is a kind of: reasoning as output, an image as input, what
  the cache gave or took as input. Not so a cache write that lasts longer than the one that is priced (an hour where
  five minutes are), nor audio where the vendor always prices it apart: these are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from operator import attrgetter
from typing import TypeAlias

from llmprod.usage import Usage

__all__ = ["Cliff", "Period", "Rate", "Sheet", "Variant", "When"]

REQUESTS = "requests"
"""The rate of a fee by request."""


def tool(name: str) -> str:
    """The rate of a use of a provider's own tool."""
    return f"tool:{name}"


@dataclass(frozen=True, slots=True)
class Cliff:
    """A price that depends on the length of the prompt.

    Attributes:
        base: the price of short prompts.
        above: ``(tokens, price)``, ascending: the price of prompts of more than that many tokens.
    """

    base: Decimal
    above: tuple[tuple[int, Decimal], ...]

    def at(self, prompt: int) -> Decimal:
        """Return the price with a prompt of so many tokens."""
        price = self.base
        for start, higher in self.above:
            if prompt > start:
                price = higher
        return price


Rate: TypeAlias = Decimal | Cliff
Rates: TypeAlias = Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class When:
    """When prices hold, in UTC: from a date on, or daily from one time to another."""

    since: date | None = None
    hours: tuple[time, time] | None = None

    def holds(self, at: datetime) -> bool:
        """Tell whether they hold at a time with a zone."""
        moment = at.astimezone(UTC)
        if self.since is not None and moment.date() < self.since:
            return False
        if self.hours is None:
            return True
        start, end = self.hours
        now = moment.time()
        return start <= now < end if start <= end else now >= start or now < end


@dataclass(frozen=True, slots=True)
class Period:
    """Prices, and when they hold. Token prices are US dollars a million tokens, others US dollars a use."""

    rates: Rates
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """Prices of one tier, which replace the standard ones."""

    tier: str
    rates: Rates
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """One model's prices.

    Attributes:
        periods: the standard prices.
        variants: those of tiers, of ``batch`` among them.
        apart: buckets that are never billed at another's price.
        always: the first period holds where no other does; False: there is no price then.
    """

    periods: tuple[Period, ...]
    variants: tuple[Variant, ...] = ()
    apart: frozenset[str] = frozenset()
    always: bool = True

    def rates(self, at: datetime, tiers: tuple[str, ...] = ()) -> Rates | str:
        """Return the prices of a time in tiers, or why there are none."""
        standard = self.periods[0].rates if self.always else None
        for period in reversed(self.periods):
            if period.when is None or period.when.holds(at):
                standard = period.rates
                break
        if standard is None:
            return "no price for that date"
        if not tiers:
            return standard
        replaced: dict[str, Rate] = {}
        met: set[str] = set()
        for variant in self.variants:
            if variant.tier in tiers and (variant.when is None or variant.when.holds(at)):
                met.add(variant.tier)
                for name, rate in variant.rates.items():
                    replaced.setdefault(name, rate)
        for name in tiers:
            if name not in met:
                return f"no price for the tier {name}"
        return {**standard, **replaced}

    def price(self, usage: Usage, rates: Rates) -> tuple[dict[str, Decimal], str | None]:
        """Return the money by bucket, and why it is not all of it (None where it is)."""
        prompt = usage.total_input
        money: dict[str, Decimal] = {}
        missing: list[str] = []
        counts: tuple[int, ...] = _counts(usage)
        for name, count in zip(TOKENS, counts, strict=True):
            if not count:
                continue
            rate = self._rate(name, rates)
            if rate is None:
                missing.append(name)
            else:
                money[name] = _at(rate, prompt) * count / _MILLION
        for name, count in usage.server_tools.items():
            if not count:
                continue
            rate = rates.get(tool(name))
            if rate is not None:
                money[name] = _at(rate, prompt) * count
            elif name not in _FREE_TOOLS:
                missing.append(name)
        fee = rates.get(REQUESTS)
        if fee is not None:
            money[REQUESTS] = _at(fee, prompt)
        return money, f"no price for {', '.join(missing)}" if missing else None

    def _rate(self, name: str, rates: Rates) -> Rate | None:
        rate = rates.get(name)
        if rate is not None or name in self.apart:
            return rate
        if name in _LONG_WRITES and "cache_write" in rates:
            return None
        for other in _BILLED_AS.get(name, ()):
            rate = rates.get(other)
            if rate is not None:
                return rate
        return None


_MILLION = Decimal(1_000_000)
TOKENS = tuple(item.name for item in fields(Usage) if item.type == "int")
_counts = attrgetter(*TOKENS)
_LONG_WRITES = frozenset({"cache_write_1h", "cache_write_12h"})
_WRITE = ("cache_write", "input")
_BILLED_AS: Mapping[str, tuple[str, ...]] = {
    "cache_read": ("input",),
    "cache_read_audio": ("cache_read", "input_audio", "input"),
    "cache_read_image": ("cache_read", "input_image", "input"),
    "cache_write": ("input",),
    "cache_write_5m": _WRITE,
    "cache_write_30m": _WRITE,
    "cache_write_1h": ("input",),
    "cache_write_12h": ("input",),
    "input_audio": ("input",),
    "input_image": ("input",),
    "tool_prompt": ("input",),
    "reasoning": ("output",),
    "output_audio": ("output",),
    "output_image": ("output",),
}
_FREE_TOOLS = frozenset({"web_fetch", "tool_search"})
"""Uses of these cost nothing beside their tokens (Anthropic)."""


def _at(rate: Rate, prompt: int) -> Decimal:
    return rate.at(prompt) if isinstance(rate, Cliff) else rate
