"""From model strings such as ``openai:gpt-5`` or ``vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1`` to providers."""

from __future__ import annotations

from typing import Any

from llmprod.errors import InvalidArgument
from llmprod.provider import Provider
from llmprod.providers._http import HTTPOptions
from llmprod.providers._http_provider import Key

__all__ = ["PREFIXES", "from_string"]

_COMPATIBLE = {
    "vllm-server": "vllm",
    "tgi": "tgi",
    "trtllm": "trtllm",
    "ollama": "ollama",
    "llamacpp": "llamacpp",
    "openrouter": "openrouter",
    "azure": "azure",
    "openai-compatible": "generic",
}

PREFIXES = ("openai", "openai-responses", "anthropic", "google", *_COMPATIBLE, "vllm", "simulated", "static")
"""What may stand before the colon of a model string."""


_ELSEWHERE = {
    "gemini": "google",
    "claude": "anthropic",
    "hosted_vllm": "vllm-server",
    "azure_openai": "azure",
    "llama.cpp": "llamacpp",
}
"""What other libraries call what has a prefix here."""

_MAKERS = {"gpt-": "openai", "claude-": "anthropic", "gemini-": "google"}


def _meant(model: str) -> str:
    """What is allowed, with the string that was probably meant: ``openai/gpt-5`` is how LiteLLM says it."""
    before, mark, rest = model.partition(":") if ":" in model.partition("/")[0] else model.partition("/")
    prefix = _ELSEWHERE.get(before.lower(), before.lower())
    for start, maker in _MAKERS.items():
        if not mark and model.lower().startswith(start):
            prefix, mark, rest = maker, ":", model
    if mark and rest and prefix in PREFIXES:
        return f"{f'{prefix}:{rest}'[:60]!r}, as prefix:model, with a prefix of "
    return "prefix:model such as 'openai:gpt-5', with a prefix of "


def from_string(
    model: str, *, api_key: Key | None = None, base_url: str | None = None, http: HTTPOptions | None = None
) -> Provider:
    """Return the provider that a model string names.

    Args:
        model: ``prefix:model`` or ``prefix:model@base-url``.
        api_key: instead of the prefix's environment variable.
        base_url: instead of ``@base-url``.
        http: how to reach the server.

    Raises:
        InvalidArgument: unknown prefix or no model.
        MissingKey: the API needs a key and none is there.
    """
    prefix, colon, rest = model.partition(":")
    if not colon or prefix not in PREFIXES or not rest:
        raise InvalidArgument("model", repr(model)[:60], _meant(model) + ", ".join(PREFIXES))
    if prefix in ("simulated", "static"):
        from llmprod.providers.simulated import Simulated
        from llmprod.providers.static import Static

        return Simulated(rest) if prefix == "simulated" else Static(rest)
    if prefix == "vllm":
        from llmprod.providers.vllm import VLLM

        return VLLM(rest)
    name, at, address = rest.partition("@http")
    options: dict[str, Any] = {"api_key": api_key, "http": http, "base_url": f"http{address}" if at else base_url}
    if prefix in ("openai", "openai-responses"):
        from llmprod.providers.openai import OpenAI

        return OpenAI(name, api="responses" if prefix == "openai-responses" else "chat", **options)
    if prefix == "anthropic":
        from llmprod.providers.anthropic import Anthropic

        return Anthropic(name, **options)
    if prefix == "google":
        from llmprod.providers.google import Google

        return Google(name, **options)
    from llmprod.providers.openai_compatible import OpenAICompatible

    return OpenAICompatible(name, profile=_COMPATIBLE[prefix], **options)
