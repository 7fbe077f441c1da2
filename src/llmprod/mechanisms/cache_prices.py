"""What a prompt cache is worth in money.

A call's price at a target is ``(read if it is warm there, else write) * prefix + fresh * suffix + output``: a long
prefix that is warm at a dearer model can cost less than the same prefix cold at a cheaper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias, cast

from llmprod import _validate
from llmprod.errors import InvalidArgument
from llmprod.usage import Usage

__all__ = ["CachePrices", "break_even_reads", "cached_content_saves"]

_MILLION = Decimal(1_000_000)
_NOTHING = Decimal(0)


Money: TypeAlias = Decimal | int | str | float
"""An amount. A float counts as what it prints as, so ``0.1`` is a tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrices:
    """Prices of one model in US dollars for a million text tokens; kept as ``Decimal``.

    Attributes:
        fresh: a prompt token that is neither read from a cache nor written to it.
        output: a token of the answer, thinking included.
        read: a token that is read; None where it costs as much as a fresh one.
        write: a token that is written (Anthropic's five minutes, OpenAI's 30); None as above.
        write_1h: one that is written for an hour or more; None where it costs as much as ``write``.

    Raises:
        InvalidArgument: a price is no number, or below 0.
    """

    fresh: Money
    output: Money
    read: Money | None = None
    write: Money | None = None
    write_1h: Money | None = None

    def __post_init__(self) -> None:
        for name in ("fresh", "output", "read", "write", "write_1h"):
            value = getattr(self, name)
            if value is not None or name in ("fresh", "output"):
                object.__setattr__(self, name, _money(name, value))

    @property
    def plain(self) -> Decimal:
        """Price of a token that is neither read nor written."""
        return cast("Decimal", self.fresh)

    @property
    def answering(self) -> Decimal:
        """Price of a token of the answer."""
        return cast("Decimal", self.output)

    @property
    def reading(self) -> Decimal:
        """Price of a token that is read."""
        return self.plain if self.read is None else cast("Decimal", self.read)

    @property
    def writing(self) -> Decimal:
        """Price of a token that is written for less than an hour."""
        return self.plain if self.write is None else cast("Decimal", self.write)

    @property
    def writing_long(self) -> Decimal:
        """Price of a token that is written for an hour or more."""
        return self.writing if self.write_1h is None else cast("Decimal", self.write_1h)

    def cost(self, usage: Usage) -> Decimal:
        """Return what a usage costs; all that is neither read nor written counts as fresh text."""
        long = usage.cache_write_1h + usage.cache_write_12h
        short = usage.cache_write + usage.cache_write_5m + usage.cache_write_30m
        fresh = usage.total_input - usage.cached - long - short
        prompt = fresh * self.plain + usage.cached * self.reading + short * self.writing + long * self.writing_long
        return (prompt + usage.total_output * self.answering) / _MILLION

    def without_cache(self, usage: Usage) -> Decimal:
        """Return what the same call would have cost if nothing were ever cached."""
        return (usage.total_input * self.plain + usage.total_output * self.answering) / _MILLION

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
        tokens = [
            (warm, self.reading),
            (kept - warm, self.writing),
            (prompt - kept, self.plain),
            (output, self.answering),
        ]
        return sum((Decimal(round(count)) * price for count, price in tokens), _NOTHING) / _MILLION


def cached_content_saves(prices: CachePrices, *, tokens: int, reads: float, hours: float, storage: Money) -> Decimal:
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
    each = prices.plain - prices.reading
    kept = prices.plain + _money("storage", storage) * Decimal(str(hours))
    return Decimal(tokens) * (Decimal(str(reads)) * each - kept) / _MILLION


def break_even_reads(prices: CachePrices, *, hours: float, storage: Money) -> Decimal | None:
    """Return how many calls it takes until explicitly cached content has paid for itself; None if it never does.

    Args:
        prices: of the model.
        hours: that it is kept.
        storage: US dollars for keeping a million tokens an hour.

    Raises:
        InvalidArgument: a number is negative.
    """
    _validate.between("hours", hours, 0, float("inf"))
    each = prices.plain - prices.reading
    kept = prices.plain + _money("storage", storage) * Decimal(str(hours))
    return kept / each if each > 0 else None


def _money(name: str, value: Any) -> Decimal:
    good = isinstance(value, (Decimal, int, str, float)) and not isinstance(value, bool)
    try:
        money = Decimal(str(value)) if good else None
    except ArithmeticError:
        money = None
    if money is None or not money.is_finite() or money < 0:
        raise InvalidArgument(name, repr(value)[:40], "US dollars from 0, as a Decimal or another number")
    return money
