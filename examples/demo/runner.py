"""Runs the traffic through both sides at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from time import monotonic

from llmprod.mechanisms.circuit_breaker import BreakerState

from . import bare, servers, stack
from .score import Result, Score
from .traffic import Call

SAMPLE_EVERY = 0.1


@dataclass(slots=True)
class TargetState:
    """What is known of one target now."""

    name: str
    route: str
    breaker: BreakerState = BreakerState.CLOSED
    opens_in: float = 0.0
    opened: int = 0
    in_flight: int = 0
    fault: servers.Fault | None = None
    history: list[tuple[float, BreakerState]] = field(default_factory=list)


@dataclass(slots=True)
class Board:
    """All that the view and the report show."""

    seconds: float
    seed: int
    total: int
    ours: Score = field(default_factory=lambda: Score("llmprod"))
    bare: Score = field(default_factory=lambda: Score("bare httpx"))
    targets: list[TargetState] = field(default_factory=list)
    started: float | None = None
    finished: bool = False

    @property
    def elapsed(self) -> float:
        return 0.0 if self.started is None else monotonic() - self.started


async def run(board: Board, calls: Sequence[Call], show: Callable[[], Awaitable[None]]) -> None:
    """Fill the board; ``show`` runs beside it until all is done."""
    with ExitStack() as running:
        ours = servers.start(running, calls, board.seconds, board.seed, ["primary", "fallback"])
        theirs = servers.start(running, calls, board.seconds, board.seed, ["primary"])
        async with AsyncExitStack() as open_clients:
            client = await open_clients.enter_async_context(
                stack.client(f"{ours.url('primary')}/v1", ours.url("fallback"), board.seed)
            )
            plain = bare.Bare(f"{theirs.url('primary')}/v1", timeout=stack.BARE_TIMEOUT)
            open_clients.push_async_callback(plain.aclose)
            board.targets = [TargetState(name, route) for name, route in stack.ROUTES.items()]
            async with asyncio.TaskGroup() as beside:
                tasks = [beside.create_task(show()), beside.create_task(_watch(board, client, ours))]
                ours.reset()
                theirs.reset()
                board.started = monotonic()
                async with asyncio.TaskGroup() as group:
                    for call in calls:
                        await asyncio.sleep(call.at - board.elapsed)
                        group.create_task(_record(board.ours, lambda call=call: stack.ask(client, call)))
                        group.create_task(_record(board.bare, lambda call=call: bare.ask(plain, call)))
                board.finished = True
                for task in tasks:
                    task.cancel()


async def _record(score: Score, ask: Callable[[], Awaitable[Result]]) -> None:
    score.in_flight += 1
    try:
        score.add(await ask())
    finally:
        score.in_flight -= 1


async def _watch(board: Board, client: stack.AsyncClient, running: servers.Servers) -> None:
    """Sample breakers, requests in flight and the script's faults."""
    breakers = dict(stack.breakers(client.provider))
    while True:
        for target in board.targets:
            breaker = breakers[target.name]
            state, opens_in = breaker.state, breaker.retry_after
            target.opened += opens_in > target.opens_in  # it only runs down while the breaker stays open
            target.breaker, target.opens_in = state, opens_in
            target.in_flight = running.in_flight(target.route)
            target.fault = servers.fault_at(target.route, board.elapsed, board.seconds)
            target.history.append((board.elapsed, state))
        await asyncio.sleep(SAMPLE_EVERY)
