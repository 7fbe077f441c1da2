"""From a caller's loop to the engine's and back, on asyncio and trio."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from llmprod.providers._vllm import crossing as crossing_module
from llmprod.providers._vllm.crossing import Channel, Crossing
from llmprod.providers._vllm.home import Home
from tests.providers.fake_engine import until


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home("test-home")
    yield made
    made.close()
    made.thread.join(120)
    assert not made.thread.is_alive()
    assert made.loop.is_closed()


async def test_items_arrive_in_order_in_one_batch_a_turn(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    arrive = crossing_module._arrive

    def counted(batch: list[Any]) -> None:
        batches.append(len(batch))
        arrive(batch)

    monkeypatch.setattr(crossing_module, "_arrive", counted)
    one: Channel[int] = home.crossing.channel()
    two: Channel[int] = home.crossing.channel()

    def turn(start: int) -> None:
        for number in range(start, start + 100):
            one.send(number)
            two.send(-number)

    home.crossing.soon(turn, 0)
    assert [await one.receive() for _ in range(100)] == list(range(100))
    home.crossing.soon(turn, 100)
    assert [await one.receive() for _ in range(100)] == list(range(100, 200))
    assert [await two.receive() for _ in range(200)] == [-number for number in range(200)]
    assert batches == [200, 200], "one wake-up for all that a turn has for this loop"
    assert one.ready() is None


async def test_a_cancelled_receive_loses_nothing(home: Home) -> None:
    channel: Channel[str] = home.crossing.channel()
    with anyio.move_on_after(0.01):
        await channel.receive()
    home.crossing.soon(channel.send, "kept")
    assert await channel.receive() == "kept"


async def test_a_call_returns_raises_and_is_cancelled_on_the_other_side(home: Home) -> None:
    async def where(value: int) -> tuple[int, object]:
        await asyncio.sleep(0)
        return value, threading.current_thread()

    assert await home.crossing.call(where, 5) == (5, home.thread)

    async def fails() -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        await home.crossing.call(fails)
    seen: list[str] = []

    async def long() -> None:
        seen.append("began")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(home.crossing.call, long)
        await until(lambda: seen)
        group.cancel_scope.cancel()
    await until(lambda: seen == ["began", "cancelled"])

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled"):  # trio knows no CancelledError of asyncio's
        await home.crossing.call(cancels_itself)


def test_loops_that_have_ended_are_passed_over_and_forgotten(home: Home) -> None:
    channels: list[Channel[int]] = []
    loops: list[Any] = []

    async def caller() -> None:
        channels.append(home.crossing.channel())
        loops.append(weakref.ref(anyio.lowlevel.current_token().native_token))

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(caller, backend=backend)
    for channel in channels:
        home.crossing.soon(channel.send, 1)

    async def still_works() -> int:
        channel: Channel[int] = home.crossing.channel()
        home.crossing.soon(channel.send, 2)
        return await channel.receive()

    assert anyio.run(still_works) == 2
    channels.clear()
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
    gc.collect()
    assert len(home.crossing._posts) == 0


async def test_nothing_of_the_callers_context_crosses(home: Home) -> None:
    """On trio it would tell the application that it is on trio too, and the engine would keep it for its life."""
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")
    mark.set("caller's")

    async def seen() -> str:
        await anyio.lowlevel.checkpoint()  # fails where anyio takes the loop for trio's
        return mark.get()

    assert await home.crossing.call(seen) == "none"


async def test_a_home_that_has_ended_says_so() -> None:
    home = Home("test-ended")
    home.close()
    home.close()
    home.thread.join(120)
    crossing: Crossing = home.crossing

    async def anything() -> None: ...

    assert crossing.soon(print) is False
    with pytest.raises(RuntimeError, match="has ended"):
        await crossing.call(anything)
