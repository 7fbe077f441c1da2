"""What the tests of the cache share: requests that are not sampled, and a cache in virtual time."""

from dataclasses import replace
from typing import Any

import anyio
import sniffio

from llmprod import LoopClock
from llmprod.stores.memory import MemoryStore
from llmprod.wrappers.cache import Cache
from tests.cancel_sweep import Stepper, sweep
from tests.wrappers.helpers import STREAM, WHOLE

ASKED = replace(WHOLE, temperature=0)
STREAMED = replace(STREAM, temperature=0)


def memory() -> MemoryStore:
    return MemoryStore(clock=LoopClock())


def caching(**options: Any) -> Cache:
    return Cache(**{"store": memory(), "now": anyio.current_time, "early": 0, **options})


def decided(response: Any, kind: type) -> list[Any]:
    return [decision for decision in response.trace.decisions if isinstance(decision, kind)]


def kinds(response: Any) -> list[str]:
    return [type(decision).__name__ for decision in response.trace.decisions]


async def sweep_shared(scenario: Any) -> int:
    """``sweep`` for calls that share a task: on trio, who of two tasks comes first is drawn, and with it the count."""
    if sniffio.current_async_library() == "asyncio":
        return await sweep(scenario)
    reached = 0
    for _ in range(3):
        for place in range(1, 12):
            coroutine, check = scenario()
            with anyio.CancelScope() as scope:
                stepper = Stepper(coroutine, place, scope.cancel)
                await stepper
                await anyio.lowlevel.checkpoint()
                assert stepper.count < place, f"the cancellation at suspension {place} was swallowed"
            reached = max(reached, min(place, stepper.count))
            check()
    return reached
