"""Joins the events of a continuation to an answer: numbers, white space, and text that is said twice.

* Parts get numbers of their own; text that goes on with the same text stays in its part.
* White space that was shown but not sent (no target takes it at the end of a prefix) is not shown again.
* A model that repeats the whole prefix before it goes on has the repetition dropped. Only that: the exact prefix, at
  the exact start, of at least 16 characters, and not a text that repeats itself anyway (a row of a table, a refrain of
  one line), where a repetition is as likely what the model meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmprod.events import (
    Event,
    Finish,
    PartDone,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallDone,
)
from llmprod.mechanisms.shown import Shown
from llmprod.types import Text

__all__ = ["Splice"]

_ECHO_AT_LEAST = 16
"""Characters from which a repetition is one: "Ha ha" and "No, no" are ways to begin."""


class Splice:
    """One continuation.

    Args:
        shown: the answer so far.
        prefix: the text that the target was asked to continue.
        space: white space that was shown after it.
    """

    def __init__(self, shown: Shown, prefix: str, space: str) -> None:
        self._numbers: dict[int, int] = {}
        self._next = shown.next_number
        last = shown.last
        self._join = last.number if last is not None and last.kind == "text" and not last.closed else None
        self._joined: list[str] = [last.text] if last is not None and self._join is not None else []
        self._joining: int | None = None
        self._space = space
        self._echoes = _echoes(prefix)
        self._matched = 0
        self._held: list[TextDelta] = []
        self._holding = bool(self._echoes or space)
        self._skip = 0

    def feed(self, event: Event) -> Sequence[Event]:
        """Return what ``event`` adds to the answer."""
        if isinstance(event, TextDelta):
            number = self._text_number(event.part)
            moved = event if number == event.part else replace(event, part=number)
            if self._holding:
                return self._hold(moved)
            return (self._say(moved),)
        if isinstance(event, Finish):
            return (*self._release(event), event)
        if isinstance(event, PartDone):
            held = self._release()
            number = self._number(event.part)
            value = event.value
            if number == self._join and isinstance(value, Text):
                value = replace(value, text="".join(self._joined))  # it stands for the whole part, not its second half
            return (*held, PartDone(value, number))
        if isinstance(event, (ToolCallDelta, ToolCallDone, ThinkingDelta, RefusalDelta)):
            return (*self._release(), replace(event, part=self._number(event.part)))
        return (event,)

    def _number(self, part: int) -> int:
        number = self._numbers.get(part)
        if number is None:
            number = self._numbers[part] = self._next
            self._next += 1
        return number

    def _text_number(self, part: int) -> int:
        if not self._numbers and self._join is not None:
            self._numbers[part] = self._join
        return self._number(part)

    def _say(self, event: TextDelta) -> TextDelta:
        if event.part == self._join:
            self._joined.append(event.text)
        return event

    # ---- the beginning ----------------------------------------------------------------------------------------------

    def _hold(self, event: TextDelta) -> Sequence[Event]:
        """Hold text back until it is clear what of it has been shown."""
        self._held.append(event)
        if self._echoes:
            self._match(event.text)
            if self._echoes:
                return ()
        text = self._text()[self._skip :]
        if self._space and not text.strip():
            return ()
        return self._settle(text)

    def _match(self, text: str) -> None:
        for echo in self._echoes:
            left = len(echo) - self._matched
            if left <= len(text) and text.startswith(echo[self._matched :]):
                self._skip = len(echo)
                self._echoes = ()
                return
        end = self._matched + len(text)
        self._echoes = tuple(echo for echo in self._echoes if echo[self._matched : end] == text)
        self._matched = end

    def _text(self) -> str:
        return "".join(event.text for event in self._held)

    def _release(self, finish: Finish | None = None) -> Sequence[Event]:
        """Something else comes: what is held has to be told now."""
        if not self._holding:
            return ()
        if self._echoes and self._matched >= _ECHO_AT_LEAST and finish is not None and finish.reason == "length":
            self._skip = self._matched  # it was saying everything again when its limit came
        return self._settle(self._text()[self._skip :])

    def _settle(self, text: str) -> Sequence[Event]:
        self._holding = False
        drop = self._skip + _known(self._space, text[: len(text) - len(text.lstrip())])
        events: list[Event] = []
        for event in self._held:
            size = len(event.text)
            if drop < size or not (drop or size):
                events.append(self._say(_less(event, drop) if drop else event))
            drop = max(0, drop - size)
        self._held.clear()
        return events


def _echoes(prefix: str) -> tuple[str, ...]:
    found = {text for text in (prefix, prefix.lstrip()) if len(text) >= _ECHO_AT_LEAST and not _repeats(text)}
    return tuple(sorted(found, key=len))


def _repeats(text: str) -> bool:
    """True for a text that is made of one piece, twice or more often, and a rest."""
    half = len(text) // 2
    head = text[: min(half, 64)]
    period = text.find(head, 1)
    while 0 < period <= half:
        if text.startswith(text[period:]):
            return True
        period = text.find(head, period + 1)
    return False


def _known(shown: str, space: str) -> int:
    """How much of a continuation's leading ``space`` has been shown already, as ``shown``.

    What was shown stands, so the continuation's own space adds only what goes on from it, or a break of lines.
    """
    same = 0
    while same < len(shown) and same < len(space) and shown[same] == space[same]:
        same += 1
    if not shown or same == len(shown) or "\n" in space[same:]:
        return same
    return len(space)


def _less(event: TextDelta, drop: int) -> TextDelta:
    """The event without its first ``drop`` characters, and without their log probabilities."""
    kept: list[TokenLogprob] = []
    if sum(len(item.token) for item in event.logprobs) == len(event.text):
        place = 0
        for item in event.logprobs:
            start, place = place, place + len(item.token)
            if place > drop:
                kept.append(replace(item, token=item.token[max(0, drop - start) :]))
    return replace(event, text=event.text[drop:], logprobs=tuple(kept))
