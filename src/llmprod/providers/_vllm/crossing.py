"""From the caller's event loop to the engine's and back, for callers on asyncio and on trio.

Both ways go in batches: what one loop has for the other in one turn crosses with one wake-up. With a wake-up for each
token, 32 streams spend more time in waking than in decoding. A wake-up also lets go of the interpreter's lock, which
the thread that is woken then keeps for milliseconds.
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
    """The way from the engine's loop to one caller's, which it doesn't keep alive."""

    __slots__ = ("_batch", "_caller", "_home", "on_asyncio")

    def __init__(self, home: asyncio.AbstractEventLoop, caller: Any) -> None:
        self._home = home
        self._caller = weakref.ref(caller)  # the key of a weak mapping, which its value must not keep alive
        self.on_asyncio: bool = isinstance(caller, asyncio.AbstractEventLoop)
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
        self._wake: anyio.Event | asyncio.Future[None] | None = None

    def send(self, item: T) -> None:
        """Send; called on the engine's loop alone."""
        self._post.send(self, item)

    def arrived(self, item: T) -> None:
        """Take an item in; called on the caller's loop."""
        self._items.append(item)
        wake, self._wake = self._wake, None
        if wake is None:
            return
        if isinstance(wake, anyio.Event):
            wake.set()
        elif not wake.done():
            wake.set_result(None)

    async def receive(self) -> T:
        """Wait for the next item."""
        while not self._items:
            if self._post.on_asyncio:
                self._wake = waiter = asyncio.get_running_loop().create_future()  # cheaper, for each token, than Event
                await waiter
            else:
                self._wake = event = anyio.Event()
                await event.wait()
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
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False

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
        if self.home.is_closed():
            return False
        self._inbox.append((function, args))
        if not self._is_woken:
            self._is_woken = True
            try:
                self.home.call_soon_threadsafe(self._open_inbox)
            except RuntimeError:
                return False
        return True

    def _open_inbox(self) -> None:
        self._is_woken = False  # first: what is put in from now on wakes the loop again
        inbox = self._inbox
        while inbox:
            function, args = inbox.popleft()
            # Not in the caller's context: from it, anyio would take the engine's loop for the caller's trio.
            self.home.call_soon(function, *args, context=Context())

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
                channel.send((None, RuntimeError("cancelled on the engine's loop")))  # no error that a trio task knows
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
