"""Gemini's token counts in disjoint buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmprod.usage import Usage, special_tier

__all__ = ["usage_of"]


def usage_of(counts: Mapping[str, Any]) -> Usage:
    """Return usage.

    ``promptTokenCount`` holds what the cache gave, ``candidatesTokenCount`` leaves out the thinking, and what Gemini's
    own tools added to the prompt is apart. Video and documents count as plain input: they have no price of their own.
    """
    cached = _int(counts, "cachedContentTokenCount")
    prompt = _kinds(counts, "promptTokensDetails")
    kept = _kinds(counts, "cacheTokensDetails")
    kept_audio = min(kept.get("AUDIO", 0), cached)
    kept_image = min(kept.get("IMAGE", 0), cached - kept_audio)
    made = _kinds(counts, "candidatesTokensDetails")
    heard = max(0, prompt.get("AUDIO", 0) - kept.get("AUDIO", 0))
    seen = max(0, prompt.get("IMAGE", 0) - kept.get("IMAGE", 0))
    spoken, drawn = made.get("AUDIO", 0), made.get("IMAGE", 0)
    return Usage(
        input=max(0, _int(counts, "promptTokenCount") - cached - heard - seen),
        cache_read=cached - kept_audio - kept_image,
        cache_read_audio=kept_audio,
        cache_read_image=kept_image,
        input_audio=heard,
        input_image=seen,
        tool_prompt=_int(counts, "toolUsePromptTokenCount"),
        output=max(0, _int(counts, "candidatesTokenCount") - spoken - drawn),
        reasoning=_int(counts, "thoughtsTokenCount"),
        output_audio=spoken,
        output_image=drawn,
        tier=special_tier(counts.get("serviceTier")),
    )


def _int(counts: Mapping[str, Any], name: str) -> int:
    return int(counts.get(name) or 0)


def _kinds(counts: Mapping[str, Any], name: str) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for item in counts.get(name) or ():
        kind = str(item.get("modality"))
        kinds[kind] = kinds.get(kind, 0) + _int(item, "tokenCount")
    return kinds
