"""What a count says: how many tokens, how sure that is, and by what method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TokenCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """Tokens of a prompt or text.

    Attributes:
        tokens: the count, or the likeliest.
        exact: it is what the provider will count: plain text, and OpenAI's own table at hand.
        method: how it was found, such as ``o200k_base`` or ``by script (anthropic), corrected``.
        lower_bound: it is hardly ever less.
        upper_bound: it is hardly ever more; what a budget reserves.
        parts: tokens of ``text``, ``marks`` (what a chat format puts around messages), ``tools``, ``schema``,
            ``images``, ``audio`` and ``files``, those that there are; they sum to ``tokens`` but for rounding.
        model: the model it was made for.
        raw: the estimate before correction, for learning.
    """

    tokens: int
    exact: bool
    method: str
    lower_bound: int
    upper_bound: int
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    model: str = ""
    raw: float = 0.0

    def __int__(self) -> int:
        return self.tokens
