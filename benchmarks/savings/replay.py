"""Pays for the trace: what is sent goes through the wrappers' own planning, and is billed by the providers' rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from benchmarks.savings.trace import BLOCK, FIRST_TOKEN, Call
from llmprod.mechanisms.cache_habits import CacheHabits, CacheWorth
from llmprod.mechanisms.cache_prices import CachePrices
from llmprod.mechanisms.cache_routing_key import CacheRoutingKey
from llmprod.mechanisms.cache_rules import CacheRules, rules_for
from llmprod.mechanisms.prefix_chain import Cut, leading_system, prefix_chain
from llmprod.request import GenerateRequest
from llmprod.usage import Usage
from llmprod.wrappers._cache_shape import Shaper

PRICES_OF = "2026-11-28"
"""Day of the prices, which are genai-prices 0.2.3's."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model, its prompt cache and its prices.

    Attributes:
        title: for people.
        style: of its prompt cache.
        model: its id.
        prices: for a million tokens.
        ttl: Anthropic's lifetime.
    """

    title: str
    style: str
    model: str
    prices: CachePrices
    ttl: Literal["5m", "1h", "auto"] = "5m"


_SONNET = CachePrices(fresh=2, read="0.1", write="2.5", write_1h=4, output=10)
TARGETS = (
    Target("Claude Sonnet 5.5", "anthropic", "claude-sonnet-5-5", _SONNET),
    Target("GPT-5.6 Terra", "openai", "gpt-5.6-terra", CachePrices(fresh=2, read="0.2", write="2.5", output=12)),
    Target("Gemini 3.8 Flash", "google", "gemini-3.8-flash", CachePrices(fresh="0.75", read="0.075", output="3.75")),
)
WITH_HOURS = Target("Claude Sonnet 5.5, ttl auto", "anthropic", "claude-sonnet-5-5", _SONNET, ttl="auto")


class Now:
    """The trace's time."""

    time = 0.0

    def now(self) -> float:
        """Return seconds since the trace's start."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """Nobody waits here."""
        raise AssertionError


class ProviderCache:
    """A provider's prompt cache, by its published rules. An entry is there once its answer has begun.

    * Anthropic: an entry ends at a mark, and is found up to 20 blocks before one.
    * OpenAI from GPT-5.6 on: an entry ends at a breakpoint or at the newest message, and is found there.
    * Gemini, implicit: Google tells neither lifetime nor granularity. Taken for the best case: whatever was sent in the
      last five minutes is found, to 512 tokens.
    """

    def __init__(self, rules: CacheRules) -> None:
        self._rules = rules
        self._entries: dict[Any, tuple[float, float]] = {}

    def bill(self, now: float, call: Call, sent: GenerateRequest, cuts: Sequence[Cut], output: int) -> Usage:
        """Return the usage of a call."""
        if self._rules.style == "google":
            return self._implicit(now, call, output)
        name = "cache_control" if self._rules.style == "anthropic" else "prompt_cache_breakpoint"
        marks = {
            place + 1: mark
            for place, message in enumerate(sent.messages)
            for part in message.parts
            if (mark := getattr(part, "meta", {}).get("marks", {}).get(name)) is not None
        }
        found: list[int] = []
        if self._rules.style == "anthropic":
            for end in marks:
                hit = next((place for place in range(end, max(0, end - 20), -1) if self._has(cuts[place], now)), None)
                found += [] if hit is None else [hit]
        else:
            if sent.extra.get("openai", {}).get("prompt_cache_options", {}).get("mode") != "explicit":
                marks[len(cuts) - 1] = {}
            found = [end for end in marks if self._has(cuts[end], now)]
        read = max((round(cuts[place].tokens) for place in found), default=0)
        most = max((round(cuts[end].tokens) for end in marks if cuts[end].tokens >= self._rules.minimum), default=0)
        hour = any(mark.get("ttl") == "1h" for mark in marks.values())
        for end in {*marks, *found}:
            if cuts[end].tokens >= self._rules.minimum:
                self._keep(cuts[end].digest, now, 3600.0 if hour else self._rules.lifetime)
        written = max(0, most - read)
        fresh = round(cuts[-1].tokens) - read - written
        if hour:
            return Usage(input=fresh, cache_read=read, cache_write_1h=written, output=output)
        return Usage(input=fresh, cache_read=read, cache_write=written, output=output)

    def _has(self, cut: Cut, now: float) -> bool:
        begun, until = self._entries.get(cut.digest, (0.0, 0.0))
        return begun <= now < until

    def _keep(self, key: Any, now: float, seconds: float) -> None:
        begun = self._entries[key][0] if key in self._entries and self._entries[key][1] > now else now + FIRST_TOKEN
        self._entries[key] = (begun, now + seconds)

    def _implicit(self, now: float, call: Call, output: int) -> Usage:
        prompt = sum(tokens + 4 for _, _, tokens in call.said)  # as the other caches count it
        read = 0
        for count, block in enumerate(call.blocks, 1):  # a block's id stands for all before it too
            begun, until = self._entries.get(block, (0.0, 0.0))
            if not begun <= now < until:
                break
            read = count * BLOCK
        read = read if read >= self._rules.minimum else 0
        if prompt >= self._rules.minimum:
            for block in call.blocks:
                self._keep(block, now, self._rules.lifetime)
        return Usage(input=prompt - read, cache_read=read, output=output)


@dataclass(slots=True)
class Bill:
    """What one way of doing it costs.

    Attributes:
        calls: that were paid for.
        usage: their tokens.
        fresh, written, read, output: US dollars for each kind of token.
    """

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    fresh: Decimal = Decimal(0)
    written: Decimal = Decimal(0)
    read: Decimal = Decimal(0)
    output: Decimal = Decimal(0)

    @property
    def total(self) -> Decimal:
        """US dollars in all."""
        return self.fresh + self.written + self.read + self.output

    def add(self, usage: Usage, prices: CachePrices) -> None:
        """Add a call."""
        self.calls += 1
        self.usage += usage
        self.read += prices.cost(Usage(cache_read=usage.cache_read))
        self.written += prices.cost(Usage(cache_write=usage.cache_write, cache_write_1h=usage.cache_write_1h))
        self.fresh += prices.cost(Usage(input=usage.input))
        self.output += prices.cost(Usage(output=usage.output))


def asked(calls: Iterable[Call], *, cache: float | None, together: bool) -> list[bool]:
    """Tell which calls reach the provider: not those that were answered before, or wait for an equal one in flight.

    Args:
        calls: in order.
        cache: seconds that the exact cache keeps an answer; None without one.
        together: equal calls in flight are made once.
    """
    ends: dict[tuple[int, ...], float] = {}
    reach: list[bool] = []
    for call in calls:
        end = ends.get(call.key)
        flying = end is not None and call.at < end
        kept = end is not None and cache is not None and end <= call.at < end + cache
        mine = not ((flying and together) or kept)
        reach.append(mine)
        if mine:
            ends[call.key] = call.at + call.seconds
    return reach


def pay(calls: Sequence[Call], reach: Sequence[bool], target: Target, *, caching: bool) -> Bill:
    """Return the bill for the calls that reach the provider."""
    rules, clock, bill = rules_for(target.style, target.model), Now(), Bill()
    habits, key = CacheHabits(clock=clock), CacheRoutingKey("benchmark", clock=clock)
    worth = CacheWorth(2 * rules.lifetime, clock=clock)
    shaper = Shaper(
        rules,
        target.style,
        "marks",
        habits,
        key,
        worth,
        ttl=target.ttl,
        conversations="auto",
        retention=None,
    )
    cache = ProviderCache(rules)
    for call, mine in zip(calls, reach, strict=True):
        if not mine:
            continue
        clock.time = call.at
        if not caching:
            bill.add(Usage(input=sum(tokens + 4 for _, _, tokens in call.said), output=call.output), target.prices)
            continue
        request = call.request()
        cuts = prefix_chain(request)
        shape = shaper.shape(request, cuts, leading_system(request))
        usage = cache.bill(call.at, call, shape.request, cuts, call.output)
        if shape.marked and rules.write > 1:
            worth.add(usage.cache_read, usage.cache_written, 2.0 if usage.cache_write_1h else rules.write)
        bill.add(usage, target.prices)
    return bill
