"""From the caller's event loop to the engine's and back, for callers on asyncio and on trio.

Answers go back in batches: what the engine's loop has for one caller's loop in one turn crosses with one wake-up. With
a wake-up for each token, 32 streams spend more time in waking than in decoding.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar, cast

import anyio

from llmprod._loops import post, running_loop

__all__ = ["Channel", "Crossing"]

T = TypeVar("T")


class _Post:
    """The way from the engine's loop to one caller's."""

    __slots__ = ("_batch", "_caller", "_home")

    def __init__(self, home: asyncio.AbstractEventLoop, caller: Any) -> None:
        self._home = home
        self._caller = weakref.ref(caller)  # the key of a weak mapping, which its value must not keep alive
        self._batch: list[tuple[Channel[Any], Any]] = []

    def send(self, channel: Channel[Any], item: Any) -> None:
        self._batch.append((channel, item))
        if len(self._batch) == 1:
            self._home.call_soon(self._flush)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        caller = self._caller()
        if caller is not None:
            post(caller, _arrive, batch)  # where the loop has ended nobody waits any more


def _arrive(batch: list[tuple[Channel[Any], Any]]) -> None:
    for channel, item in batch:
        channel.arrived(item)


class Channel(Generic[T]):
    """Items from the engine's loop, in order; read on the caller's loop, which made it."""

    __slots__ = ("_items", "_post", "_wake")

    def __init__(self, post: _Post) -> None:
        self._post = post
        self._items: deque[T] = deque()
        self._wake: anyio.Event | None = None

    def send(self, item: T) -> None:
        """Send; called on the engine's loop alone."""
        self._post.send(self, item)

    def arrived(self, item: T) -> None:
        """Take an item in; called on the caller's loop."""
        self._items.append(item)
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.set()

    async def receive(self) -> T:
        """Wait for the next item."""
        while not self._items:
            self._wake = anyio.Event()
            await self._wake.wait()
        return self._items.popleft()

    def ready(self) -> T | None:
        """Return the next item if it is there already."""
        return self._items.popleft() if self._items else None


class Crossing:
    """The ways into the engine's loop and out of it.

    Args:
        home: the engine's loop, which runs in a thread of its own.
    """

    def __init__(self, home: asyncio.AbstractEventLoop) -> None:
        self.home: asyncio.AbstractEventLoop = home
        self._posts: weakref.WeakKeyDictionary[Any, _Post] = weakref.WeakKeyDictionary()

    def channel(self) -> Channel[Any]:
        """Return a channel that ends at the running event loop."""
        caller = running_loop()
        post = self._posts.get(caller)
        if post is None:
            post = self._posts[caller] = _Post(self.home, caller)
        return Channel(post)

    def soon(self, function: Callable[..., object], *args: Any) -> bool:
        """Call ``function(*args)`` on the engine's loop soon; False if that has ended.

        It runs in a context of its own: the caller's says on which kind of event loop it is, and a caller's on trio
        would have the application wait on trio there.
        """
        try:
            self.home.call_soon_threadsafe(function, *args, context=Context())
        except RuntimeError:
            return False
        return True

    async def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run ``function(*args)`` on the engine's loop and return its result; a cancellation here cancels it there."""
        channel: Channel[tuple[T | None, BaseException | None]] = self.channel()
        task: asyncio.Task[T] | None = None

        def begin() -> None:
            nonlocal task
            task = self.home.create_task(function(*args))
            task.add_done_callback(ended)

        def ended(done: asyncio.Task[T]) -> None:
            if done.cancelled():
                channel.send((None, asyncio.CancelledError()))
            else:
                error = done.exception()
                channel.send((None, error) if error is not None else (done.result(), None))

        def cancel() -> None:
            if task is not None:
                task.cancel()

        if not self.soon(begin):
            raise RuntimeError("the engine's event loop has ended")
        try:
            result, error = await channel.receive()
        except BaseException:
            self.soon(cancel)
            raise
        if error is not None:
            raise error
        return cast("T", result)
