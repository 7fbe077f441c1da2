"""A stream whose every step is bounded in time. One cancel scope a step, since none may stay open across a yield."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from llmprod.clock import Clock
from llmprod.events import Event
from llmprod.response import EventSource, WrappedSource


class LimitedSource(WrappedSource):
    """Raises ``stalled()`` when a step takes longer than ``idle``, ``late()`` once the clock passes ``end``.

    One around another on the same clock takes the tighter of the limits, so that a step needs one cancel scope. An
    event that is there already takes no time and passes unlimited.
    """

    __slots__ = ("_clock", "_end", "_idle", "_late", "_stalled")

    _clock: Clock
    _end: float | None
    _idle: float | None
    _late: Callable[[], Exception]
    _stalled: Callable[[], Exception]

    def __init__(
        self,
        source: EventSource,
        clock: Clock,
        *,
        end: float | None,
        late: Callable[[], Exception],
        idle: float | None = None,
        stalled: Callable[[], Exception] | None = None,
    ) -> None:
        stalled = stalled or late
        if isinstance(source, LimitedSource) and source._clock is clock:
            if end is None or (source._end is not None and source._end < end):
                end, late = source._end, source._late
            if idle is None or (source._idle is not None and source._idle < idle):
                idle, stalled = source._idle, source._stalled
            source = source._source
        super().__init__(source)
        self.poll = self._poll
        self._clock = clock
        self._end = end
        self._late = late
        self._idle = idle
        self._stalled = stalled

    @property
    def clock(self) -> Clock:
        """The clock that its end is on."""
        return self._clock

    @property
    def within(self) -> EventSource:
        """The source that is limited."""
        return self._source

    def limit(self) -> tuple[float | None, Callable[[], Exception]]:
        """Return how many seconds a step that begins now may take, and what makes the error if it takes longer."""
        limit = self._idle
        error = self._stalled
        if self._end is not None:
            left = self._end - self._clock.now()
            if limit is None or left < limit:
                limit, error = left, self._late
        return limit, error

    async def __anext__(self) -> Event:
        limit, error = self.limit()
        if limit is None:
            return await self._next()
        with anyio.CancelScope(deadline=anyio.current_time() + limit):
            return await self._next()
        raise error()
