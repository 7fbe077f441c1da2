"""How many tokens a request's prompt has, by part: texts, marks around messages, tools, schema, media.

Tools are counted by OpenAI's own formula for its models (OpenAI cookbook, "How to count tokens with tiktoken") and as
JSON for the others, which put them into the prompt as they are; Anthropic adds a system prompt of 346 tokens to any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from pydantic_core import to_json

from llmprod.mechanisms._token_weights import SPREAD
from llmprod.mechanisms.token_families import Family, family_of, tokenizer_of
from llmprod.mechanisms.token_media import NOTHING, Range, audio_tokens, file_tokens, image_tokens
from llmprod.mechanisms.token_text import text_tokens
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.schema import Tool
from llmprod.types import Audio, File, Image, Message, Opaque, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["CountText", "PromptTokens", "message_tokens", "most_bytes", "prompt_tokens", "text_range"]

CountText: TypeAlias = Callable[[str], int]
"""Counts the tokens of a text exactly."""

# The marks around a message, and those that begin the answer, by the families' chat formats.
_MARKS: dict[Family, tuple[float, float]] = {
    "openai": (3.0, 3.0),
    "anthropic": (4.0, 3.0),
    "google": (5.0, 2.0),
    "mistral": (3.0, 1.0),
    "llama": (5.0, 5.0),
    "qwen": (5.0, 3.0),
    "deepseek": (2.0, 2.0),
    "other": (4.0, 3.0),
}
_A_CALL = 8.0  # the marks around a tool call or its result
_A_TOOL = 12.0  # {"type": "function", "function": …}
_ANTHROPIC_TOOLS = 346.0
_SPREAD_OF_TOOLS = (0.6, 1.5)  # vendors rewrite schemas in formats of their own
# Claude's tokenizer since version 3 is unpublished, and that of Opus 4.7 gives up to 1.35 times its forerunner's tokens
# (Anthropic's notes on migration); the weights are those of Claude 2.
_UNPUBLISHED = 1.35


class PromptTokens(NamedTuple):
    """A prompt's tokens by part, each with its bounds.

    Attributes:
        text: what messages say, tool calls and results included.
        marks: what the chat format puts around messages.
        tools: the tools' descriptions.
        schema: the output schema.
        images, audio, files: media.
    """

    text: Range = NOTHING
    marks: Range = NOTHING
    tools: Range = NOTHING
    schema: Range = NOTHING
    images: Range = NOTHING
    audio: Range = NOTHING
    files: Range = NOTHING

    @property
    def total(self) -> Range:
        """All parts together."""
        return Range(sum(part.low for part in self), sum(part.tokens for part in self), sum(part.high for part in self))


class _Found:
    """What a walk over messages collects."""

    __slots__ = ("audio", "files", "hidden", "images", "marks", "model", "texts")

    def __init__(self, model: str) -> None:
        self.model = model
        self.texts: list[str] = []
        self.hidden: list[str] = []  # thinking of earlier turns and blocks of the provider's own: it may leave them out
        self.marks = 0.0
        self.images = self.audio = self.files = NOTHING

    def message(self, message: Message, mark: float) -> None:
        self.marks += mark
        for part in message.parts:
            self.part(part)

    def part(self, part: object) -> None:
        if isinstance(part, (Text, Refusal)):
            self.texts.append(part.text)
        elif isinstance(part, Thinking):
            self.hidden.append(part.text)
        elif isinstance(part, ToolCall):
            self.texts += (part.name, part.arguments)
            self.marks += _A_CALL
        elif isinstance(part, ToolResult):
            self.marks += _A_CALL
            for item in (part.content,) if isinstance(part.content, str) else part.content:
                if isinstance(item, str):
                    self.texts.append(item)
                else:
                    self.part(item)
        elif isinstance(part, Image):
            self.images += image_tokens(part, self.model)
        elif isinstance(part, Audio):
            self.audio += audio_tokens(part, self.model)
        elif isinstance(part, File):
            self.files += file_tokens(part, self.model)
        elif isinstance(part, Opaque):
            self.hidden.append(_json(part.meta))

    def text(self, count: CountText | None) -> Range:
        told = text_range(self.texts, self.model, count)
        if self.hidden:
            hidden = text_range(self.hidden, self.model, count)
            told += Range(0.0, hidden.tokens, hidden.high)
        return told


def prompt_tokens(request: object, model: str = "", count: CountText | None = None) -> PromptTokens:
    """Count a request's prompt.

    Args:
        request: a :class:`GenerateRequest` or :class:`EmbedRequest`; anything else has no tokens that can be seen.
        model: whose rules to follow, such as ``openai:gpt-5``.
        count: counts text exactly; None for the estimate by what a text is made of.
    """
    if isinstance(request, EmbedRequest):
        return PromptTokens(text=text_range(request.inputs, model, count))
    if not isinstance(request, GenerateRequest):
        return PromptTokens()
    family = family_of(model)
    mark, end = _MARKS[family]
    found = _Found(model)
    for message in request.messages:
        found.message(message, mark)
    marks = found.marks + end
    schema = NOTHING
    if request.output is not None:
        told = text_range((_json(request.output.schema),), model, count)
        schema = Range(0.0, told.tokens, told.high * 1.5)  # an engine that masks tokens shows the model nothing of it
    return PromptTokens(
        text=found.text(count),
        marks=Range(marks * 0.6, marks, marks * 1.7),
        tools=_tools(request.tools, family, model, count) if request.tools else NOTHING,
        schema=schema,
        images=found.images,
        audio=found.audio,
        files=found.files,
    )


def message_tokens(message: Message, model: str = "", count: CountText | None = None) -> float:
    """Return about how many tokens one message adds to a prompt."""
    found = _Found(model)
    found.message(message, _MARKS[family_of(model)][0])
    media = found.images.tokens + found.audio.tokens + found.files.tokens
    return found.text(count).tokens + found.marks + media


def text_range(texts: Iterable[str], model: str, count: CountText | None) -> Range:
    """Return the tokens of texts with their bounds, which are equal where they are counted exactly."""
    if count is not None:
        exact = float(sum(map(count, texts)))
        return Range(exact, exact, exact)
    # Looked at together, so that long conversations take the time of one long text.
    text = "\n".join(texts)
    if not text:
        return NOTHING
    tokenizer = tokenizer_of(model)
    tokens = text_tokens(text, tokenizer)
    low, high = SPREAD[tokenizer]
    if tokenizer == "anthropic":
        high *= _UNPUBLISHED
    # A short text has a few tokens more or less than its share.
    return Range(max(0.0, tokens * low - 2.0), tokens, tokens * high + 3.0)


def most_bytes(request: object) -> float | None:
    """Return more tokens than the prompt can have, at the cost of adding up lengths; None where that tells nothing.

    No tokenizer makes more than one token of a byte. Media, tools and schemas have other rules.
    """
    if isinstance(request, EmbedRequest):
        return float(sum(map(_bytes, request.inputs)))
    if not isinstance(request, GenerateRequest) or request.tools or request.output is not None:
        return None
    total = 16.0
    for message in request.messages:
        total += 16.0
        for part in message.parts:
            if not isinstance(part, Text):
                return None
            total += _bytes(part.text)
    return total


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


# ---- tools -----------------------------------------------------------------------------------------------------------


def _tools(tools: Iterable[Tool], family: Family, model: str, count: CountText | None) -> Range:
    texts: list[str] = []
    marks = 0.0
    if family == "openai":
        marks = 12.0
        for tool in tools:
            texts.append(f"{tool.name}:{tool.description or ''}".rstrip("."))
            marks += 7.0 + _properties(tool.parameters, texts, 0)
    else:
        for tool in tools:
            texts.append(f"{tool.name} {tool.description or ''} {_json(tool.parameters)}")
            marks += _A_TOOL
        if family == "anthropic":
            marks += _ANTHROPIC_TOOLS
    told = text_range(texts, model, count)
    low, high = _SPREAD_OF_TOOLS
    return Range(low * (told.low + marks), told.tokens + marks, high * (told.high + marks))


_DEEP = 16


def _properties(schema: Any, texts: list[str], depth: int) -> float:
    """Add what a schema's properties say to ``texts``, and return the marks between them."""
    if not isinstance(schema, Mapping) or depth > _DEEP:
        return 0.0
    schema = cast("Mapping[str, Any]", schema)
    properties: Any = schema.get("properties")
    marks = _properties(schema.get("items"), texts, depth + 1)
    for key in ("$defs", "anyOf", "oneOf", "allOf"):
        inner: Any = schema.get(key)
        several: list[Any] = (
            list(cast("Mapping[str, Any]", inner).values()) if isinstance(inner, Mapping) else inner or []
        )
        marks += sum(_properties(one, texts, depth + 1) for one in several)
    if not isinstance(properties, Mapping) or not properties:
        return marks
    marks += 3.0
    for name, value in cast("Mapping[str, Any]", properties).items():
        told = cast("Mapping[str, Any]", value if isinstance(value, Mapping) else {})
        marks += 3.0
        texts.append(f"{name}:{told.get('type', '')}:{str(told.get('description', '')).rstrip('.')}")
        choices: Any = told.get("enum")
        if isinstance(choices, list) and choices:
            items = cast("list[object]", choices)
            marks += 3.0 * len(items) - 3.0
            texts.extend(map(str, items))
        marks += _properties(told, texts, depth + 1)
    return marks


def _json(value: object) -> str:
    try:
        return to_json(value).decode()
    except Exception:  # noqa: BLE001 - lone surrogates and what is no JSON at all
        try:
            return json.dumps(value, ensure_ascii=False, default=str)
        except Exception:  # noqa: BLE001
            return str(value)
