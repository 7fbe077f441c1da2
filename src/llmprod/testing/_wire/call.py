"""What an API module needs to know to write an answer."""

from __future__ import annotations

import json
from typing import NamedTuple, TypeAlias

from ..behaviour import Answer, Quirks, TokenCounts
from .routes import Api, Family

JsonObject: TypeAlias = dict[str, object]

CREATED = 1_750_000_000
"""All answers say that they were made then, so that the same answer is the same bytes."""


class Call(NamedTuple):
    """A request for an answer, reduced to what changes the form of the answer."""

    api: Api
    family: Family
    model: str
    stream: bool
    include_usage: bool = False


class Reply(NamedTuple):
    """An answer about to be written for a call."""

    answer: Answer
    quirks: Quirks
    call: Call

    @property
    def model(self) -> str:
        """The model id that the answer names."""
        return self.answer.model or self.call.model

    def usage(self, events: int | None = None) -> tuple[TokenCounts, int] | None:
        """The usage to report and its output tokens, or None; `events` counts those so far."""
        counts = self.answer.usage
        if counts is None:
            return None
        if events is not None:
            return counts, events
        if counts.output is not None:
            return counts, counts.output
        pieces = len(self.answer.text_pieces) + len(self.answer.reasoning_pieces)
        return counts, pieces + len(self.answer.tool_calls)


def compact(value: object) -> str:
    """JSON without white space, non-ASCII as it is."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def argument_pieces(text: str, size: int = 8) -> list[str]:
    """Tool arguments as the pieces they are streamed in."""
    return [text[at : at + size] for at in range(0, len(text), size)]
