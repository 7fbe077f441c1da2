"""What the providers' prompt caches accept and cost, as data.

Sources: Anthropic's and OpenAI's guides to prompt caching and the types of their SDKs (anthropic 2.14, openai 3.57),
Google's guide to context caching, all of autumn 2026. Prices are ratios to a plain input token, for choices between
lifetimes; money is told by :class:`llmprod.CachePrices`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["CacheRules", "CacheStyle", "rules_for"]

CacheStyle = Literal["anthropic", "openai", "openai-breakpoints", "key", "google", "automatic", "none"]
"""How a provider is told: by marks in the prompt, by a key, by a resource made beforehand, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """One model's prompt cache.

    Attributes:
        style: how it is told.
        minimum: prompts or prefixes of fewer tokens are not cached.
        lifetime: seconds that an entry lives after its last use; the provider may keep it for longer.
        write: price of a token that is written, by that of a plain one.
        read: price of a token that is read, likewise.
    """

    style: CacheStyle
    minimum: int = 1024
    lifetime: float = 300.0
    write: float = 1.0
    read: float = 0.1


_CLAUDE = re.compile(r"claude-(?:(opus|sonnet|haiku|fable|mythos)-)?(\d+)?(?:[-.](\d{1,2})(?!\d))?")
_GPT = re.compile(r"gpt-(\d+)(?:\.(\d+))?")
_GEMINI = re.compile(r"gemini-(\d+)(?:\.(\d+))?")


def rules_for(style: str, model: str) -> CacheRules:
    """Return the rules of a provider's model.

    Args:
        style: the provider's way, as ``provider.prompt_cache`` tells it: ``anthropic``, ``openai``, ``key``,
            ``google``, ``automatic`` or ``none``.
        model: the model's id; platform prefixes and dates don't matter.
    """
    if style == "anthropic":
        return CacheRules(style="anthropic", minimum=_claude_minimum(model), write=1.25)
    if style == "openai":
        found = _GPT.search(model)
        if found is not None and (int(found[1]), int(found[2] or 0)) >= (5, 6):
            return CacheRules(style="openai-breakpoints", lifetime=1800.0, write=1.25)
        return CacheRules(style="openai")
    if style == "google":
        return CacheRules(style="google", minimum=_gemini_minimum(model))
    if style == "key":
        return CacheRules(style="key")
    if style == "automatic":
        return CacheRules(style="automatic", minimum=0, lifetime=600.0, read=0.0)
    return CacheRules(style="none")


def _claude_minimum(model: str) -> int:
    found = _CLAUDE.search(model)
    family, version = (found[1], (int(found[2] or 0), int(found[3] or 0))) if found is not None else (None, (0, 0))
    if family == "haiku":
        return 1024 if version >= (5, 0) else 4096 if version >= (4, 5) else 2048
    if family == "opus":
        if version >= (5, 0):
            return 512
        return {(4, 7): 2048, (4, 6): 4096, (4, 5): 4096}.get(version, 1024)
    return 512 if family in ("fable", "mythos") else 1024


def _gemini_minimum(model: str) -> int:
    """Google's table has changed three times in a year; the larger of its values where they differ."""
    found = _GEMINI.search(model)
    version = 0.0 if found is None else int(found[1]) + int(found[2] or 0) / 100
    if version > 3 or "pro" in model:
        return 4096
    return 1024 if version == 3 else 2048
