"""no_waits: sleeps are over at once and are counted; limits stay real; nothing is global."""

import random
import time

import anyio
import pytest

from llmprod import (
    AsyncClient,
    AttemptTimeout,
    Client,
    FirstTokenTimeout,
    RateLimited,
    Retry,
    ServerError,
    resilient,
)
from llmprod.testing import HANG, NoWaits, Scripted, no_waits


async def test_backoff_and_retry_after_vanish():
    clock = no_waits()
    model = Scripted(RateLimited(retry_after=50), [7, "Hello"])
    started = time.monotonic()
    async with AsyncClient(model, clock=clock) as client:
        response = await client.generate("Hi")
    assert time.monotonic() - started < 40
    assert response.text == "Hello"
    assert len(clock.waits) == 2
    assert 50 <= clock.waits[0] <= 55
    assert clock.waits[1] == 7
    assert clock.skipped == sum(clock.waits)
    assert response.timing.total >= clock.skipped
    assert repr(clock) == f"<NoWaits of 2 waits, {clock.skipped:g} s>"


def test_with_the_synchronous_client():
    clock = no_waits()
    with Client(Scripted(ServerError(), ServerError(), "Hi"), clock=clock, random=random.Random(1)) as client:
        assert client.generate("Hi").text == "Hi"
    assert len(clock.waits) == 2


async def test_a_deadline_counts_what_was_skipped():
    model, clock = Scripted(RateLimited(retry_after=6), RateLimited(retry_after=6), "too late"), no_waits()
    async with AsyncClient(model, clock=clock) as client:
        with pytest.raises(RateLimited):
            await client.generate("Hi", deadline=10)
    assert 6 <= clock.skipped < 7  # a second wait would have passed the deadline


async def test_attempt_timeouts_stay_real():
    clock = no_waits()
    started = time.monotonic()
    async with AsyncClient(Scripted(HANG), wrappers=[AttemptTimeout(first_token=0.1)], clock=clock) as client:
        with pytest.raises(FirstTokenTimeout):
            async with client.stream("Hi"):
                pass
    assert time.monotonic() - started > 0.09
    assert clock.waits == []


async def test_other_tasks_run_in_a_wait():
    clock, ran = no_waits(), []

    async def other():
        ran.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await clock.sleep(3600)
        await clock.sleep(0)
        assert ran == ["other"]
    assert clock.waits == [3600, 0]


async def test_a_cancelled_task_does_not_sleep_on():
    clock = no_waits()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await clock.sleep(5)
        raise AssertionError("the cancellation was swallowed")
    assert scope.cancelled_caught


def test_on_clients_and_functions_that_are_there_already():
    model = Scripted(ServerError(), "one", ServerError(), "two")
    failures = iter([ServerError(), None])

    @resilient(Retry(3))
    def ask():
        if failure := next(failures):
            raise failure
        return "asked"

    with Client(model) as client:
        before = client._clock
        with no_waits().on(client, ask) as clock:
            assert client.generate("Hi").text == "one"
            assert ask() == "asked"
        assert len(clock.waits) == 2
        assert client._clock is before
        with pytest.raises(KeyError), NoWaits().on(client):
            raise KeyError
        assert client._clock is before


def test_on_something_else():
    with pytest.raises(TypeError, match="got Scripted; allowed: clients and decorated functions"):
        with no_waits().on(Scripted()):
            pass
