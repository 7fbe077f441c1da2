"""Where a batch's items come from, and what each of them asks."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from llmprod.batch.records import BatchItem
from llmprod.batch.signal import Signal
from llmprod.errors import InvalidArgument
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.types import Message

__all__ = ["END", "Feed", "Handed", "checked", "feed_of", "length_of"]

END: Any = object()
"""What a feed gives when there is nothing more."""


class Feed(Protocol):
    """Gives the items, one after the other; asked and closed by one task alone."""

    async def next(self) -> Any:
        """Return the next item, or ``END``."""
        ...

    async def close(self) -> None:
        """Run what a generator has to clean up."""
        ...


def checked(requests: object) -> Iterable[Any] | AsyncIterable[Any]:
    """``requests`` if they are several.

    Raises:
        InvalidArgument: it is one request, or nothing that can be iterated.
    """
    several = cast("Iterable[Any] | AsyncIterable[Any]", requests)
    given: object = requests
    one = isinstance(given, (str, bytes, Message, Mapping, GenerateRequest, EmbedRequest, BatchItem))
    if one or not isinstance(given, (Iterable, AsyncIterable)):
        raise InvalidArgument("requests", type(given).__name__, "an iterable or async iterable of requests")  # pyright: ignore[reportUnknownArgumentType]
    return several


def length_of(requests: object) -> int | None:
    """How many there are, if that is known."""
    try:
        return len(cast("Sequence[Any]", requests))
    except TypeError:
        return None


def feed_of(requests: Iterable[Any] | AsyncIterable[Any]) -> Feed:
    """A feed of what the loop itself can iterate."""
    return _Async(requests) if isinstance(requests, AsyncIterable) else _Plain(requests)


class _Plain:
    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)

    async def next(self) -> Any:
        return next(self._items, END)

    async def close(self) -> None:
        if inspect.isgenerator(self._items):
            self._items.close()


class _Async:
    def __init__(self, items: AsyncIterable[Any]) -> None:
        self._items = aiter(items)

    async def next(self) -> Any:
        return await anext(self._items, END)

    async def close(self) -> None:
        if inspect.isasyncgen(self._items):
            await self._items.aclose()


class Handed:
    """Items that another thread hands in."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._ended = False
        self._news = Signal()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Sequence[Any], *, ended: bool) -> None:
        """Add ``items``; ``ended`` says that no others follow."""
        self._items.extend(items)
        self._ended = self._ended or ended
        self._news.set()

    async def next(self) -> Any:
        """Return the next item, or ``END``."""
        while not self._items:
            if self._ended:
                return END
            await self._news.wait()
        return self._items.popleft()

    async def close(self) -> None:
        """Forget what is left."""
        self._items.clear()
