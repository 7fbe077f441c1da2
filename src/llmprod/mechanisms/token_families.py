"""Which tokenizer a model has, as far as its name tells."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias, cast

__all__ = ["Family", "Tokenizer", "encoding_of", "family_of", "tokenizer_of"]

Family: TypeAlias = Literal["openai", "anthropic", "google", "mistral", "llama", "qwen", "deepseek", "other"]
"""Whose rules hold for messages, tools, images and sound."""
Tokenizer: TypeAlias = Literal[
    "o200k", "cl100k", "anthropic", "google", "mistral", "llama", "qwen", "deepseek", "other"
]
"""Whose table of words."""

# By the model's name first: "vllm:meta-llama/Llama-3.1-8B" and "groq:llama-3.1-8b-instant" are the same tokenizer.
_BY_MODEL: tuple[tuple[Family, re.Pattern[str]], ...] = tuple(
    (cast("Family", family), re.compile(pattern))
    for family, pattern in (
        ("qwen", r"qwen|qwq|qvq"),  # before DeepSeek: DeepSeek-R1-Distill-Qwen has Qwen's
        ("llama", r"llama"),
        ("deepseek", r"deepseek"),
        ("mistral", r"mistral|mixtral|ministral|magistral|codestral|devstral|pixtral|voxtral"),
        ("anthropic", r"claude"),
        ("google", r"gemini|gemma|palm-"),
        (
            "openai",
            r"gpt|(?:^|[/:])(?:o\d|chatgpt|codex|davinci|babbage|computer-use|text-embedding-(?:3|ada))(?:$|[-.])",
        ),
    )
)
_BY_PROVIDER: dict[str, Family] = {
    "openai": "openai", "azure": "openai", "anthropic": "anthropic", "google": "google", "gemini": "google",
    "vertex": "google", "mistral": "mistral", "deepseek": "deepseek", "dashscope": "qwen",
}  # fmt: skip
_CL100K = re.compile(r"gpt-?4(?![o.]|\d)|gpt-?3\.?5|text-embedding-(?:3|ada)|davinci-00|babbage-00")


@lru_cache(1024)
def family_of(model: str) -> Family:
    """Return the family of ``model``, such as ``openai:gpt-5`` or ``meta-llama/Llama-3.1-8B``; ``other`` if unknown."""
    name = model.lower()
    for family, pattern in _BY_MODEL:
        if pattern.search(name):
            return family
    return _BY_PROVIDER.get(re.split(r"[:/]", name, maxsplit=1)[0], "other")


@lru_cache(1024)
def encoding_of(model: str) -> str | None:
    """Return the name of the OpenAI encoding that counts ``model`` exactly, or None where none does.

    Models of OpenAI that this release does not know are taken for ``o200k_base``, as all since GPT-4o are.
    """
    if family_of(model) != "openai":
        return None
    return "cl100k_base" if _CL100K.search(model.lower()) else "o200k_base"


@lru_cache(1024)
def tokenizer_of(model: str) -> Tokenizer:
    """Return whose weights an estimate for ``model`` takes."""
    family = family_of(model)
    if family == "openai":
        return "cl100k" if encoding_of(model) == "cl100k_base" else "o200k"
    return family
