"""Any order in which two attempts succeed and fail, against what the rules say, on both event loops."""

import asyncio
from typing import Any

import anyio
import looptime
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprod import AllTargetsFailed, BadRequest, Failover, LoopClock, NotFound
from llmprod.decisions import HedgeEnded, HedgeStarted
from llmprod.testing.scripted import Scripted
from llmprod.wrappers.hedge import Hedge
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, context

DELAY = 5.5
ENDS = {"ok": "x", "fails": NotFound(status=404), "fatal": BadRequest(status=400)}


def expected(a: tuple[int, str], b: tuple[int, str]) -> tuple[str, float, str | None]:
    """What comes of it, when, and who wins the race, if there is one."""
    primary, hedge = (float(a[0]), a[1], "a"), (DELAY + b[0], b[1], "b")
    if primary[0] < DELAY:
        if a[1] != "fails":
            return ("a" if a[1] == "ok" else "fatal"), primary[0], None
        # The router goes on to the other one, which may be slow in its turn; there is nobody left to hedge it with.
        return {"ok": "b", "fatal": "fatal", "fails": "all failed"}[b[1]], primary[0] + b[0], None
    first, second = sorted([primary, hedge])
    for at, end, name in (first, second):
        if end != "fails":
            winner = "none" if end == "fatal" else "primary" if name == "a" else "hedge"
            return ("fatal" if end == "fatal" else name), at, winner
    return "all failed", second[0], "none"


async def happens(request: Any, a: tuple[int, str], b: tuple[int, str]) -> tuple[str, float, str | None]:
    targets = [Scripted([float(seconds), ENDS[end]], name=name) for name, (seconds, end) in (("a", a), ("b", b))]
    provider = Hedge(delay=DELAY, budget=1.0, clock=LoopClock())(Failover(*targets, clock=LoopClock()))
    told = context()
    try:
        async with await provider.send(request, told) as response:
            outcome, at = response.provider, told.elapsed
            await response.read()
    except BadRequest:
        outcome, at = "fatal", told.elapsed
    except (AllTargetsFailed, NotFound):
        outcome, at = "all failed", told.elapsed
    assert [(target.in_flight, target.open_sources) for target in targets] == [(0, 0), (0, 0)]
    assert all(entry.state != "running" for entry in told.trace.entries)
    assert told.call.attempts == len(told.trace.attempts) <= 2
    ended = [each.winner for each in told.trace.decisions if isinstance(each, HedgeEnded)]
    assert len(ended) == sum(isinstance(each, HedgeStarted) for each in told.trace.decisions) <= 1
    assert provider.budget.balance() == pytest.approx(1 - len(ended))
    return outcome, at, ended[0] if ended else None


SIDE = st.tuples(st.integers(1, 12), st.sampled_from(list(ENDS)))


@settings(max_examples=150)
@given(request=st.sampled_from([WHOLE, STREAM, EMBED]), a=SIDE, b=SIDE)
def test_orders(request, a, b):
    wanted = expected(a, b)
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0)) as runner:
        outcome, at, winner = runner.run(happens(request, a, b))
    assert (outcome, pytest.approx(at, abs=0.01), winner) == wanted
    outcome, at, winner = anyio.run(
        lambda: happens(request, a, b),
        backend="trio",
        backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)},
    )
    assert (outcome, pytest.approx(at, abs=0.01), winner) == wanted
