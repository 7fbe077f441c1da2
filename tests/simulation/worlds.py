"""Virtual time on asyncio and trio with one grid of ticks, so that the same moment is the same number on both.

looptime and trio's autojump round differently (to 1 µs, and not at all), and looptime idles 42 cycles for each jump.
Here time jumps to the next timer, rounded up to a multiple of 2**-20 s: exact in floats, whatever is added to it.
"""

import asyncio
import contextlib
import heapq
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any
from unittest import mock

import anyio
import trio
import trio.testing

from llmprod.wrappers._line import Place

TICK = 2.0**-20
"""Seconds: the least time that can pass."""

_OWN = 128
BACKENDS = ("asyncio", "trio")
_IDLE_TURNS = 100_000


def on_grid(seconds: float) -> float:
    """The first tick at or after ``seconds``."""
    return math.ceil(seconds / TICK) * TICK


class Livelock(BaseException):
    """Tasks kept running without time passing."""


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._time = 0.0
        self._turns = 0
        self._clock_resolution = 2.0**-35  # a timer fires at its time, not before

    def time(self) -> float:
        return self._time

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._turns += 1
        if not self._ready:  # type: ignore[attr-defined]
            while scheduled and scheduled[0].cancelled():
                self._timer_cancelled_count -= 1
                heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            if scheduled and scheduled[0].when() > self._time:
                self._time = on_grid(scheduled[0].when())
                self._turns = 0
        if self._turns > _IDLE_TURNS:
            raise Livelock
        super()._run_once()  # type: ignore[misc]


def _virtual_clock() -> trio.testing.MockClock:
    clock = trio.testing.MockClock(autojump_threshold=0)

    def autojump() -> None:
        deadline = trio.lowlevel.current_statistics().seconds_to_next_deadline + clock.current_time()
        if deadline < math.inf:
            clock.jump(max(0.0, on_grid(deadline) - clock.current_time()))

    clock._autojump = autojump  # type: ignore[method-assign]
    return clock


class WorldClock:
    """The library's clock in a simulated world.

    What happens on one tick has no order that both backends would agree on, so each caller has ticks of its own: it
    sleeps until the next tick whose number leaves the caller's remainder. No two callers wake together, not even those
    that wait for the same moment; nor does a caller's own task with another that works for it, as a hedge does.
    """

    def __init__(self, now: Callable[[], float], task: Callable[[], Any], caller: int = 0, main: Any = None) -> None:
        self.now = now
        self._task = task
        self._caller = caller
        self._main = main

    def of(self, caller: int) -> "WorldClock":
        """The clock of a caller, whose task this is."""
        return WorldClock(self.now, self._task, 2 * caller + 1, self._task())

    async def sleep(self, seconds: float) -> None:
        now = self.now()
        ticks = math.ceil((now + seconds) / TICK)
        own = self._caller + (self._main is not self._task())
        ticks += (own - ticks) % _OWN
        await anyio.sleep(ticks * TICK - now)


_running: ContextVar[WorldClock] = ContextVar("running")


def runs_as(clock: WorldClock) -> None:
    """Say whose ticks the current task keeps."""
    _running.set(clock)


@contextlib.contextmanager
def wakes_on_own_ticks() -> Iterator[None]:
    """A call that is woken in line goes on at its own next tick: one that leaves may wake a whole row at once."""
    wait = Place.wait

    async def waits(place: Place, seconds: float | None) -> None:
        await wait(place, seconds)
        await _running.get().sleep(0.0)

    with mock.patch.object(Place, "wait", waits):
        yield


@contextlib.contextmanager
def _seeded_scheduling(seed: int) -> Iterator[None]:
    """trio runs what is ready at the same time in random order; here the seed owns that order."""
    run = trio._core._run
    before, state = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        run._r.setstate(state)


def run(backend: str, main: Callable[[WorldClock], Awaitable[Any]], *, seed: int) -> Any:
    """Run ``main(clock)`` in a world of its own that begins at time 0."""
    if backend == "trio":
        clock = _virtual_clock()
        with _seeded_scheduling(seed), wakes_on_own_ticks():
            return anyio.run(
                main,
                WorldClock(clock.current_time, trio.lowlevel.current_task),
                backend="trio",
                backend_options={"clock": clock},
            )

    async def started() -> Any:
        return await main(WorldClock(asyncio.get_running_loop().time, asyncio.current_task))

    with wakes_on_own_ticks():
        return anyio.run(started, backend="asyncio", backend_options={"loop_factory": _VirtualLoop})


def random_for(*names: object) -> random.Random:
    """Chance of its own for each part of a scenario: one that draws more does not shift the others."""
    return random.Random("/".join(map(str, names)))
