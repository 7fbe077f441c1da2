"""AttemptTimeout: four clocks, told apart by the error that they raise."""

import anyio
import pytest

from llmprod import (
    AttemptTimedOut,
    AttemptTimeout,
    FirstTokenTimeout,
    GenerateRequest,
    IdleTimeout,
    StreamInterrupted,
    Usage,
    UsageUpdate,
)
from llmprod.events import Start
from llmprod.testing.scripted import HANG, Scripted
from tests.wrappers.helpers import EMBED, HI, STREAM, WHOLE, ask, context


async def test_connect_and_idle_reach_the_provider_that_opens_connections():
    provider = Scripted("Hi", "Hi")
    await ask(AttemptTimeout(connect=3, idle=7)(provider))
    assert (provider.contexts[0].connect_timeout, provider.contexts[0].idle_timeout) == (3, 7)
    await ask(AttemptTimeout(connect=None, idle=None)(provider))
    assert (provider.contexts[1].connect_timeout, provider.contexts[1].idle_timeout) == (None, None)


async def test_no_first_token():
    # Start-up events are no content.
    provider = Scripted([1.0, Start("m"), UsageUpdate(Usage(input=5)), HANG])
    with pytest.raises(FirstTokenTimeout) as caught:
        await AttemptTimeout(first_token=10)(provider).send(STREAM, context())
    assert anyio.current_time() == pytest.approx(10)
    assert caught.value.limit == 10
    assert caught.value.silent
    assert provider.in_flight == provider.open_sources == 0


async def test_a_stream_that_stalls():
    provider = Scripted(["a", 4.0, "b", 6.0, "c"])
    response = await AttemptTimeout(idle=5)(provider).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, IdleTimeout)
    assert caught.value.partial_text == "ab"
    assert anyio.current_time() == pytest.approx(9)
    assert provider.in_flight == provider.open_sources == 0


async def test_a_stream_may_take_as_long_as_it_moves():
    pieces = [item for _ in range(1000) for item in ("a", 4.0)]
    response = await ask(AttemptTimeout(first_token=1, idle=5)(Scripted(pieces)), STREAM)
    assert len(response.text) == 1000
    assert anyio.current_time() == pytest.approx(4000)


async def test_idle_is_the_pause_between_events_not_the_readers_pace():
    response = await AttemptTimeout(idle=5)(Scripted(["a", "b", 1.0, "c"])).send(STREAM, context())
    async for _ in response:
        await anyio.sleep(60)
    assert response.text == "abc"


async def test_a_total_bounds_a_stream_too():
    response = await AttemptTimeout(total=10, idle=None)(Scripted(["a", 8.0, "b", 8.0, "c"])).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, AttemptTimedOut)
    assert caught.value.partial_text == "ab"
    assert anyio.current_time() == pytest.approx(10)


async def test_a_total_tighter_than_the_first_token_limit():
    with pytest.raises(AttemptTimedOut):
        await AttemptTimeout(total=10, first_token=30)(Scripted([HANG])).send(STREAM, context())
    assert anyio.current_time() == pytest.approx(10)


async def test_a_whole_answer_that_takes_too_long():
    provider = Scripted([HANG])
    with pytest.raises(AttemptTimedOut):
        await AttemptTimeout(total=10)(provider).send(WHOLE, context())
    assert anyio.current_time() == pytest.approx(10)
    assert provider.in_flight == 0


@pytest.mark.parametrize(
    ("options", "request_", "expected"),
    [
        ({}, STREAM, (30, None)),
        ({}, GenerateRequest(messages=HI, stream=True, reasoning_effort="high"), (60, None)),
        ({}, GenerateRequest(messages=HI, stream=True, reasoning_effort="minimal"), (30, None)),
        ({}, GenerateRequest(messages=HI, stream=True, reasoning_effort="none"), (30, None)),
        ({}, WHOLE, (None, 30 + 0.05 * 4096)),
        ({}, GenerateRequest(messages=HI, max_tokens=100), (None, 35)),
        ({}, GenerateRequest(messages=HI, max_tokens=100, reasoning_effort="low"), (None, 65)),
        ({}, GenerateRequest(messages=HI, max_tokens=10**6), (None, 600)),
        ({}, EMBED, (None, 30)),
        ({"first_token": 10}, EMBED, (None, 10)),
        ({"first_token": None}, WHOLE, (None, None)),
        ({"first_token": None}, STREAM, (None, None)),
        ({"total": 50}, WHOLE, (None, 50)),
        ({"total": 50}, STREAM, (30, 50)),
        ({"total": None}, WHOLE, (None, None)),
        ({"total": None}, STREAM, (30, None)),
    ],
)
def test_the_limits_of_each_kind_of_request(options, request_, expected):
    assert AttemptTimeout(**options).limits(request_) == pytest.approx(expected)


async def test_without_limits_nothing_is_limited():
    wrapper = AttemptTimeout(connect=None, first_token=None, idle=None, total=None)
    assert (await ask(wrapper(Scripted([9999.0, "Hi"])))).text == "Hi"
    assert (await ask(wrapper(Scripted([9999.0, "H", 9999.0, "i"])), STREAM)).text == "Hi"


async def test_the_trace_tells_the_limit_and_not_a_cancellation():
    told = context()
    with pytest.raises(FirstTokenTimeout):
        await AttemptTimeout(first_token=10)(Scripted([HANG])).send(STREAM, told)
    (entry,) = told.trace.entries
    assert (entry.state, entry.error, entry.seconds) == ("failed", "FirstTokenTimeout", pytest.approx(10))


async def test_the_callers_own_cancellation_stays_one():
    told = context()
    provider = Scripted([HANG])
    with anyio.move_on_after(5) as scope:
        await AttemptTimeout(first_token=10)(provider).send(STREAM, told)
    assert scope.cancelled_caught
    assert told.trace.entries[0].state == "cancelled"
    assert provider.in_flight == 0


async def test_an_error_of_the_provider_passes():
    with pytest.raises(ZeroDivisionError):
        await AttemptTimeout()(Scripted([1.0, ZeroDivisionError()])).send(WHOLE, context())
