"""Deadline: an absolute end of the whole call, waiting and reading included."""

import anyio
import pytest

from llmprod import (
    AsyncClient,
    Deadline,
    DeadlineExceeded,
    LoopClock,
    RateLimited,
    Retry,
    StreamInterrupted,
)
from llmprod.testing.scripted import HANG, Scripted
from tests.wrappers.helpers import STREAM, WHOLE, ask, context


async def test_a_call_in_time_is_untouched():
    assert (await ask(Deadline(10)(Scripted([9.9, "Hi"])))).text == "Hi"


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_it_ends_a_call_that_takes_too_long(request_):
    provider = Scripted([HANG])
    with pytest.raises(DeadlineExceeded) as caught:
        await Deadline(10)(provider).send(request_, context())
    assert anyio.current_time() == pytest.approx(10)
    assert caught.value.limit == pytest.approx(10)
    assert provider.in_flight == provider.open_sources == 0


async def test_it_ends_a_stream_that_has_begun():
    provider = Scripted([1.0, "Hel", 5.0, "lo", HANG])
    response = await Deadline(10)(provider).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert caught.value.partial_text == "Hello"
    assert anyio.current_time() == pytest.approx(10)
    assert provider.in_flight == provider.open_sources == 0


async def test_a_drip_does_not_outlive_it():
    drip = [item for number in range(100) for item in (1.0, str(number))]
    response = await Deadline(10.5)(Scripted(drip)).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert caught.value.partial_text == "0123456789"
    assert anyio.current_time() == pytest.approx(10.5)


async def test_the_tighter_of_two_stands():
    for outer, seconds in ((60, 5), (5, 60)):
        started = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            await Deadline(outer)(Scripted([HANG])).send(WHOLE, context(seconds=seconds))
        assert anyio.current_time() - started == pytest.approx(5)


async def test_what_is_inside_knows_how_much_is_left():
    provider = Scripted("Hi")
    await Deadline(30)(provider).send(WHOLE, context())
    assert provider.contexts[0].remaining == pytest.approx(30)


async def test_nothing_is_asked_once_it_is_past():
    provider = Scripted("Hi")
    late = context(seconds=5)
    await anyio.sleep(5)
    with pytest.raises(DeadlineExceeded, match="before asking scripted"):
        await Deadline(60)(provider).send(WHOLE, late)
    assert provider.calls == 0


async def test_a_retry_that_can_not_fit_is_not_begun():
    provider = Scripted(RateLimited(retry_after=20), "unreached")
    with pytest.raises(RateLimited):
        await ask(Deadline(15)(Retry()(provider)))
    assert anyio.current_time() == 0  # at once: nobody waits for nothing
    assert provider.calls == 1


async def test_the_clients_deadline_is_for_one_call():
    for wrappers in ([], [Deadline(100)]):
        client = AsyncClient(Scripted([HANG], [8.0, "Hi"]), wrappers=wrappers, clock=LoopClock())
        with pytest.raises(DeadlineExceeded):
            await client.generate("Hi", deadline=5)
        assert (await client.generate("Hi", deadline=9)).text == "Hi"


async def test_an_answer_read_too_late_is_not_lost():
    provider = Scripted(["Hel", "lo"])
    response = await Deadline(10)(provider).send(STREAM, context())
    await anyio.sleep(20)
    # What is there already takes no more time.
    assert [await response.__anext__() for _ in range(2)][1].text == "Hel"
    await response.aclose()
    assert provider.in_flight == 0
