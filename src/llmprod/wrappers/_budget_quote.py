"""What an attempt may cost at most, and what it did cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from math import ceil
from typing import Any, TypeAlias, cast

from llmprod.errors import InvalidArgument
from llmprod.mechanisms.budget import nano
from llmprod.mechanisms.flex import asked_tier
from llmprod.pricing import Price, PriceBook
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.tokens import default_counter
from llmprod.usage import Usage

__all__ = ["PriceFunction", "PriceTable", "Quotes", "prices", "prompt_bound"]

PriceFunction: TypeAlias = Callable[[str, str, Usage], "Decimal | None"]
"""Returns the US dollars that ``usage`` of a provider's model costs, or None where no price is known."""
PriceTable: TypeAlias = Mapping[str, tuple[Any, ...]]
"""US dollars a million tokens of prompt and answer, by target: ``{"openai:gpt-5-mini": ("0.25", "2")}``."""

_MILLION = Decimal(10) ** 6
_WRITES = ("cache_write", "cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h")


def prompt_bound(request: Request) -> int:
    """Return a number of prompt tokens that a request is rarely above, by what its texts are made of.

    0 for what can't be looked into, a decorated function's call.
    """
    if not isinstance(request, (GenerateRequest, EmbedRequest)):
        return 0
    return default_counter().estimate(request).upper_bound


def prices(price: PriceBook | PriceFunction | PriceTable) -> PriceFunction:
    """Return a book or a mapping of prices as a function.

    Raises:
        InvalidArgument: none of them, or what stands in the mapping is no price.
    """
    if isinstance(price, PriceBook):
        return lambda provider, model, usage: price.cost(usage, provider=provider, model=model).amount
    if callable(price):
        return price
    allowed = (
        "a PriceBook, a function of provider, model and usage, or dollars a million tokens of prompt and answer: "
        "{'provider:model': ('2.50', '10')}"
    )
    if not isinstance(price, Mapping) or not price:
        raise InvalidArgument("price", type(price).__name__, allowed)
    known: dict[str, tuple[Decimal, Decimal]] = {}
    for target, pair in price.items():
        try:
            told, answered = (Decimal(str(value)) / _MILLION for value in pair)
        except (ArithmeticError, TypeError, ValueError):
            given = type(pair).__name__ if isinstance(pair, Price) else repr(pair)[:40]
            raise InvalidArgument(f"price[{target!r}]", given, allowed) from None
        if not (told.is_finite() and answered.is_finite() and told >= 0 and answered >= 0):
            raise InvalidArgument(f"price[{target!r}]", repr(pair)[:40], allowed)
        known[target] = told, answered

    def cost(provider: str, model: str, usage: Usage) -> Decimal | None:
        found = known.get(f"{provider}:{model}") or known.get(model) or known.get(provider)
        return None if found is None else found[0] * usage.total_input + found[1] * usage.total_output

    return cost


class Quotes:
    """Asks a price for an attempt, before and after.

    Args:
        price: the price.
        tokens: prompt tokens at most.
        assume_output: answer tokens at most of a request that sets no ``max_tokens``.
        output_limit: the same by provider and model, where it is known.
        book: the price book that ``price`` stands for; None where it is none.
        cache_writes: the prompt may be written to the provider's cache, which can be dearer than to read it.
    """

    def __init__(
        self,
        price: PriceFunction,
        tokens: Callable[[Request], int],
        *,
        assume_output: int,
        output_limit: Callable[[str, str], int | None] | None,
        cache_writes: bool,
        book: PriceBook | None = None,
    ) -> None:
        self._price = price
        self._tokens = tokens
        self._assume_output = assume_output
        self._output_limit = output_limit
        self._cache_writes = cache_writes
        self._book = book

    def prompt(self, request: Request) -> int:
        """Return the most prompt tokens that ``request`` is taken to have."""
        return ceil(self._tokens(request))

    def bound(self, provider: Provider, request: Request, prompt: int) -> Usage:
        """Return the most that an attempt at ``provider`` is taken to use."""
        tier = asked_tier(request, named(provider)[0])
        if isinstance(request, EmbedRequest):
            return Usage(input=prompt, estimated=True, tier=tier)
        most = cast("int | None", getattr(request, "max_tokens", None))
        if most is None and self._output_limit is not None:
            most = self._output_limit(*named(provider))
        return Usage(input=prompt, output=most or self._assume_output, estimated=True, tier=tier)

    def before(self, provider: Provider, most: Usage) -> int | None:
        """Return what an attempt at ``provider`` may cost, in nano-dollars; None where no price is known."""
        kind, model = named(provider)
        url = _url(provider)
        cost = self._cost(kind, model, most, url)
        if most.tier is not None:  # which may not be given, or have no price
            standard = self._cost(kind, model, replace(most, tier=None), url)
            cost = max((each for each in (cost, standard) if each is not None), default=None)
        if cost is None:
            # An engine of this process that knows its own price tells afterwards; nobody can say before.
            return 0 if getattr(provider, "price_per_hour", None) is not None else None
        if self._cache_writes:
            for bucket in _WRITES:
                usage = replace(most, input=0, **cast("dict[str, Any]", {bucket: most.input}))
                cost = max(cost, self._cost(kind, model, usage, url) or cost)
        return nano(cost)

    def after(self, provider: Provider, model: str | None, usage: Usage) -> int | None:
        """Return what ``usage`` cost, in nano-dollars; None where no price is known."""
        kind, asked = named(provider)
        if self._book is not None:
            cost = self._book.cost(usage, provider=kind, model=model or asked, asked=asked, url=_url(provider)).amount
            return None if cost is None else nano(cost)
        cost = self._cost(kind, model, usage) if model and model != asked else None
        if cost is None:  # a dated name of the model that was asked for
            cost = self._cost(kind, asked, usage)
        return None if cost is None else nano(cost)

    def _cost(self, provider: str, model: str, usage: Usage, url: str | None = None) -> Decimal | None:
        if self._book is not None:
            return self._book.cost(usage, provider=provider, model=model, url=url).amount
        cost: Any = self._price(provider, model, usage)
        if cost is not None and not (isinstance(cost, Decimal) and cost.is_finite() and cost >= 0):
            raise InvalidArgument("price", repr(cost)[:40], "a function that returns a Decimal of 0 or more, or None")
        return cost


def _url(provider: Provider) -> str | None:
    """Return a target's address, which tells prices whose it is where its name does not."""
    return cast("tuple[Any, Any, str | None]", getattr(provider, "priced_as", (None, None, None)))[2]


def named(provider: Provider) -> tuple[str, str]:
    """Return a target's provider and model, by what its prices go by or by its name."""
    kind, model, _ = cast("tuple[Any, Any, Any]", getattr(provider, "priced_as", (None, None, None)))
    first, _, rest = provider.name.partition(":")
    return kind or first, model or rest
