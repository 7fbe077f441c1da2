"""Runs an async context manager in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractAsyncContextManager


class LoopThread(threading.Thread):
    """Enters `manager` in a new event loop in this daemon thread; `stop` leaves it and ends the thread."""

    def __init__(self, manager: AbstractAsyncContextManager[object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._manager = manager
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start_and_wait(self) -> None:
        """Start, and return when the manager is entered; what it raises is raised here."""
        self.start()
        self._ready.wait()
        if self._failure is not None:
            self.join()
            raise self._failure

    def stop(self) -> None:
        """Leave the manager and wait for the thread's end."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self.join()

    def run(self) -> None:
        """Called by threading."""
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._manager:
                self._ready.set()
                await self._stopping.wait()
        except BaseException as error:
            if self._ready.is_set():
                raise
            self._failure = error
            self._ready.set()
