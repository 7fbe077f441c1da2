"""A stored answer given again, whole or as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import cast

from llmprod.context import Context
from llmprod.events import Event, RefusalDelta, TextDelta, ThinkingDelta, ToolCallDelta
from llmprod.request import Request
from llmprod.response import Cached, Response
from llmprod.wrappers._cache_entry import Entry

__all__ = ["replay"]

_FREE = Decimal(0)


def replay(entry: Entry, request: Request, context: Context, cached: Cached, *, piece: int) -> Response:
    """Answer ``request`` with ``entry``; as a stream in pieces of at most ``piece`` characters.

    Raises:
        CallError: a refusal was stored.
    """
    if entry.error is not None:
        raise entry.error
    cached.usage = entry.usage
    response = Response(
        provider=entry.provider,
        context=context,
        request=request,
        model=entry.model,
        source=_Replay(entry.events, piece) if request.stream else None,
        events=() if request.stream else entry.events,
        request_id=entry.request_id,
        dropped=entry.dropped,
        embeddings=entry.embeddings,
    )
    response.cached = cached
    response.cost = _FREE
    return response


class _Replay:
    """A stored answer as a stream; all of it is there at once."""

    __slots__ = ("_events", "_piece", "_rest")

    def __init__(self, events: Sequence[Event], piece: int) -> None:
        self._events = deque(events)
        self._rest: deque[Event] = deque()
        self._piece = piece

    def poll(self) -> Event | None:
        if self._rest:
            return self._rest.popleft()
        if not self._events:
            return None
        event = self._events.popleft()
        pieces = _pieces(event, self._piece)
        if pieces is None:
            return event
        self._rest.extend(pieces)
        return self._rest.popleft()

    async def __anext__(self) -> Event:
        event = self.poll()
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        self._events.clear()
        self._rest.clear()


def _pieces(event: Event, size: int) -> list[Event] | None:
    """A delta in smaller ones; None where it is small enough, or can't be parted."""
    kind = type(event)
    if kind is TextDelta or kind is ThinkingDelta or kind is RefusalDelta:
        delta = cast("TextDelta", event)
        if len(delta.text) <= size or getattr(event, "logprobs", None):
            return None
        return [kind(delta.text[at : at + size], delta.part) for at in range(0, len(delta.text), size)]
    if isinstance(event, ToolCallDelta) and len(event.arguments) > size:
        text = event.arguments
        return [
            ToolCallDelta(event.part, None if at else event.id, None if at else event.name, text[at : at + size])
            for at in range(0, len(text), size)
        ]
    return None
