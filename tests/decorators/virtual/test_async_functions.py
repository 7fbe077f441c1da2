"""Asynchronous functions and generators on asyncio and trio, in virtual time."""

from __future__ import annotations

import random
from contextlib import aclosing
from types import MappingProxyType

import anyio
import pytest

from llmprod import (
    AttemptTimedOut,
    AttemptTimeout,
    Deadline,
    DeadlineExceeded,
    FirstTokenTimeout,
    IdleTimeout,
    LoopClock,
    RateLimited,
    Retry,
    StreamInterrupted,
    capture,
    resilient,
)
from tests.decorators.scripted import Scripted, Wait, aread_into, retry

RESET = ConnectionResetError()


class Asked429(Exception):
    """An exception as the vendors' SDKs build them."""

    status_code = 429

    class response:
        headers = MappingProxyType({"Retry-After": "7"})


def clocked(*wrappers, **options):
    return resilient(*wrappers, clock=LoopClock(), random=random.Random(0), **options)


async def test_what_the_server_asked_for_is_waited():
    ask = Scripted("async", Asked429(), "a")
    started = anyio.current_time()
    with capture() as calls:
        assert await clocked(Retry(3))(ask.function)() == "a"
    assert 7 <= anyio.current_time() - started < 9
    first, second = calls[-1].trace.attempts
    assert (first.error, first.status) == (RateLimited.__name__, 429)
    assert second.wait == pytest.approx(anyio.current_time() - started)


async def test_an_attempt_that_takes_too_long():
    ask = Scripted("async", (Wait(1000), "a"))
    started = anyio.current_time()
    with pytest.raises(AttemptTimedOut):
        await clocked(AttemptTimeout(total=30))(ask.function)()
    assert anyio.current_time() - started == pytest.approx(30)


async def test_a_whole_answer_may_take_longer_than_a_first_token():
    ask = Scripted("async", (Wait(120), "a"))
    assert await clocked(AttemptTimeout())(ask.function)() == "a"


async def test_a_limit_of_tokens_that_the_call_names_sets_the_time():
    ask = Scripted("async", (Wait(120), "a"))
    with pytest.raises(AttemptTimedOut):
        await clocked(AttemptTimeout())(ask.function)(max_tokens=100)


async def test_a_stream_that_says_nothing():
    ask = Scripted("async_items", (Wait(1000), "a"))
    with pytest.raises(FirstTokenTimeout):
        await anext(clocked(AttemptTimeout(first_token=10))(ask.function)())
    assert anyio.current_time() == pytest.approx(10, abs=1)


async def test_empty_pieces_are_no_first_token():
    ask = Scripted("async_items", ("", None, Wait(1000), "a"))
    with pytest.raises(FirstTokenTimeout):
        await anext(clocked(AttemptTimeout(first_token=10))(ask.function)())


async def test_a_stream_that_stalls():
    ask = Scripted("async_items", ("", "a", Wait(1000), "b"))
    seen = []
    with pytest.raises(StreamInterrupted) as caught:
        await aread_into(seen, clocked(AttemptTimeout(idle=5))(ask.function)())
    assert seen == ["", "a"]
    assert isinstance(caught.value.__cause__, IdleTimeout)
    assert ask.closed == 1


async def test_the_deadline_is_over_everything():
    ask = Scripted("async", (Wait(5), RESET))
    with pytest.raises((DeadlineExceeded, ConnectionResetError)):
        await clocked(Deadline(12), retry(10))(ask.function)()
    assert anyio.current_time() <= 13


async def test_cancellation_reaches_the_function_and_is_recorded():
    ended = []

    async def ask():
        try:
            await anyio.sleep(1000)
        finally:
            ended.append(True)

    with capture() as calls, anyio.move_on_after(3):
        await clocked(retry(), AttemptTimeout(total=100))(ask)()
    assert ended == [True]
    assert calls[-1].trace.attempts[0].state == "cancelled"
    assert len(calls[-1].trace) == 1


async def test_cancelled_while_reading():
    ask = Scripted("async_items", ("a", Wait(1000), "b"))
    with capture() as calls, anyio.move_on_after(3):
        async for _ in clocked(retry())(ask.function)():
            pass
    assert ask.closed == 1
    assert calls[-1].trace.attempts[0].state == "cancelled"
    assert calls[-1].text == "a"


@pytest.mark.parametrize("how", ["aclose", "aclosing", "athrow"])
async def test_a_stream_that_is_left_is_closed(how):
    ask = Scripted("async_items", ("a", "b"))
    stream = clocked(retry())(ask.function)()
    if how == "aclosing":
        async with aclosing(stream):
            assert await anext(stream) == "a"
    else:
        assert await stream.asend(None) == "a"
        if how == "aclose":
            await stream.aclose()
        else:
            with pytest.raises(KeyError):
                await stream.athrow(KeyError("x"))
    assert ask.closed == 1
    assert [item async for item in stream] == []


async def test_a_synchronous_fallback_runs_in_a_thread():
    fallback = Scripted("sync", "a")
    assert await resilient(retry(1), fallbacks=[fallback.function])(Scripted("async", RESET).function)() == "a"


async def test_a_synchronous_generator_may_be_the_fallback_of_a_stream():
    fallback = Scripted("items", ("a", "b"))
    decorated = resilient(retry(1), fallbacks=[fallback.function])(Scripted("async_items", RESET).function)
    assert [item async for item in decorated()] == ["a", "b"]
    assert fallback.closed == 1


async def test_a_coroutine_function_may_return_a_stream():
    ask = Scripted("async_items", RESET, ("a", "b"))

    async def opens():
        return ask.function()

    with capture() as calls:
        stream = await clocked(retry())(opens)()
        assert [item async for item in stream] == ["a", "b"]
    assert len(calls[-1].trace.attempts) == 2


async def test_calls_side_by_side_have_records_of_their_own():
    ask = clocked(retry())(Scripted("async", (Wait(1), "a")).function)
    with capture() as calls:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert len(calls) == 20
    assert len({id(record.trace) for record in calls}) == 20
    assert all(len(record.trace) == 1 for record in calls)
