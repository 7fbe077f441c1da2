"""From the items of a function's stream to the events that wrappers see, each item riding along unchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import anyio

from llmprod._functions.sdk_stream import StreamReader
from llmprod.errors import TruncatedAnswer
from llmprod.events import Event, Finish, Item

__all__ = ["AsyncItems", "ItemSource", "Items", "OneItem"]


class Items(Protocol):
    """Items one after the other, however they are made."""

    async def next(self) -> Any:
        """Return the next item; raises StopAsyncIteration at the end."""
        ...

    async def aclose(self) -> None:
        """End it; may be called at any time and more than once."""
        ...


class AsyncItems:
    """The items of an asynchronous iterator.

    Args:
        iterator: what to step through.
        close: ends it; its own ``aclose`` or ``close`` by default.
    """

    def __init__(self, iterator: Any, close: Callable[[], Any] | None = None) -> None:
        self.next = iterator.__anext__
        self._close: Callable[[], Any] | None = (
            close or getattr(iterator, "aclose", None) or getattr(iterator, "close", None)
        )

    async def aclose(self) -> None:
        """End the iterator."""
        close, self._close = self._close, None
        if close is not None:
            ended = close()
            if ended is not None:
                await ended


class OneItem:
    """A whole value where a stream was expected, such as a fallback's fixed answer."""

    def __init__(self, value: Any) -> None:
        self._left = [value]

    async def next(self) -> Any:
        """Return the value, once."""
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()

    async def aclose(self) -> None:
        """Nothing to end."""


class ItemSource:
    """The event source of a function's stream.

    Args:
        items: what the function yields.
        reader: finds text, usage and the end in them.
        check: an SDK's stream that ends without its terminal mark is broken.
        explain: returns the library's error for an SDK's, told whether the stream had begun; others as they are.
    """

    def __init__(
        self, items: Items, reader: StreamReader, *, check: bool, explain: Callable[[Exception, bool], Exception]
    ) -> None:
        self._items = items
        self._reader = reader
        self._check = check
        self._explain = explain
        self._ready: deque[Event] = deque()
        self._began = False
        self._ended = False

    async def commit(self) -> None:
        """Read ahead up to the first content: a failure until then can be retried without the caller noticing."""
        try:
            while not self._reader.committed:
                try:
                    await self._read()
                except StopAsyncIteration:
                    if self._cut:
                        raise TruncatedAnswer(in_stream=True) from None
                    return
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    @property
    def _cut(self) -> bool:
        return self._check and self._reader.recognised and not self._reader.finished

    def poll(self) -> Event | None:
        """Return the next event if it is there already."""
        return self._ready.popleft() if self._ready else None

    async def __anext__(self) -> Event:
        while not self._ready:
            await self._read()
        return self._ready.popleft()

    async def _read(self) -> None:
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._items.next()
            self._began = True
            self._ready.extend(self._reader.feed(item))
        except StopAsyncIteration:
            self._ended = True
            if self._reader.finished or self._cut:
                raise
            self._ready.append(Finish("unknown"))
            self._reader.committed = True
            return
        except Exception as error:
            self._ended = True
            explained = self._explain(error, self._began)
            if explained is error:
                raise
            raise explained from error
        self._ready.append(Item(item))

    async def aclose(self) -> None:
        """End the stream."""
        self._ended = True
        await self._items.aclose()

    def abandon(self) -> None:
        """End the stream as far as that needs no awaiting."""
        abandon = getattr(self._items, "abandon", None)
        if abandon is not None:
            abandon()
