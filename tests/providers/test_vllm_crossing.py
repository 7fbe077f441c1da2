"""From a caller's loop to the engine's and back: what runs there knows nothing of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar

import anyio
import pytest

from llmprod.providers._vllm.crossing import Channel
from llmprod.providers._vllm.home import Home

said: ContextVar[str] = ContextVar("said", default="nothing")


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home("test-home")
    yield home
    home.loop.call_soon_threadsafe(home.loop.stop)
    home.thread.join(10)
    assert not home.thread.is_alive()
    home.loop.close()


async def test_the_application_may_use_anyio_whatever_the_caller_runs_on(home: Home) -> None:
    async def streamed() -> list[int]:
        """Work as Starlette streams an answer: with a task group."""
        found: list[int] = []
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(anyio.lowlevel.checkpoint)
                found.append(number)
        return found

    assert await home.crossing.call(streamed) == [0, 1, 2]


async def test_the_callers_context_stays_with_it(home: Home) -> None:
    said.set("secret")

    async def heard() -> str:
        said.set(f"{said.get()}, there")
        return said.get()

    assert await home.crossing.call(heard) == "nothing, there"
    assert await home.crossing.call(heard) == "nothing, there", "and calls share none"
    assert said.get() == "secret"


async def test_items_come_in_order_and_many_cross_at_once(home: Home) -> None:
    channel: Channel[int] = home.crossing.channel()

    def send() -> None:
        for number in range(1000):
            channel.send(number)

    assert home.crossing.soon(send)
    first = await channel.receive()
    rest: list[int] = []
    while (item := channel.ready()) is not None:
        rest.append(item)
    assert [first, *rest] == list(range(1000))


async def test_errors_and_cancellation_cross(home: Home) -> None:
    async def wrong() -> None:
        raise LookupError("there")

    with pytest.raises(LookupError, match="there"):
        await home.crossing.call(wrong)

    ended = home.crossing.channel()

    async def long() -> None:
        ended.send("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.send("cancelled")
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(home.crossing.call, long)
        assert await ended.receive() == "begun"
        group.cancel_scope.cancel()
    with anyio.fail_after(10):
        assert await ended.receive() == "cancelled"


async def test_a_loop_that_has_ended_takes_nothing() -> None:
    home = Home("test-ended")
    home.loop.call_soon_threadsafe(home.loop.stop)
    home.thread.join(10)
    home.loop.close()
    assert not home.crossing.soon(print)

    async def never() -> None: ...

    with pytest.raises(RuntimeError, match="ended"):
        await home.crossing.call(never)
