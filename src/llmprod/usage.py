"""Token counts in buckets that never overlap, so that no token is counted or billed twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from operator import attrgetter
from typing import Any, Literal

__all__ = ["FinishReason", "Usage"]

FinishReason = Literal[
    "stop", "length", "tool_calls", "content_filter", "refusal", "pause", "context_overflow", "error", "unknown"
]
"""Why an answer ended, the same words for all providers; the provider's own word is kept as ``raw_finish``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call, in disjoint buckets: their sum is what was processed.

    Attributes:
        input: prompt tokens that were neither read from nor written to a cache (text, unless told apart below).
        cache_read: prompt tokens read from the provider's prompt cache (text, unless told apart below).
        cache_read_audio, cache_read_image: the same of that kind, not in ``cache_read``.
        cache_write: prompt tokens written to it, where the provider doesn't say for how long.
        cache_write_5m, cache_write_30m, cache_write_1h, cache_write_12h: the same by lifetime.
        input_audio, input_image: prompt tokens of that kind, not in ``input``.
        tool_prompt: prompt tokens that the provider's own tools added.
        output: answer text (and tool-call) tokens.
        reasoning: thinking tokens, not in ``output``.
        output_audio, output_image: answer tokens of that kind, not in ``output``.
        server_tools: uses of the provider's own tools, by name, such as ``{"web_search": 2}`` (not tokens).
        estimated: True where a number is an estimate rather than the provider's word.
        tier: the service tier that the provider says it used, such as ``flex`` or ``priority``; None for the standard
            one, and where it doesn't say.
        cost: US dollars that the provider itself says it took, as OpenRouter does; None where it doesn't.
    """

    input: int = 0
    cache_read: int = 0
    cache_read_audio: int = 0
    cache_read_image: int = 0
    cache_write: int = 0
    cache_write_5m: int = 0
    cache_write_30m: int = 0
    cache_write_1h: int = 0
    cache_write_12h: int = 0
    input_audio: int = 0
    input_image: int = 0
    tool_prompt: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    output_image: int = 0
    server_tools: Mapping[str, int] = field(default_factory=dict[str, int])
    estimated: bool = False
    tier: str | None = None
    cost: Decimal | None = None

    @property
    def cached(self) -> int:
        """All prompt tokens that were read from a cache."""
        return self.cache_read + self.cache_read_audio + self.cache_read_image

    @property
    def total_input(self) -> int:
        """All prompt tokens, cached or not."""
        counts: tuple[int, ...] = _inputs(self)
        return sum(counts)

    @property
    def cache_written(self) -> int:
        """Prompt tokens written to the provider's prompt cache, for however long."""
        return sum(getattr(self, name) for name in _WRITTEN)

    @property
    def total_output(self) -> int:
        """All tokens that the model produced, thinking included."""
        return self.output + self.reasoning + self.output_audio + self.output_image

    @property
    def total(self) -> int:
        """Prompt and answer together."""
        return self.total_input + self.total_output

    def __add__(self, other: Usage) -> Usage:
        """Add bucket by bucket; estimated if either is, of a tier if both are of it, of a cost if both have one."""
        tools = {
            name: self.server_tools.get(name, 0) + other.server_tools.get(name, 0)
            for name in {**self.server_tools, **other.server_tools}
        }
        sums: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in (*_INPUT, *_OUTPUT)}
        return Usage(
            **sums,
            server_tools=tools,
            estimated=self.estimated or other.estimated,
            tier=self.tier if self.tier == other.tier else None,
            cost=None if self.cost is None or other.cost is None else self.cost + other.cost,
        )

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{item.name}={value!r}"
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default and value
        )
        return f"Usage({shown})"


_OUTPUT = ("output", "reasoning", "output_audio", "output_image")
_WRITTEN = ("cache_write", "cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h")
_INPUT = tuple(item.name for item in fields(Usage) if item.type == "int" and item.name not in _OUTPUT)
_inputs = attrgetter(*_INPUT)

_COUNT_AT_MOST = 2**31 - 1
"""A token count is an int32 in Gemini's API, and none comes near it: what is above is no count."""


def count_of(told: object) -> int | None:
    """Return a number of tokens or uses as a server tells it; None for what can't be one.

    Digits in a string count. A number below 0, one that is not finite or beyond all measure (of a server that is out of
    order, or that means "not known" by -1) is none: taken at its word, it would be billed, or paid back.
    """
    if isinstance(told, str):
        told = int(told) if told.isascii() and told.isdecimal() and len(told) <= 10 else None
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not 0 <= told <= _COUNT_AT_MOST:
        return None
    return int(told)


_STANDARD = frozenset({"default", "standard", "auto", "on_demand", "unspecified"})


def special_tier(told: object) -> str | None:
    """Return the name of a service tier, in lower case; None for the standard one by any of its names."""
    word = told.lower() if isinstance(told, str) else ""
    return word if word and word not in _STANDARD else None
