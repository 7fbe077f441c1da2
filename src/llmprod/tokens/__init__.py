"""Tokens before they are spent: counted offline, exactly where OpenAI's tables are at hand, and estimated elsewhere."""

from __future__ import annotations

from llmprod.mechanisms.token_corrector import TokenError
from llmprod.tokens.count import TokenCount
from llmprod.tokens.counter import Countable, TokenCounter, count_tokens, count_tokens_async, default_counter

__all__ = [
    "Countable",
    "TokenCount",
    "TokenCounter",
    "TokenError",
    "count_tokens",
    "count_tokens_async",
    "default_counter",
]  # fmt: skip
