"""What the reader of a stream has seen of an answer, as far as going on after a break depends on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from pydantic_core import from_json

from llmprod.events import (
    Event,
    PartDone,
    RefusalDelta,
    Reset,
    Seam,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallDone,
)
from llmprod.types import Text, ToolCall

__all__ = ["Shown", "ShownPart", "characters"]

Kind: TypeAlias = Literal["text", "tool", "other"]


def characters(event: Event) -> int:
    """How many characters of the answer, of any kind, an event brings."""
    kind = type(event)
    if kind is TextDelta or kind is ThinkingDelta or kind is RefusalDelta:
        return len(event.text)  # type: ignore[union-attr]
    return len(event.arguments) if isinstance(event, ToolCallDelta) else 0


class ShownPart:
    """A part of the answer, perhaps unfinished.

    Attributes:
        number: its number among the answer's parts.
        kind: ``text``, ``tool`` (a tool call), or ``other``: reasoning, a refusal, media.
        pieces: of its text or of its arguments.
        closed: it was told to be complete.
        id, name: of a tool call.
    """

    __slots__ = ("closed", "id", "kind", "name", "number", "pieces")

    def __init__(self, number: int, kind: Kind) -> None:
        self.number: int = number
        self.kind: Kind = kind
        self.pieces: list[str] = []
        self.closed: bool = False
        self.id: str | None = None
        self.name: str = ""

    @property
    def text(self) -> str:
        """Its text or arguments so far."""
        return "".join(self.pieces)

    @property
    def complete(self) -> bool:
        """A tool call that is whole: told so, or with a name and a JSON object, which ends itself."""
        if self.closed:
            return True
        try:
            return bool(self.name) and isinstance(from_json(self.text), dict)
        except ValueError:
            return False


class Shown:
    """The answer so far. Feed every event that is handed out to :meth:`add`."""

    __slots__ = ("deltas", "next_number", "parts", "pieces")

    def __init__(self) -> None:
        self.parts: dict[int, ShownPart] = {}
        self.next_number: int = 0
        """A number that no part has had, one that was dropped included."""
        self.deltas: int = 0
        """Pieces of text since the last start, each of which is a token at least."""
        self.pieces: int = 0
        """Pieces of any kind in all."""

    def add(self, event: Event) -> None:
        """Take an event."""
        kind = type(event)
        if kind is TextDelta:
            part = self.parts.get(event.part) or self._new(event.part, "text")  # type: ignore[union-attr]
            part.pieces.append(event.text)  # type: ignore[union-attr]
            self.deltas += 1
            self.pieces += 1
        elif isinstance(event, ToolCallDelta):
            part = self.parts.get(event.part) or self._new(event.part, "tool")
            part.id = event.id or part.id
            part.name = event.name or part.name
            part.pieces.append(event.arguments)
            self.pieces += 1
        elif isinstance(event, ToolCallDone):
            part = self._new(event.part, "tool")
            part.id, part.name, part.closed = event.call.id, event.call.name, True
            part.pieces.append(event.call.arguments)
        elif isinstance(event, (ThinkingDelta, RefusalDelta)):
            self.pieces += 1
            if event.part not in self.parts:
                self._new(event.part, "other")
        elif isinstance(event, PartDone):
            self._whole(event)
        elif isinstance(event, Seam):
            for number in event.dropped:
                self.parts.pop(number, None)
        elif isinstance(event, Reset):
            self.parts.clear()
            self.deltas = self.next_number = 0

    def _new(self, number: int, kind: Kind) -> ShownPart:
        part = self.parts[number] = ShownPart(number, kind)
        if number >= self.next_number:
            self.next_number = number + 1
        return part

    def _whole(self, event: PartDone) -> None:
        value = event.value
        part = self._new(event.part, "text" if isinstance(value, Text) else "other")
        part.closed = True
        if isinstance(value, Text):
            part.pieces.append(value.text)
        elif isinstance(value, ToolCall):
            part.kind, part.id, part.name = "tool", value.id, value.name
            part.pieces.append(value.arguments)

    def without(self, numbers: Iterable[int]) -> Shown:
        """Return the same without some parts."""
        left = Shown()
        gone = set(numbers)
        left.parts = {number: part for number, part in self.parts.items() if number not in gone}
        left.deltas, left.next_number = self.deltas, self.next_number
        return left

    @property
    def text(self) -> str:
        """All text, in the order of its parts."""
        return "".join(self.parts[number].text for number in sorted(self.parts) if self.parts[number].kind == "text")

    @property
    def only_text(self) -> bool:
        """There is nothing but text."""
        return all(part.kind == "text" for part in self.parts.values())

    @property
    def tool_calls(self) -> list[ShownPart]:
        """The tool calls, in order."""
        return [self.parts[number] for number in sorted(self.parts) if self.parts[number].kind == "tool"]

    @property
    def last(self) -> ShownPart | None:
        """The last part."""
        return self.parts[max(self.parts)] if self.parts else None
