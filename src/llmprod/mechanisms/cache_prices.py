"""What a prompt cache is worth in money.

A call's price at a target is ``(read if it is warm there, else write) * prefix + fresh * suffix + output``: a long
prefix that is warm at a dearer model can cost less than the same prefix cold at a cheaper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llmprod import _validate
from llmprod.errors import InvalidArgument
from llmprod.usage import Usage

__all__ = ["CachePrices", "break_even_reads", "cached_content_saves"]

_MILLION = Decimal(1_000_000)
_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrices:
    """Prices of one model in US dollars for a million text tokens: Decimal, int, or a decimal number as a string.

    A float is refused: 0.1 is none of the numbers that one can write as a float.

    Attributes:
        fresh: a prompt token that is neither read from a cache nor written to it.
        output: a token of the answer, thinking included.
        read: a token that is read; None where it costs as much as a fresh one.
        write: a token that is written (Anthropic's five minutes, OpenAI's 30); None as above.
        write_1h: one that is written for an hour or more; None where it costs as much as ``write``.

    Raises:
        InvalidArgument: a price is no such number, or negative.
    """

    fresh: Decimal
    output: Decimal
    read: Decimal | None = None
    write: Decimal | None = None
    write_1h: Decimal | None = None

    def __post_init__(self) -> None:
        for name in ("fresh", "output", "read", "write", "write_1h"):
            value = getattr(self, name)
            if value is not None or name in ("fresh", "output"):
                object.__setattr__(self, name, _money(name, value))

    @property
    def reading(self) -> Decimal:
        """Price of a read token."""
        return self.fresh if self.read is None else self.read

    @property
    def writing(self) -> Decimal:
        """Price of a written token."""
        return self.fresh if self.write is None else self.write

    def cost(self, usage: Usage) -> Decimal:
        """Return what a usage costs; all that is neither read nor written counts as fresh text."""
        long = usage.cache_write_1h + usage.cache_write_12h
        short = usage.cache_write + usage.cache_write_5m + usage.cache_write_30m
        hour = self.writing if self.write_1h is None else self.write_1h
        fresh = usage.total_input - usage.cache_read - long - short
        prompt = fresh * self.fresh + usage.cache_read * self.reading + short * self.writing + long * hour
        return (prompt + usage.total_output * self.output) / _MILLION

    def without_cache(self, usage: Usage) -> Decimal:
        """Return what the same call would have cost if nothing were ever cached."""
        return (usage.total_input * self.fresh + usage.total_output * self.output) / _MILLION

    def expected(self, *, prompt: float, warm: float, kept: float, output: float) -> Decimal:
        """Return what a call will probably cost.

        Args:
            prompt: tokens of the prompt.
            warm: of them, those that are in the target's cache now.
            kept: of the prompt's tokens, those that the target would write or read; the rest is fresh.
            output: tokens of the answer.
        """
        warm = min(warm, prompt)
        kept = min(max(kept, warm), prompt)
        tokens = [(warm, self.reading), (kept - warm, self.writing), (prompt - kept, self.fresh), (output, self.output)]
        return sum((Decimal(round(count)) * price for count, price in tokens), _NOTHING) / _MILLION


def cached_content_saves(
    prices: CachePrices, *, tokens: int, reads: float, hours: float, storage: Decimal | int | str
) -> Decimal:
    """Return what explicitly cached content (Gemini) saves against sending its tokens with each call, in US dollars.

    Making it costs its tokens once as fresh ones, keeping it ``storage`` an hour, and each call reads it. Negative
    where it costs more than it saves. Against *implicit* caching, which costs nothing and often hits, it saves less.

    Args:
        prices: of the model.
        tokens: that are cached.
        reads: calls that use it.
        hours: that it is kept.
        storage: US dollars for keeping a million tokens an hour.

    Raises:
        InvalidArgument: a number is negative.
    """
    _validate.whole("tokens", tokens, 0)
    _validate.between("reads", reads, 0, float("inf"))
    _validate.between("hours", hours, 0, float("inf"))
    each = prices.fresh - prices.reading
    kept = prices.fresh + _money("storage", storage) * Decimal(str(hours))
    return Decimal(tokens) * (Decimal(str(reads)) * each - kept) / _MILLION


def break_even_reads(prices: CachePrices, *, hours: float, storage: Decimal | int | str) -> Decimal | None:
    """Return how many calls it takes until explicitly cached content has paid for itself; None if it never does.

    Args:
        prices: of the model.
        hours: that it is kept.
        storage: US dollars for keeping a million tokens an hour.

    Raises:
        InvalidArgument: a number is negative.
    """
    _validate.between("hours", hours, 0, float("inf"))
    each = prices.fresh - prices.reading
    kept = prices.fresh + _money("storage", storage) * Decimal(str(hours))
    return kept / each if each > 0 else None


def _money(name: str, value: Any) -> Decimal:
    good = isinstance(value, (Decimal, int, str)) and not isinstance(value, bool)
    try:
        money = Decimal(value) if good else None
    except ArithmeticError:
        money = None
    if money is None or not money.is_finite() or money < 0:
        raise InvalidArgument(name, repr(value)[:40], "US dollars from 0, as a Decimal, an int or a string")
    return money
