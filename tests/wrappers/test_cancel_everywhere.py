"""Cancelled at any await, whole or streaming, every wrapper gives all back and records nothing that did not happen."""

import pytest

from llmprod import (
    AttemptTimeout,
    BreakerOptions,
    CircuitBreaker,
    Deadline,
    Failover,
    LoopClock,
    Overloaded,
    RateLimited,
    ReadError,
    Retry,
    ServerError,
    standard,
)
from llmprod.events import Start
from llmprod.mechanisms.circuit_breaker import Breaker, BreakerState
from llmprod.testing.scripted import Scripted
from llmprod.wrapper import _children
from llmprod.wrappers.circuit_breaker import _CircuitBreakerProvider
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import STREAM, WHOLE, Drawn, context

BAD_START = [Start("m"), 0.5, ReadError(in_stream=True)]
ANSWER = [0.5, "Hel", 0.5, "lo", 0.5]


def breakers(provider) -> list[Breaker]:
    own = [provider.breaker] if isinstance(provider, _CircuitBreakerProvider) else []
    return own + [breaker for child in _children(provider) for breaker in breakers(child)]


def scripted(*steps, name="a") -> Scripted:
    return Scripted(*steps, then=ANSWER, name=name)


def in_half_open() -> Breaker:
    made = Breaker(BreakerOptions(consecutive_failures=1, trials=1), clock=LoopClock(), random=Drawn())
    made.acquire().failure()
    made._open_until = 0.0
    return made


# What to build around how many targets, and how the targets behave.
STACKS = {
    "deadline": (lambda a, b: Deadline(60)(a), [ANSWER]),
    "attempt timeout": (lambda a, b: AttemptTimeout()(a), [ANSWER]),
    "retry": (lambda a, b: Retry(3)(a), [BAD_START, RateLimited(retry_after=2), ANSWER]),
    "failover": (lambda a, b: Failover(a, b), [Overloaded()]),
    "breaker": (lambda a, b: CircuitBreaker(clock=LoopClock())(a), [ANSWER]),
    "breaker, half open": (lambda a, b: CircuitBreaker(breaker=in_half_open())(a), [ANSWER]),
    "standard": (
        lambda a, b: standard(a, [b], clock=LoopClock(), random=Drawn()),
        [ServerError(), BAD_START, Overloaded(), ANSWER],
    ),
}


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("stack", STACKS)
async def test_cancelled_anywhere(stack, request_):
    build, steps = STACKS[stack]

    def scenario():
        a, b = scripted(*steps), scripted(*([Overloaded()] if stack == "standard" else []), name="b")
        provider = build(a, b)
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
            good, bad = 0, 0
            for breaker in breakers(provider):
                assert breaker._trials == breaker._insisted == []
                good, bad = good + sum(breaker._good._counts), bad + sum(breaker._bad._counts)
            if breakers(provider) and stack != "breaker, half open":
                assert good == ended.count("ok")
                assert bad == ended.count("failed")
            if stack == "breaker, half open" and ended != ["ok"]:
                assert breakers(provider)[0].state is BreakerState.HALF_OPEN

        return run(), check

    assert await sweep(scenario) >= (4 if request_ is STREAM else 2)
