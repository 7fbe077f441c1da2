"""Time and chance as arguments: every wrapper and mechanism takes them, so tests can own both."""

from __future__ import annotations

import random
import time
from typing import Protocol

import anyio

__all__ = ["Clock", "LoopClock", "Random", "SystemClock"]


class Clock(Protocol):
    """A monotonic clock in seconds that can also sleep."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean something."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` without blocking the event loop."""
        ...


class Random(Protocol):
    """The one method of :class:`random.Random` that the library draws from."""

    def random(self) -> float:
        """Return the next float in ``[0, 1)``."""
        ...


class SystemClock:
    """``time.monotonic``: one time line for all threads and event loops of the process (the default)."""

    def now(self) -> float:
        """Return ``time.monotonic()``."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await anyio.sleep(seconds)


class LoopClock:
    """The running event loop's own time, so that a virtual-time loop moves the library's time with it."""

    def now(self) -> float:
        """Return the running loop's time; raises outside an event loop."""
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await anyio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
SYSTEM_RANDOM: Random = random.Random()
