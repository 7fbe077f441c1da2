"""Usage, finish reasons and log probabilities, as OpenAI's two APIs and their imitators report them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, cast

from llmprod.events import TokenLogprob
from llmprod.providers._json import as_dict, as_list
from llmprod.usage import FinishReason, Usage, count_of, special_tier

__all__ = ["FINISH_REASONS", "logprobs_of", "usage_of"]

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length", "model_length": "length",
    "tool_calls": "tool_calls", "tool_call": "tool_calls", "tool_use": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "content_filtered": "content_filter", "safety": "content_filter",
    "refusal": "refusal",
    "error": "error", "abort": "error", "cancelled": "error", "insufficient_system_resource": "error",
}  # fmt: skip
"""Chat's words for why an answer ended, in lower case. Where it is ``error``, the answer was cut and the decoder
raises: what stands there is no answer, however much of one it looks like."""

_PLAIN = {"prompt_tokens", "completion_tokens", "total_tokens"}
_PLAIN_AT_MOST = 2**31
_CHARGED_AT_MOST = 1_000_000  # US dollars for one call: what is above is no charge

_PAID_TOOLS = {
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
}
"""Responses API: items that are paid for beside their tokens. Searches of the web are counted in ``tool_usage``."""


def usage_of(raw: Any, tool_usage: Any = None, tier: Any = None, items: Iterable[Any] = ()) -> Usage | None:
    """Return usage in disjoint buckets, or None where ``raw`` tells none.

    The details that OpenAI counts *inside* the prompt or the answer are taken out of them, never below zero, so the
    buckets' sum is ``prompt + completion``. Where a server counts reasoning beside the completion, or the cache's
    tokens beside the prompt (its total says so, or they exceed it), they are added. What the total holds beyond all
    that is told is thinking: gateways to Gemini leave it out of the completion. It is marked as an estimate.

    Args:
        raw: ``usage`` of Chat Completions, Responses or embeddings.
        tool_usage: the Responses API's count of its own tools' uses.
        tier: ``service_tier`` of the answer.
        items: types of the items in the answer's ``output``, among which are uses of tools that cost money.
    """
    told = as_dict(raw)
    if (
        tool_usage is None
        and tier is None
        and items == ()
        and {name for name, value in told.items() if value is not None} == _PLAIN
    ):
        prompt, completion = told["prompt_tokens"], told["completion_tokens"]  # as vLLM tells it with each token
        if (
            type(prompt) is int
            and type(completion) is int
            and prompt >= 0
            and completion >= 0
            and told["total_tokens"] == prompt + completion < _PLAIN_AT_MOST
        ):
            return Usage(input=prompt, output=completion)
    prompt = _count(told, "prompt_tokens", "input_tokens")
    completion = _count(told, "completion_tokens", "output_tokens")
    if prompt is None and completion is None:
        return None
    total = _count(told, "total_tokens") or 0
    if prompt is None or completion is None:  # the total tells the other, if anything does
        prompt = max(0, total - (completion or 0)) if prompt is None else prompt
        completion = max(0, total - prompt) if completion is None else completion
    of_prompt = as_dict(told.get("prompt_tokens_details") or told.get("input_tokens_details"))
    of_completion = as_dict(told.get("completion_tokens_details") or told.get("output_tokens_details"))
    searches = _count(as_dict(as_dict(tool_usage).get("web_search")), "num_requests")
    server_tools = {"web_search": searches} if searches else {}
    for item in items:
        tool = _PAID_TOOLS.get(item) if isinstance(item, str) else None
        if tool is not None:
            server_tools[tool] = server_tools.get(tool, 0) + 1

    lifetimes = as_dict(of_prompt.get("cache_write_tokens_details"))
    cached = _count(of_prompt, "cached_tokens")
    if cached is None:
        cached = _count(told, "prompt_cache_hit_tokens", "cached_tokens")  # DeepSeek, Moonshot
    written = _count(of_prompt, "cache_write_tokens") or 0
    half_hour = min(_count(lifetimes, "ttl_30m_tokens") or 0, written)
    half_day = min(_count(lifetimes, "ttl_12h_tokens") or 0, written - half_hour)
    cached = cached or 0
    reasoning = _count(of_completion, "reasoning_tokens") or 0
    beyond = total - prompt - completion
    kept = cached + written
    if kept > prompt or (kept and beyond != reasoning and beyond in (kept, kept + reasoning)):
        prompt += kept
        beyond -= kept
    if reasoning and (reasoning > completion or beyond == reasoning):
        completion += reasoning
    untold = 0 if reasoning else max(0, beyond)
    reasoning += untold
    completion += untold
    buckets = _split(
        prompt,
        cached,
        half_hour,
        half_day,
        written - half_hour - half_day,
        _count(of_prompt, "audio_tokens") or 0,
        _count(of_prompt, "image_tokens") or 0,
    )
    answer = _split(
        completion,
        reasoning,
        _count(of_completion, "audio_tokens") or 0,
        _count(of_completion, "image_tokens") or 0,
    )
    return Usage(
        input=buckets[-1],
        cache_read=buckets[0],
        cache_write_30m=buckets[1],
        cache_write_12h=buckets[2],
        cache_write=buckets[3],
        input_audio=buckets[4],
        input_image=buckets[5],
        output=answer[-1],
        reasoning=answer[0],
        output_audio=answer[1],
        output_image=answer[2],
        server_tools=server_tools,
        estimated=untold > 0,
        tier=special_tier(tier),
        cost=_charged(told),
    )


def _split(total: int, *wanted: int) -> list[int]:
    """Take each of ``wanted`` out of ``total`` as far as it lasts; what remains comes last."""
    shares: list[int] = []
    for share in wanted:
        share = min(share, total)
        shares.append(share)
        total -= share
    return [*shares, total]


def _charged(told: dict[str, Any]) -> Decimal | None:
    """What OpenRouter says that was taken, in US dollars: by itself, and by the vendor where the key is one's own.

    Perplexity tells the same, fee by request included, as ``{"total_cost": …}``.
    """
    cost = told.get("cost")
    charged = _dollars(cast("dict[str, Any]", cost).get("total_cost") if isinstance(cost, dict) else cost)
    if charged is None or told.get("is_byok") is not True:
        return charged
    upstream = _dollars(as_dict(told.get("cost_details")).get("upstream_inference_cost"))
    return None if upstream is None else charged + upstream


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _CHARGED_AT_MOST:
        return None
    return Decimal(str(value))


def _count(told: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = count_of(told.get(name))
        if value is not None:
            return value
    return None


def logprobs_of(content: Any) -> tuple[TokenLogprob, ...]:
    """Return a list of token log probabilities as both APIs write it."""
    return tuple(
        TokenLogprob(
            item["token"],
            item["logprob"],
            tuple((other["token"], other["logprob"]) for other in as_list(item.get("top_logprobs"))),
        )
        for item in as_list(content)
    )
