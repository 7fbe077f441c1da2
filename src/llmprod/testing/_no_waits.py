"""Tests without waits: a clock whose sleeps are over at once. After stamina's test mode, without its global switch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol, Self, cast

import anyio

from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["NoWaits", "no_waits"]


class _HasClock(Protocol):
    _clock: Clock


class NoWaits:
    """A clock on which every ``sleep`` ends at once, and has taken its time all the same: ``now`` moves by it.

    What the library sleeps for vanishes: backoff, Retry-After, the pauses of Scripted and Simulated. What it waits for
    with a limit stays real: attempt timeouts, deadlines, hedges, places in line, sockets. A deadline counts the time
    that was skipped, so a wait that would pass it still fails the call. Sleeps side by side add up.

    Args:
        clock: the time that goes on beneath (default the system's).

    Attributes:
        waits: seconds of each sleep that was asked for, in order.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.waits: list[float] = []
        self._beneath = clock
        self._skipped = 0.0

    @property
    def skipped(self) -> float:
        """Seconds that nobody had to wait."""
        return self._skipped

    def now(self) -> float:
        """Return the time beneath and all that was skipped."""
        return self._beneath.now() + self._skipped

    async def sleep(self, seconds: float) -> None:
        """Note the wait, move the time, and let other tasks run once."""
        self.waits.append(seconds)
        self._skipped += max(0.0, seconds)
        await anyio.lowlevel.checkpoint()

    @contextmanager
    def on(self, *clients: object) -> Generator[Self]:
        """Let clients and decorated functions that are there already use this clock until the block ends.

        The time of their calls is exchanged; a breaker, limiter or budget keeps the clock it was made with.

        Raises:
            TypeError: something else was given.
        """
        found = [_clocked(client) for client in clients]
        before = [holder._clock for holder in found]
        try:
            for holder in found:
                holder._clock = self
            yield self
        finally:
            for holder, clock in zip(found, before, strict=True):
                holder._clock = clock

    def __repr__(self) -> str:
        return f"<NoWaits of {len(self.waits)} waits, {self._skipped:g} s>"


def _clocked(client: object) -> _HasClock:
    holder: Any = getattr(client, "__llmprod__", client)
    if not hasattr(holder, "_clock") or not hasattr(holder, "provider"):
        raise TypeError(f"on: got {type(client).__name__}; allowed: clients and decorated functions")
    return cast("_HasClock", holder)


def no_waits(clock: Clock = SYSTEM_CLOCK) -> NoWaits:
    """Return a new :class:`NoWaits`: ``Client("…", clock=no_waits())``."""
    return NoWaits(clock)
