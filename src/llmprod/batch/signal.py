"""Tells waiting tasks of one event loop that something has changed."""

from __future__ import annotations

import anyio

__all__ = ["Signal"]


class Signal:
    """An event that can happen again: whoever waits looks for itself what has changed."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Wake all who wait."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Wait for the next ``set``."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
