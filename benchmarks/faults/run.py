"""Runs scenarios against a client, all at once: each has servers of its own, so they don't disturb each other."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import anyio

from benchmarks.faults.judge import Ended, Judgement, judge
from llmprod.testing.fault_server import FaultServer
from llmprod.testing.scenarios import SCENARIOS, Scenario

PROMPT = "Count to sixty."
MAX_TOKENS = 256
_CANCEL_AFTER = 1.6
_LONGEST = 110.0
_MARGIN = 5.0


class Caller(Protocol):
    """A client under test, with a primary and a fallback route, called once or many times."""

    async def call(self, *, stream: bool, deadline: float | None, tools: bool) -> Ended:
        """Ask once and tell how it ended; never raises."""
        ...

    async def aclose(self) -> None:
        """Close the client."""
        ...


MakeCaller = Callable[[str, str], Awaitable[Caller] | Caller]
"""Makes a caller from the addresses of the two routes (``…/v1``)."""


@dataclass(frozen=True)
class Result:
    """One scenario, whole or streamed, judged."""

    scenario: Scenario
    stream: bool
    judgement: Judgement
    calls: list[Ended]


async def run(
    make: MakeCaller, ids: Iterable[str] | None = None, *, modes: tuple[bool, ...] = (False, True)
) -> list[Result]:
    """Run the scenarios (default all) whole and streamed; in real time, about a minute and a half."""
    results: list[Result] = []

    async def one(scenario: Scenario, stream: bool) -> None:
        results.append(await _scenario(make, scenario, stream))

    async with anyio.create_task_group() as group:
        for name in ids or SCENARIOS:
            for stream in modes:
                if name == "X11" and not stream:
                    continue
                group.start_soon(one, SCENARIOS[name], stream)
    return sorted(results, key=lambda result: (result.scenario.id[0] != "S", result.scenario.id, result.stream))


async def _scenario(make: MakeCaller, scenario: Scenario, stream: bool) -> Result:
    routes = scenario.routes()
    calls: list[Ended] = []
    async with AsyncExitStack() as stack:
        first = stack.enter_context(FaultServer(routes.primary))
        second = stack.enter_context(FaultServer(routes.fallback))
        made = make(f"{first.url}/v1", f"{second.url}/v1")
        caller = await made if isinstance(made, Awaitable) else made
        try:
            for number in range(scenario.requests):
                started = time.monotonic()
                if scenario.id == "X11":
                    calls.append(await _cancelled(caller))
                    await anyio.sleep(0.5)
                else:
                    calls.append(await _bounded(caller, scenario, stream))
                if number < scenario.requests - 1:
                    await anyio.sleep(max(0.0, scenario.interval - (time.monotonic() - started)))
            judgement = judge(scenario, stream, calls, first.requests, second.requests)
        finally:
            await caller.aclose()
    return Result(scenario, stream, judgement, calls)


async def _bounded(caller: Caller, scenario: Scenario, stream: bool) -> Ended:
    """Call, but don't wait for ever for a client that would: past the scenario's bound it has failed anyway."""
    limit = (scenario.bound or _LONGEST) + _MARGIN
    with anyio.move_on_after(limit):
        return await caller.call(stream=stream, deadline=scenario.deadline, tools=scenario.id == "X08")
    return Ended("error", seconds=limit, error="no end")


async def _cancelled(caller: Caller) -> Ended:
    """Cancel a call in the middle of its answer, as a caller does who loses interest."""
    started = time.monotonic()
    with anyio.move_on_after(_CANCEL_AFTER):
        return await caller.call(stream=True, deadline=None, tools=False)
    return Ended("cancelled", seconds=time.monotonic() - started)


def as_json(results: list[Result]) -> str:
    """Results as JSON, one object a scenario and mode."""
    rows = [
        {
            "id": result.scenario.id,
            "title": result.scenario.title,
            "stream": result.stream,
            "grade": result.judgement.grade,
            "why": result.judgement.why,
            "seconds": round(max(call.seconds for call in result.calls), 2),
        }
        for result in results
    ]
    return json.dumps(rows, indent=1)
