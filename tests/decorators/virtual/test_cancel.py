"""Cancelled at any await, a decorated function leaves nothing open behind."""

from __future__ import annotations

import pytest

from llmprod import AttemptTimeout, Breaker, BreakerOptions, CircuitBreaker, Deadline, LoopClock, capture, resilient
from tests.cancel_sweep import sweep
from tests.decorators.scripted import Scripted, Wait, aread_into, retry

RESET = ConnectionResetError()


@pytest.mark.parametrize("kind", ["async", "async_items"])
async def test_cancelled_anywhere(kind):
    def scenario():
        breaker = Breaker(BreakerOptions(), clock=LoopClock())
        ask = Scripted(kind, (Wait(1), RESET), (Wait(1), "a", Wait(1), "b"))
        wrappers = (Deadline(60), retry(), CircuitBreaker(breaker=breaker), AttemptTimeout())
        decorated = resilient(*wrappers, clock=LoopClock())(ask.function)
        records = []

        async def main():
            with capture() as calls:
                try:
                    if kind == "async":
                        await decorated()
                    else:
                        await aread_into([], decorated())
                finally:
                    records.extend(calls)

        def check():
            if kind == "async_items":
                assert ask.closed == len(ask.calls)
            for record in records:
                assert all(attempt.state != "running" for attempt in record.trace.entries)

        return main(), check

    assert await sweep(scenario) > 3
