"""scripted_pair: a test answers calls by hand while they wait; whole and streamed, on both backends."""

import anyio
import pytest

from llmprod import (
    AsyncClient,
    AttemptTimeout,
    Failover,
    LoopClock,
    Overloaded,
    ReadError,
    ServerError,
    StreamInterrupted,
    ToolCall,
    TruncatedAnswer,
    Usage,
)
from llmprod.events import ToolCallDone
from llmprod.testing import scripted_pair
from tests.virtual_time import anyio_backend as anyio_backend
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, context


class Asker:
    """Asks in a task, and keeps what came of it."""

    def __init__(self, provider, request=WHOLE):
        self.provider, self.request = provider, request
        self.response = self.error = None
        self.seen = ""

    async def __call__(self):
        try:
            self.response = await self.provider.send(self.request, context())
            async with self.response:
                async for piece in self.response.text_stream():
                    self.seen += piece
        except Exception as error:
            self.error = error


async def test_a_whole_answer():
    provider, handle = scripted_pair("m")
    ask = Asker(provider)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        call = await handle.next_call()
        assert call.request is WHOLE
        assert call.context.clock.now() >= 0
        assert not call.ended
        assert handle.in_flight == 1
        await anyio.sleep(5)
        call.chunk("Hel")
        call.respond("lo")
    assert (ask.response.text, ask.response.provider) == ("Hello", "m")
    assert ask.response.usage == Usage(input=1, output=2)
    assert ask.response.timing.total == pytest.approx(5)
    assert (call.ended, call.cancelled, handle.in_flight) == (True, False, 0)
    assert [entry.state for entry in ask.response.trace.entries] == ["ok"]
    handle.assert_done()


async def test_a_stream_is_seen_as_it_is_said():
    provider, handle = scripted_pair()
    ask = Asker(provider, STREAM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        call = await handle.next_call()
        await anyio.wait_all_tasks_blocked()
        assert ask.response is None  # nothing was said: not committed
        for said in ("Hel", "lo"):
            before = ask.seen
            call.chunk(said)
            await anyio.wait_all_tasks_blocked()
            assert ask.seen == before + said
        call.chunk(ToolCallDone(ToolCall("1", "look", "{}"), 1))
        call.finish("tool_calls", usage=Usage(input=3, output=4))
    assert [tool.name for tool in ask.response.tool_calls] == ["look"]
    assert (ask.response.finish_reason, ask.response.usage.output) == ("tool_calls", 4)
    assert not call.cancelled


async def test_an_embedding():
    provider, handle = scripted_pair()
    for given, got in ((None, [[1.0, 0.0]]), ([[3.0]], [[3.0]])):
        ask = Asker(provider, EMBED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            (await handle.next_call()).respond(embeddings=given)
        assert ask.response.embeddings == got


async def test_failures_before_and_after_content():
    provider, handle = scripted_pair()
    ask = Asker(provider, STREAM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        (await handle.next_call()).fail(Overloaded())
    assert type(ask.error) is Overloaded
    ask = Asker(provider, STREAM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        call = await handle.next_call()
        call.chunk("Hel")
        call.fail(ReadError(in_stream=True))
    assert type(ask.error) is StreamInterrupted
    assert ask.error.partial_text == "Hel"
    assert not call.cancelled


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_cut(request_):
    provider, handle = scripted_pair()
    ask = Asker(provider, request_)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        call = await handle.next_call()
        call.chunk("Hel")
        call.cut()
    cause = ask.error.__cause__ if request_ is STREAM else ask.error
    assert type(cause) is TruncatedAnswer


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_the_caller_gives_up(request_):
    provider, handle = scripted_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Asker(provider, request_))
        call = await handle.next_call()
        if request_ is STREAM:
            call.chunk("Hel")
        await anyio.wait_all_tasks_blocked()
        assert not call.cancelled
        tasks.cancel_scope.cancel()
    assert call.cancelled
    assert call.ended
    await call.wait_cancelled()
    with pytest.raises(AssertionError, match=r"the caller of .* is gone"):
        call.chunk("lo")
    handle.assert_done()


async def test_a_timeout_and_a_closed_stream_are_seen_as_cancelled():
    provider, handle = scripted_pair()
    async with anyio.create_task_group() as tasks:
        ask = Asker(AttemptTimeout(idle=3)(provider), STREAM)
        tasks.start_soon(ask)
        call = await handle.next_call()
        call.chunk("Hel")
        await call.wait_cancelled()
    assert type(ask.error) is StreamInterrupted
    async with anyio.create_task_group() as tasks:

        async def one_piece():
            async with await provider.send(STREAM, context()) as response:
                await anext(response)

        tasks.start_soon(one_piece)
        call = await handle.next_call()
        call.chunk("Hel", "lo")
        await call.wait_cancelled()


async def test_waiting_for_a_cancellation_that_does_not_come():
    provider, handle = scripted_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Asker(provider))
        call = await handle.next_call()
        with pytest.raises(AssertionError, match="still waits after 2 s"):
            await call.wait_cancelled(2)
        call.respond("Hi")
    with pytest.raises(AssertionError, match="ended with its answer"):
        await call.wait_cancelled()
    for verb in (call.respond, call.finish, call.cut, lambda: call.fail(ServerError())):
        with pytest.raises(AssertionError, match="answered to its end"):
            verb()


async def test_calls_come_in_order_and_unexpected_ones_are_found():
    provider, handle = scripted_pair()
    await handle.assert_no_call(10)
    async with anyio.create_task_group() as tasks:
        for request in (WHOLE, STREAM):
            tasks.start_soon(Asker(provider, request))
            await anyio.wait_all_tasks_blocked()
        first = await handle.next_call()
        assert first.request is WHOLE
        with pytest.raises(AssertionError, match="a call that nobody expected"):
            await handle.assert_no_call()
        with pytest.raises(AssertionError, match="2 calls are left"):
            handle.assert_done()
        second = await handle.next_call()
        await handle.assert_no_call()
        with pytest.raises(AssertionError, match="no call within 3 s; 2 came before"):
            await handle.next_call(3)
        second.respond("two")
        first.respond("one")
    assert [call.request for call in handle.calls] == [WHOLE, STREAM]
    handle.assert_done()


async def test_a_call_that_begins_just_now_is_no_no_call():
    provider, handle = scripted_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Asker(provider))
        with pytest.raises(AssertionError, match="nobody expected"):
            await handle.assert_no_call()
        (await handle.next_call()).respond("Hi")


async def test_answered_calls_that_nobody_took_are_left():
    provider, handle = scripted_pair()
    with anyio.move_on_after(1):
        await provider.send(WHOLE, context())
    with pytest.raises(AssertionError, match="1 calls are left"):
        handle.assert_done()


async def test_a_failover_driven_by_hand():
    (a, first), (b, second) = scripted_pair("a"), scripted_pair("b")
    ask = Asker(Failover(a, b), STREAM)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        call = await first.next_call()
        await second.assert_no_call(30)
        call.fail(Overloaded())
        (await second.next_call()).respond("from b")
    assert ask.seen == "from b"


async def test_under_a_client():
    provider, handle = scripted_pair()
    async with AsyncClient(provider, clock=LoopClock()) as client, anyio.create_task_group() as tasks:
        seen = []

        async def ask():
            seen.append((await client.generate("Hi")).text)

        tasks.start_soon(ask)
        (await handle.next_call()).fail(ServerError())
        (await handle.next_call()).respond("Hello")
    assert seen == ["Hello"]


def test_made_outside_an_event_loop():
    _, handle = scripted_pair()
    assert repr(handle) == "<ScriptHandle of 0 calls, 0 in flight>"
