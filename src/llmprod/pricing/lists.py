"""Price lists: from a provider's and a model's name to the model's prices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, Protocol

from llmprod.pricing.sheet import Sheet

__all__ = ["ALIASES", "NOT_SOLD", "Found", "PriceList", "matcher", "plain_model", "undated"]

ALIASES: Mapping[str, str] = {
    "openai-responses": "openai",
    "azure-openai": "azure",
    "gemini": "google",
    "vertex": "google",
    "vertexai": "google",
    "bedrock": "aws",
    "xai": "x-ai",
    "moonshot": "moonshotai",
    "mistralai": "mistral",
}
"""Other names of the price data's providers. No guessing beyond these: ``my-openai-proxy`` may cost anything."""

NOT_SOLD = frozenset({"vllm", "vllm-server", "tgi", "trtllm", "ollama", "llamacpp", "simulated", "static"})
"""Servers of one's own, which no price data is of: nothing is loaded to find that out."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model's prices and where they are from."""

    sheet: Sheet
    source: Literal["override", "genai-prices", "snapshot"]
    version: str | None


class PriceList(Protocol):
    """Where prices are looked up."""

    def find(self, provider: str | None, model: str, url: str | None) -> Found | str:
        """Return a model's prices, or in a few words why there are none.

        Args:
            provider: its id, in lower case; None where nobody knows, so that the model's name alone must tell.
            model: the model's id.
            url: the API's address, which tells the provider where its id does not.
        """
        ...

    def renewed(self) -> bool:
        """Tell whether the data is another than when this was last asked."""
        ...


def matcher(logic: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return the function that a rule such as ``{"starts_with": "gpt-5"}`` stands for; it takes lower case."""
    ((kind, value),) = logic.items()
    if kind in ("or", "and"):
        parts = [matcher(part) for part in value]
        return (
            (lambda text: any(part(text) for part in parts))
            if kind == "or"
            else (lambda text: all(part(text) for part in parts))
        )
    if kind == "regex":
        pattern = re.compile(value)
        return lambda text: pattern.search(text) is not None
    word: str = value.lower()
    if kind == "equals":
        return lambda text: text == word
    if kind == "starts_with":
        return lambda text: text.startswith(word)
    if kind == "ends_with":
        return lambda text: text.endswith(word)
    if kind == "contains":
        return lambda text: word in text
    raise ValueError(f"unknown rule {kind}")


def plain_model(model: str) -> str:
    """The model's id without what Google's API puts before it, in lower case."""
    return model.lower().removeprefix("models/")


_COMPACT_DATE = re.compile(r"-(20\d{2})(\d{2})(\d{2})(?=-|:|$)")


def undated(model: str) -> str:
    """The model's id with a date like ``-20251211`` written ``-2025-12-11``, as gateways do not."""

    def dashed(found: re.Match[str]) -> str:
        year, month, day = found.groups()
        try:
            date(int(year), int(month), int(day))
        except ValueError:
            return found.group(0)
        return f"-{year}-{month}-{day}"

    return _COMPACT_DATE.sub(dashed, model)


def as_date(told: datetime) -> str:
    """The day of a time, in ISO form."""
    return told.date().isoformat()
