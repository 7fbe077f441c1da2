"""What ``client.map`` returns: an async iterator, and a plain one over the background event loop."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, cast

from llmprod._background import Background
from llmprod.batch.engine import Engine
from llmprod.batch.inputs import END, Handed
from llmprod.batch.records import BatchProgress, BatchResult

__all__ = ["Batch", "SyncBatch"]

_PULL_S = 0.005


def _raise(result: BatchResult) -> NoReturn:
    error = cast("Exception", result.error)  # a restored item hasn't failed
    error.add_note(f"in item {result.index} of client.map")
    raise error


class Batch:
    """The results of ``AsyncClient.map``: an async iterator that begins with its first ``__anext__``.

    ``async with client.map(...) as results`` waits at its end until what was in flight is gone. Without that, leaving
    the loop cancels it and does not wait. A cancelled ``__anext__`` ends the run, as that of an async generator does.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> BatchResult:
        engine = self._engine
        try:
            result = await engine.next()
        except BaseException:
            await engine.aclose()
            raise
        if result is None:
            raise StopAsyncIteration
        if engine.settings.stop_at_error and not result.ok:
            await engine.aclose()
            _raise(result)
        return result

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self._engine.meter.progress()

    async def aclose(self) -> None:
        """Cancel what is in flight and wait until it is gone; nothing more is given out."""
        await self._engine.aclose()

    async def __aenter__(self) -> Batch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None:
            engine.abandon()

    def __repr__(self) -> str:
        return _shown(self, self._engine)


class SyncBatch:
    """The results of ``Client.map``: an iterator that begins with its first ``__next__``.

    The input is taken in the thread that iterates, between two results, unless it is an async iterable. ``with
    client.map(...) as results`` or ``close()`` waits until what was in flight is gone; without that, leaving the loop
    cancels it and does not wait. Several threads may iterate: each result goes to one of them.
    """

    def __init__(self, engine: Engine, loop: Background, items: Iterator[Any] | None, handed: Handed) -> None:
        self._engine = engine
        self._loop = loop
        self._items = items
        self._handed = handed
        self._room = 1 if items is not None else 0
        self._ready: deque[BatchResult] = deque()
        self._failure: Exception | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[BatchResult]:
        return self

    def __next__(self) -> BatchResult:
        with self._lock:
            try:
                while not self._ready and not self._closed:
                    fresh = self._pull()
                    results, self._room, over = self._loop.run(self._exchange, fresh, self._items is None)
                    self._ready.extend(results)
                    if over:
                        break
            except BaseException:
                self.close()
                raise
            if self._closed or not self._ready:
                failure, self._failure = self._failure, None
                if failure is not None and not self._closed:
                    raise failure
                raise StopIteration
            result = self._ready.popleft()
        if self._engine.settings.stop_at_error and not result.ok:
            self.close()
            _raise(result)
        return result

    def _pull(self) -> list[Any]:
        """Take as many items as there is room for, and no more than a moment's worth."""
        fresh: list[Any] = []
        until = time.monotonic() + _PULL_S
        while (items := self._items) is not None and len(fresh) < self._room:
            try:
                value = next(items, END)
            except Exception as error:  # noqa: BLE001 - raised after what came before it
                self._failure, value = error, END
            if value is END:
                self._items = None
            else:
                fresh.append(value)
            if time.monotonic() > until:
                break
        return fresh

    async def _exchange(self, fresh: Sequence[Any], ended: bool) -> tuple[list[BatchResult], int, bool]:
        """Hand items in and take results; returns them, how many items there is room for, and whether it is over."""
        engine, handed = self._engine, self._handed
        handed.put(fresh, ended=ended)
        engine.begin()
        while True:
            results: list[BatchResult] = []
            most = engine.settings.concurrency()
            while len(results) < most and (result := engine.take()) is not None:
                results.append(result)
            room = 0 if ended else max(0, engine.room - len(handed))
            if results or room or engine.done:
                break
            await engine.news.wait()
        if engine.done and not results:
            engine.check()
        return results, room, engine.done and not results

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self._engine.meter.progress()

    def close(self) -> None:
        """Cancel what is in flight and wait until it is gone; nothing more is given out. From any thread."""
        self._closed = True
        items, self._items = self._items, None
        try:
            if inspect.isgenerator(items):
                with contextlib.suppress(ValueError):  # it is at work, in the thread that iterates
                    items.close()
        finally:
            self._loop.run(self._engine.aclose)

    def __enter__(self) -> SyncBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None:
            engine.abandon()

    def __repr__(self) -> str:
        return _shown(self, self._engine)


def _shown(batch: Batch | SyncBatch, engine: Engine) -> str:
    meter = engine.meter
    total = "" if meter.total is None else f" of {meter.total}"
    return f"<{type(batch).__name__} {meter.done}{total} done, {meter.failed} failed>"
