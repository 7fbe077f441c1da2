"""A hedged call cancelled at any await: nothing leaks, no breaker and no budget records what did not happen."""

import asyncio

import anyio
import anyio.lowlevel
import pytest
import sniffio

from llmprod import (
    AttemptTimeout,
    CircuitBreaker,
    Failover,
    LoopClock,
    Overloaded,
    Retry,
    RetryBudget,
    ServerError,
    Stack,
)
from llmprod.decisions import HedgeEnded, HedgeStarted
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.hedge import Hedge
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, context

SLOW = [9, "one", 0.5, "more"]
QUICK = [0.5, "two", 0.5, "more"]
# How the primary and the hedge behave; the hedge begins after one second.
CASES = {
    "the hedge wins": ([SLOW], [QUICK]),
    "the primary wins": ([[1.2, "one", 0.5, "more"]], [SLOW]),
    "no hedge": ([[0.2, "one", 0.5]], []),
    "the primary fails": ([[1.2, Overloaded()]], [[2, "two"]]),
    "the hedge fails": ([[2, "one"]], [[0.2, Overloaded()]]),
    "a retry": ([[1.2, ServerError()], SLOW], [[0.4, ServerError()], QUICK]),
}


@pytest.mark.parametrize("request_", [WHOLE, STREAM, EMBED], ids=["whole", "stream", "embed"])
@pytest.mark.parametrize("case", CASES)
async def test_cancelled_anywhere(case, request_):
    def scenario():
        a, b = (Scripted(*steps, name=name) for name, steps in zip("ab", CASES[case], strict=True))
        inside = Stack(CircuitBreaker(clock=LoopClock(), random=Drawn()), AttemptTimeout())
        budget = RetryBudget(ratio=0, reserve=10, clock=LoopClock())
        hedge = Hedge(delay=1.0, budget=1.0, clock=LoopClock())(Failover(inside(a), inside(b), clock=LoopClock()))
        provider = Retry(budget=budget, clock=LoopClock())(hedge)
        told = context()

        async def run():
            response = await provider.send(request_, told)
            async with response:
                await response.read()
            return response

        def check():
            assert [a.in_flight, b.in_flight, a.open_sources, b.open_sources] == [0, 0, 0, 0]
            ended = [entry.state for entry in told.trace.entries]
            assert "running" not in ended
            assert "abandoned" not in ended
            breakers = [target.breaker for target in hedge.inner.targets]
            assert all(breaker._trials == [] for breaker in breakers)
            assert sum(sum(breaker._good._counts) for breaker in breakers) == ended.count("ok")
            assert sum(sum(breaker._bad._counts) for breaker in breakers) == ended.count("failed")
            kinds = [type(decision) for decision in told.trace.decisions]
            assert kinds.count(HedgeStarted) == kinds.count(HedgeEnded)
            # One attempt a call is free, and each further one that reached a provider took one leave.
            assert 10 - budget.balance() == max(0, told.call.attempts - 1)
            hedges = hedge.budget._calls.total(0) - hedge.budget.balance()  # a call earns one here
            assert hedges == kinds.count(HedgeStarted)

        return run(), check

    assert await sweep(scenario) >= (3 if request_ is STREAM else 1)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("side", ["primary", "hedge"])
async def test_cancelled_as_one_side_commits(side, native):
    """The answer is there and the caller is gone before it can be handed over."""
    if native and sniffio.current_async_library() != "asyncio":
        return
    scope = anyio.CancelScope()
    task = asyncio.current_task() if native else None

    async def commit(request, context):
        await anyio.sleep(0.5 if side == "hedge" else 1.5)
        response = await Scripted(["x", 1, "y"])._send(request, context, ())
        if task is not None:
            task.cancel()
        else:
            scope.cancel()
        return response

    a = Scripted(commit if side == "primary" else SLOW, name="a")
    b = Scripted(commit if side == "hedge" else SLOW, name="b")
    closed = []
    hedge = Hedge(delay=1.0, budget=1.0, clock=LoopClock())(Failover(a, b, clock=LoopClock()))
    told = context()
    with scope:
        try:
            response = await hedge.send(STREAM, told)
            response.on_close(closed.append)
            await response.aclose()
            if native:
                await anyio.lowlevel.checkpoint()
        except asyncio.CancelledError:
            if task is None:
                raise
            task.uncancel()
    assert (a.in_flight, b.in_flight) == (0, 0)
    assert [entry.state for entry in told.trace.entries if entry.state == "running"] == []
    assert [type(each) for each in told.trace.decisions] == [HedgeStarted, HedgeEnded]
