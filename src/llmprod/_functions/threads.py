"""Blocking code in worker threads that can be left behind when its time is up.

A thread can't be stopped: one whose caller has gone runs on until its own call returns. What it then brings back, an
open stream for instance, is closed rather than lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
from anyio import to_thread

__all__ = ["ThreadedItems", "call_in_thread", "close_quietly"]

T = TypeVar("T")


def close_quietly(value: Any) -> None:
    """Close ``value`` if it can be closed without awaiting; errors of an answer that nobody reads interest nobody."""
    close = getattr(value, "close", None)
    if callable(close) and hasattr(value, "__next__"):
        with suppress(Exception):
            close()


class _Handover(Generic[T]):
    """Passes a value from the worker to the caller, or discards it if the caller has gone: exactly one of them."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._value: list[T] = []
        self._gone = False

    def work(self) -> T:
        value = self._function()
        with self._lock:
            gone = self._gone
            if not gone:
                self._value.append(value)
        if gone:
            close_quietly(value)
        return value

    def leave(self) -> None:
        with self._lock:
            self._gone = True
            values, self._value = self._value, []
        for value in values:
            close_quietly(value)


async def call_in_thread(function: Callable[[], T]) -> T:
    """Return ``function()`` from a worker thread, which is left behind on cancellation. Context variables follow."""
    handover = _Handover(function)
    try:
        return await _in_thread(handover.work)
    except BaseException:
        handover.leave()
        raise


async def _in_thread(function: Callable[[], T]) -> T:
    # A limiter of its own for each call: every synchronous caller brings a waiting thread anyway, and a pool shared
    # with others (anyio's default has 40 places) would make their calls wait for ours.
    return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


_END = object()


class ThreadedItems:
    """The items of a synchronous iterator, each fetched in a worker thread.

    Args:
        iterator: what to step through.
        close: ends it; its own ``close`` by default.
    """

    def __init__(self, iterator: Any, close: Callable[[], object] | None = None) -> None:
        self._iterator = iterator
        self._close: Callable[[], object] | None = close or getattr(iterator, "close", None)
        self._lock = threading.Lock()
        self._stepping = False
        self._closed = False

    async def next(self) -> Any:
        """Return the next item; raises StopAsyncIteration at the end."""
        item = await _in_thread(self._step)
        if item is _END:
            raise StopAsyncIteration
        return item

    def _step(self) -> Any:
        with self._lock:
            if self._closed:
                return _END
            self._stepping = True
        try:
            return next(self._iterator, _END)
        finally:
            with self._lock:
                self._stepping = False
                left_behind = self._closed
            if left_behind:
                self._shut_quietly()

    def _shut_quietly(self) -> None:
        if self._close is not None:
            with suppress(Exception):
                self._close()

    def _take(self) -> bool:
        """Mark as closed; True if it is for the caller to end the iterator, which one thread at a time may touch."""
        with self._lock:
            mine = not self._closed and not self._stepping
            self._closed = True
        return mine and self._close is not None

    async def aclose(self) -> None:
        """End the iterator; if a thread is still inside, it does that itself when it comes back."""
        if self._take():
            assert self._close is not None
            with anyio.CancelScope(shield=True):
                await _in_thread(self._close)

    def abandon(self) -> None:
        """End the iterator from wherever the garbage collector runs."""
        if self._take():
            self._shut_quietly()
