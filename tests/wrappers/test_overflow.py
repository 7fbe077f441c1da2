"""Overflow: what a full target has no room for goes to another, and waits only where nobody else can serve it."""

import anyio
import pytest

from llmprod import (
    AllTargetsFailed,
    BulkheadFull,
    CallShed,
    CallWaited,
    Failover,
    FixedLimit,
    LoopClock,
    NotFound,
    lint,
)
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.overflow import Overflow
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import WHOLE, ask, context
from tests.wrappers.starting import Direct


def overflow(limit=1, **options) -> Overflow:
    return Overflow(limit, clock=LoopClock(), **options)


async def together(provider, count, **options) -> list:
    """Answers or errors of so many calls at once, in the order in which they ended."""
    ended: list = []

    async def one() -> None:
        try:
            ended.append((await ask(provider, **options)).text)
        except Exception as error:
            ended.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
    return ended


async def test_what_finds_no_room_goes_to_the_next_at_once():
    own, other = Scripted(then=[10.0, "A"], name="own"), Scripted(then="B", name="other")
    assert await together(Failover(overflow(2)(own), other), 5) == ["B", "B", "B", "A", "A"]
    assert anyio.current_time() == 10
    response = await ask(Failover(overflow(2)(own), other))
    assert response.text == "A"


async def test_the_refusal_is_told_and_is_no_attempt():
    own, other = Scripted(then=[10.0, "A"], name="own"), Scripted("B", name="other")
    stack = Failover(overflow()(own), other)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(1)
        response = await ask(stack)
    assert response.context.call.attempts == 1
    (shed,) = [decision for decision in response.trace.decisions if isinstance(decision, CallShed)]
    assert (shed.target, shed.reason, shed.waited) == ("own", "queue full", 0.0)


async def test_alone_it_is_a_bulkhead():
    own = Scripted(then=[10.0, "A"], name="own")
    for provider in (overflow()(own), Failover(overflow()(own))):
        began = anyio.current_time()
        assert await together(provider, 3) == ["A"] * 3
        assert anyio.current_time() - began == 30
    refused = await together(overflow(at_most_waiting=1)(own), 3)
    assert [type(error) for error in refused] == [BulkheadFull, str, str]
    refused = await together(overflow(wait_at_most=5)(own), 2)
    assert [type(error) for error in refused] == [BulkheadFull, str]


async def test_when_the_others_fail_calls_wait_in_line_after_all():
    own, other = Scripted(then=[10.0, "A"], name="own"), Scripted(then=NotFound(), name="other")
    stack = Failover(overflow()(own), other)
    assert await together(stack, 4) == ["A"] * 4
    assert (anyio.current_time(), own.calls, other.calls) == (40, 4, 3)


async def test_while_calls_wait_in_line_newcomers_go_to_the_others():
    own = Scripted(then=[10.0, "A"], name="own")
    other = Scripted(NotFound(), then="B", name="other")
    stack = Failover(overflow()(own), other)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(1)
        waiting = group
        waiting.start_soon(ask, stack)  # the other fails it: it waits in line
        await anyio.sleep(1)
        assert (await ask(stack)).text == "B"
        assert anyio.current_time() == 2
    assert (anyio.current_time(), own.calls) == (20, 2)


async def test_the_wait_is_told():
    own, other = Scripted(then=[10.0, "A"], name="own"), Scripted(then=NotFound(), name="other")
    stack = Failover(overflow()(own), other)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(4)
        response = await ask(stack)
    (waited,) = [decision for decision in response.trace.decisions if isinstance(decision, CallWaited)]
    assert (waited.target, waited.seconds) == ("own", pytest.approx(6))


async def test_a_line_is_waited_in_rather_than_a_start():
    full, starting = Scripted(then=[10.0, "A"], name="full"), Direct("B", start=500, name="starting")
    limit = FixedLimit(1)
    for order in (lambda a, b: Failover(a, b, Scripted(then=NotFound())), lambda a, b: Failover(b, a)):
        stack = order(overflow(limit)(full), starting)
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, overflow(limit)(full))
            await anyio.sleep(1)
            assert (await ask(stack)).text == "A"
        assert anyio.current_time() - began == 20


async def test_two_full_ones_fill_up_before_a_third_is_asked():
    one, two = (Scripted(then=[10.0, name], name=name) for name in ("one", "two"))
    third = Scripted(then="third", name="third")
    stack = Failover(Failover(overflow()(one), overflow()(two)), third)
    first, *later = await together(stack, 3)
    assert (first, sorted(later)) == ("third", ["one", "two"])
    third._then = NotFound()
    assert sorted(await together(stack, 4)) == ["one", "one", "one", "two"]


async def test_a_line_that_is_full_as_well_is_the_end():
    own, other = Scripted(then=[10.0, "A"], name="own"), Scripted(then=NotFound(), name="other")
    ended = await together(Failover(overflow(at_most_waiting=1)(own), other), 3)
    assert [type(error) for error in ended] == [AllTargetsFailed, str, str]


async def test_cancelled_anywhere():
    def scenario():
        own, other = Scripted(then=[0.5, "A"], name="own"), Scripted(then=[0.5, NotFound()], name="other")
        wrapped = overflow()(own)
        stack = Failover(wrapped, other)
        told = context()

        async def run():
            permit = wrapped.limit.acquire()
            assert permit is not None
            async with anyio.create_task_group() as group:
                try:
                    group.start_soon(later, permit)
                    async with await stack.send(WHOLE, told) as response:
                        await response.read()
                finally:
                    permit.release()

        async def later(permit):
            await anyio.sleep(3)
            permit.release()
            wrapped.line.wake()

        def check():
            assert wrapped.limit.in_flight == own.in_flight == other.in_flight == 0
            assert not wrapped.line.places

        return run(), check

    assert await sweep(scenario) >= 3


def test_it_says_what_it_is():
    own, other = Scripted(name="own"), Scripted(name="other")
    assert repr(overflow(3)) == "Overflow(3 at once, 1000 waiting)"
    assert lint(Failover(overflow(3)(own), other)) == []
