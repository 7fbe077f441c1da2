"""Gemini's token counts in disjoint buckets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmprod.providers._json import as_dict, as_list
from llmprod.usage import Usage, count_of, special_tier

__all__ = ["searches_of", "usage_of"]


def searches_of(queries: Any, model: Any) -> int:
    """Return how many searches of the web are paid for, which Gemini's usage does not count.

    Up to Gemini 2.5 an answer that is grounded in a search is, from Gemini 3 on each query that differs.
    """
    told = {query for query in as_list(queries) if isinstance(query, str) and query}
    by_answer = isinstance(model, str) and model.removeprefix("models/").startswith(("gemini-1", "gemini-2"))
    return min(len(told), 1) if by_answer else len(told)


def usage_of(counts: Mapping[str, Any], searches: int = 0) -> Usage:
    """Return usage.

    ``promptTokenCount`` holds what the cache gave, ``candidatesTokenCount`` leaves out the thinking, and what Gemini's
    own tools added to the prompt is apart. Video and documents count as plain input: they have no price of their own.
    The details never make more of a prompt or an answer than its count.
    """
    cached = _int(counts, "cachedContentTokenCount")
    fresh = max(0, _int(counts, "promptTokenCount") - cached)
    answer = _int(counts, "candidatesTokenCount")
    prompt = _kinds(counts, "promptTokensDetails")
    kept = _kinds(counts, "cacheTokensDetails")
    kept_audio = min(kept.get("AUDIO", 0), cached)
    kept_image = min(kept.get("IMAGE", 0), cached - kept_audio)
    made = _kinds(counts, "candidatesTokensDetails")
    heard = min(fresh, max(0, prompt.get("AUDIO", 0) - kept.get("AUDIO", 0)))
    seen = min(fresh - heard, max(0, prompt.get("IMAGE", 0) - kept.get("IMAGE", 0)))
    spoken = min(answer, made.get("AUDIO", 0))
    drawn = min(answer - spoken, made.get("IMAGE", 0))
    return Usage(
        input=fresh - heard - seen,
        cache_read=cached - kept_audio - kept_image,
        cache_read_audio=kept_audio,
        cache_read_image=kept_image,
        input_audio=heard,
        input_image=seen,
        tool_prompt=_int(counts, "toolUsePromptTokenCount"),
        output=answer - spoken - drawn,
        reasoning=_int(counts, "thoughtsTokenCount"),
        output_audio=spoken,
        output_image=drawn,
        server_tools={"web_search": searches} if searches else {},
        tier=special_tier(counts.get("serviceTier")),
    )


def _int(counts: Mapping[str, Any], name: str) -> int:
    return count_of(counts.get(name)) or 0


def _kinds(counts: Mapping[str, Any], name: str) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for item in map(as_dict, as_list(counts.get(name))):
        kind = str(item.get("modality"))
        kinds[kind] = kinds.get(kind, 0) + _int(item, "tokenCount")
    return kinds
