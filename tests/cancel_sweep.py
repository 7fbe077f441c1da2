"""Cancel at every await: run once to count the suspensions, then again for each of them, cancelled there."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import sniffio


class Stepper:
    """Awaits a coroutine, and calls ``at_step`` just before its ``stop_at``-th suspension reaches the event loop."""

    def __init__(self, coroutine: Any, stop_at: int | None = None, at_step: Callable[[], Any] = lambda: None) -> None:
        self.coroutine = coroutine
        self.stop_at = stop_at
        self.at_step = at_step
        self.count = 0

    def __await__(self):
        inner = self.coroutine.__await__()
        send, value = inner.send, None
        while True:
            try:
                trap = send(value)
            except StopIteration as done:
                return done.value
            self.count += 1
            if self.count == self.stop_at:
                self.at_step()
            try:
                value = yield trap
                send = inner.send
            except BaseException as error:
                send, value = inner.throw, error


async def sweep(scenario: Callable[[], tuple[Awaitable[Any], Callable[[], None]]]) -> int:
    """Run ``scenario`` once whole, then cancelled at each of its suspensions; return how many there are.

    ``scenario()`` makes everything anew and gives the coroutine to run and a check that all was given back.
    """
    coroutine, check = scenario()
    whole = Stepper(coroutine)
    await whole
    check()
    for place in range(1, whole.count + 1):
        coroutine, check = scenario()
        with anyio.CancelScope() as scope:
            await Stepper(coroutine, place, scope.cancel)
            await anyio.lowlevel.checkpoint()  # the last suspension may be a shielded close, which ends as it should
            raise AssertionError(f"the cancellation at suspension {place} of {whole.count} was swallowed")
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        check()
        if sniffio.current_async_library() == "asyncio":
            await _native(scenario, place)
    return whole.count


async def _native(scenario, place: int) -> None:
    """The same with asyncio's own cancellation, which comes once and not until it is heeded."""
    coroutine, check = scenario()
    task: asyncio.Task[Any] | None = None

    async def run() -> None:
        await Stepper(coroutine, place, lambda: task and task.cancel())

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    assert task.cancelled(), f"asyncio's cancellation at suspension {place} was swallowed"
    check()
