"""What a stream is made of. A whole answer is the same events at once, so one codec and one accumulator serve both.

Events are plain slotted objects (no validation: they are made by the library, many a call). Treat them as frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from llmprod.types import Part, ToolCall
from llmprod.usage import FinishReason, Usage

__all__ = [
    "Event", "Finish", "Item", "PartDone", "RefusalDelta", "Reset", "Seam", "Start", "TextDelta", "ThinkingDelta",
    "TokenLogprob", "ToolCallDelta", "ToolCallDone", "UsageUpdate",
]  # fmt: skip


@dataclass(slots=True)
class TokenLogprob:
    """A token of the answer with its log probability.

    Attributes:
        token: the token's text.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens at this place, as ``(token, logprob)``, if asked for.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(slots=True)
class Start:
    """The provider has begun: the exact model served, and the provider's id of the answer. Not content."""

    model: str | None = None
    response_id: str | None = None


@dataclass(slots=True)
class TextDelta:
    """More text.

    Attributes:
        text: the new text.
        part: number of the part it belongs to, counted over the answer.
        logprobs: of the tokens in it, if asked for.
    """

    text: str
    part: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class ThinkingDelta:
    """More of the reasoning, where the provider shows it."""

    text: str
    part: int = 0


@dataclass(slots=True)
class ToolCallDelta:
    """A tool call is being written: its id and name come first, then pieces of the arguments' JSON."""

    part: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ToolCallDone:
    """A tool call is complete."""

    call: ToolCall
    part: int


@dataclass(slots=True)
class RefusalDelta:
    """More of a refusal."""

    text: str
    part: int = 0


@dataclass(slots=True)
class PartDone:
    """A part as a whole, replacing what its deltas built: thinking with its signature, media, provider blocks."""

    value: Part
    part: int


@dataclass(slots=True)
class UsageUpdate:
    """Tokens used so far; a later update replaces an earlier one."""

    usage: Usage


@dataclass(slots=True)
class Finish:
    """The answer is complete. Without this event no answer counts as one."""

    reason: FinishReason
    raw: str | None = None


@dataclass(slots=True)
class Seam:
    """The answer was interrupted and is continued from here; what came before stands.

    Attributes:
        target: who continues it.
        reason: class of the error that interrupted it.
        dropped: numbers of the parts that do not stand: a tool call that broke off.
    """

    target: str
    reason: str
    dropped: tuple[int, ...] = ()


@dataclass(slots=True)
class Reset:
    """The answer starts over: forget the text before."""

    target: str
    reason: str


@dataclass(slots=True)
class Item:
    """One item of a decorated function's stream, as the function made it; the events read from it come before."""

    value: Any


Event: TypeAlias = (
    Start
    | TextDelta
    | ThinkingDelta
    | ToolCallDelta
    | ToolCallDone
    | RefusalDelta
    | PartDone
    | UsageUpdate
    | Finish
    | Seam
    | Reset
    | Item
)

CONTENT = frozenset({TextDelta, ThinkingDelta, ToolCallDelta, ToolCallDone, RefusalDelta, PartDone, Finish})
"""Kinds that commit a stream: once one of them is handed out, the caller has seen the answer."""
