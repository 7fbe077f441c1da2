"""Tokens before they are spent: counted offline, exactly where OpenAI's tables are at hand, and estimated elsewhere."""

from __future__ import annotations

from llmprod.mechanisms.token_corrector import TokenError
from llmprod.tokens.count import TokenCount
from llmprod.tokens.estimator import Countable, TokenEstimator, count_tokens, count_tokens_async, default_estimator

__all__ = [
    "Countable", "TokenCount", "TokenError", "TokenEstimator", "count_tokens", "count_tokens_async",
    "default_estimator",
]  # fmt: skip
