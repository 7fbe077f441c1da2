"""Gives up a stream that crawls, before anything of it was shown where that can be.

A stall is AttemptTimeout's business; this is for a target that says a word every few seconds and so never stalls. The
first characters are held back until a window's worth of them is there, so that a target that crawls from the start
fails before its answer is committed, and a failover is invisible (Bifrost's throughput guard: a minimum of characters
a second over 1 to 60 seconds, at most 256 characters held). Later it is an interruption, which :class:`Resume` may
mend. The mechanism is in :mod:`llmprod.mechanisms.throughput`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

import anyio

from llmprod import _validate
from llmprod.clock import Clock
from llmprod.context import Context
from llmprod.decisions import CrawlStopped
from llmprod.errors import StreamInterrupted, StreamTooSlow
from llmprod.events import Event, Finish, Start
from llmprod.mechanisms.shown import characters
from llmprod.mechanisms.throughput import Throughput
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import EventSource, Response, WrappedSource
from llmprod.wrapper import Phase, WrappedProvider, Wrapper
from llmprod.wrappers._limited import LimitedSource
from llmprod.wrappers._unseen import unseen

__all__ = ["ThroughputGuard"]


class ThroughputGuard(Wrapper):
    """Raise :class:`StreamTooSlow` when a stream brings too few characters of its answer.

    All characters of the answer count: text, reasoning that is shown, tool arguments. Time counts while the target is
    waited for, not while the reader is busy. Whole answers, embeddings and decorated functions pass untouched. Give a
    longer ``over`` to targets that pause inside an answer, as for tools that they run themselves.

    Args:
        characters_per_second: the least rate (default 4: about a token a second, at which an answer of 600 tokens takes
            as long as the default :class:`Deadline` allows).
        over: seconds that it is measured over, from 1 to 60 (default 5, as in Bifrost).
        hold: characters held back at most until the first window is sure to pass (default 256, as in Bifrost; with the
            other defaults 20 are enough). 0 holds none.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.ATTEMPT_TIMEOUT

    def __init__(self, *, characters_per_second: float = 4.0, over: float = 5.0, hold: int = 256) -> None:
        _validate.between("characters_per_second", characters_per_second, 0.01, 1e6)
        _validate.between("over", over, 1, 60)
        _validate.whole("hold", hold, 0)
        self.characters_per_second: float = float(characters_per_second)
        self.over: float = float(over)
        self.hold = hold

    def wrap(self, inner: Provider) -> Provider:
        """Guard ``inner``'s streams."""
        return _ThroughputGuardProvider(inner, self)

    def __repr__(self) -> str:
        return f"ThroughputGuard({self.characters_per_second:g} characters/s over {self.over:g} s)"


class _ThroughputGuardProvider(WrappedProvider):
    wrapper: ThroughputGuard

    async def send(self, request: Request, context: Context) -> Response:
        response = await self.inner.send(request, context)
        if not request.stream or response.closed or not isinstance(request, GenerateRequest):
            return response
        options = self.wrapper
        pace = Throughput(characters_per_second=options.characters_per_second, over=options.over)
        held = True

        def slow() -> StreamTooSlow:
            context.decided(CrawlStopped, self.name, characters=pace.recent, seconds=options.over, held=held)
            least = f"less than {options.characters_per_second:g} characters/s over {options.over:g} s"
            return StreamTooSlow(provider=self.name, detail=least, in_stream=True)

        response.transform(lambda source: _PacedSource(source, context.clock, pace, slow, options.hold))
        if options.hold:
            broke: Exception | None = None
            try:
                # Reads ahead, and hands out an event that says nothing. Through the response, so that it settles
                # itself if the stream breaks or the call is cancelled meanwhile.
                await response.__anext__()
            except StreamInterrupted as error:
                broke = error.__cause__ if isinstance(error.__cause__, Exception) else error
            if broke is not None:
                unseen(broke, context)
                raise broke
        held = False
        return response


class _PacedSource(WrappedSource):
    """Bounds each step by the time in which the stream is still fast enough.

    Around a :class:`LimitedSource` it takes over that one's limits, so that a step needs one cancel scope.
    """

    __slots__ = ("_clock", "_hold", "_limits", "_over", "_pace", "_ready", "_slow")

    def __init__(
        self, source: EventSource, clock: Clock, pace: Throughput, slow: Callable[[], Exception], hold: int
    ) -> None:
        self._limits = source if isinstance(source, LimitedSource) and source.clock is clock else None
        super().__init__(self._limits.within if self._limits is not None else source)
        self.poll = self._there
        self._clock = clock
        self._pace = pace
        self._slow = slow
        self._hold = hold
        self._ready: deque[Event] = deque()
        self._over = False

    def _there(self) -> Event | None:
        if self._hold:
            return None
        return self._ready.popleft() if self._ready else self._read()

    def _read(self) -> Event | None:
        event = self._poll()
        if event is not None:
            self._pace.arrived(characters(event), 0.0)
        return event

    async def __anext__(self) -> Event:
        if self._hold:
            await self._fill()
            return Start()
        if self._ready:
            return self._ready.popleft()
        if self._over:
            raise StopAsyncIteration
        return await self._step()

    async def _fill(self) -> None:
        most, self._hold = self._hold, 0
        size = 0
        while size < most and not self._pace.enough:
            try:
                event = self._read() or await self._step()
            except StopAsyncIteration:
                self._over = True
                return
            self._ready.append(event)
            size += characters(event)
            if type(event) is Finish:
                return

    async def _step(self) -> Event:
        limit, error = self._limits.limit() if self._limits is not None else (None, self._slow)
        left = self._pace.left
        if limit is None or left < limit:
            limit, error = left, self._slow
        started = self._clock.now()
        with anyio.CancelScope(deadline=anyio.current_time() + limit):
            event = await self._next()
            self._pace.arrived(characters(event), self._clock.now() - started)
            return event
        if error is self._slow:
            self._pace.arrived(0, self._clock.now() - started)
        raise error()
