"""The callers, in a process of their own: ``python -m benchmarks.overload.client CONTESTANT PLAN URL``.

An open loop: calls begin when the plan says so, whatever became of those before. Each is given up at the deadline. A
line with a time of the monotonic clock starts it; at the end every call's start, length and error are printed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.loopback import read_line, say
from benchmarks.overload.contestants import CONTESTANTS
from benchmarks.overload.plan import Plan

Ask = Callable[[str], Awaitable[str]]

_SLACK = 0.25
"""Seconds past the deadline until a call is cancelled: a library with a deadline of its own can end it by then."""


async def _call(ask: Ask, number: int, deadline: float) -> tuple[float, float, str]:
    started = time.monotonic()
    error = ""
    try:
        async with asyncio.timeout(deadline + _SLACK):
            text = await ask(f"call {number}")
        if text != f"answer {number}":
            error = "WrongAnswer"
        elif time.monotonic() - started > deadline:
            error = "TooLate"
    except Exception as failure:
        error = type(failure).__name__
    return started, time.monotonic() - started, error


async def _main(name: str, plan: Plan, url: str) -> None:
    ask = CONTESTANTS[name](f"{url}/v1", plan.deadline)
    await asyncio.gather(*(_call(ask, number, 60) for number in range(plan.slots // 2)))  # imports, connections
    gc.freeze()
    say("ready")
    began = float(await read_line())
    tasks: list[asyncio.Task[tuple[float, float, str]]] = []
    for number, at in enumerate(plan.arrivals()):
        if (wait := began + at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_call(ask, number, plan.deadline)))
    ended = await asyncio.gather(*tasks)
    say([(started - began, took, error) for started, took, error in ended])


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(_main(sys.argv[1], Plan.from_json(sys.argv[2]), sys.argv[3]))
