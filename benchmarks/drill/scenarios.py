"""The drills: a hosted provider that dies in four ways, an engine that is killed, and a burst that overflows."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from benchmarks.drill.traffic import HOSTED_TEXT, Call, Traffic, local, lost, quantile
from llmprod import (
    VLLM,
    AsyncClient,
    AttemptTimeout,
    ContinueText,
    OpenAI,
    Provider,
    Restart,
    Resume,
    RetryBudget,
    local_first,
    standard,
)
from llmprod.testing import Answer, Behaviour, Cut, ErrorReply, FaultServer

FIRST_TOKEN = 2.0
"""Seconds that an attempt may take to its first token."""

HEALTHY = Behaviour(answer=Answer(text=HOSTED_TEXT), first_token_delay=0.05, token_delay=0.01)

FAULTS: dict[str, Behaviour | None] = {
    "refuses connections": None,  # nobody listens
    "is silent": Behaviour(connection="silence"),
    "answers 529": Behaviour(error=ErrorReply(kind="overloaded", status=529)),
    "resets in mid-stream": Behaviour(
        answer=Answer(text=HOSTED_TEXT), first_token_delay=0.05, token_delay=0.01, cut=Cut(after=8, how="reset")
    ),
}


@dataclass(kw_only=True)
class Outage:
    """What an outage came to.

    Attributes:
        what: who failed, and how.
        took_over: seconds from the outage until a call that began in it had its first content from the other.
        longest_stream: most seconds to the first content of a stream that was under way or began in it.
        longest_whole: most seconds to a whole answer that was.
        came_back: seconds from its end until the first call that the one that had failed served again.
        ended: how the calls ended.
        lost: calls that were lost.
        restarted: seconds until the killed engine was ready again.
    """

    what: str
    took_over: float
    longest_stream: float
    longest_whole: float
    came_back: float
    ended: dict[str, int]
    lost: int
    restarted: float | None = None

    def row(self) -> str:
        """A line of the table."""
        again = "" if self.restarted is None else f" (ready after {self.restarted:.2f} s)"
        ended = ", ".join(f"{count} {how}" for how, count in sorted(self.ended.items()))
        waits = f"{self.longest_stream:.2f} s, {self.longest_whole:.2f} s"
        back = f"{self.came_back:.2f} s{again}"
        return f"| {self.what} | {self.took_over:.2f} s | {waits} | {back} | {ended} | {self.lost} |"


HEAD = (
    "| what happens | taken over after | longest: first token, whole answer | back after its end | calls | lost |\n"
    "|---|---|---|---|---|---|"
)


def hosted(server: FaultServer) -> OpenAI:
    """The provider that can be broken."""
    return OpenAI("hosted", base_url=f"{server.url}/v1", api_key="none")


def stacks(
    engine: VLLM, server: FaultServer, *, resume: bool = True, first_token: float = FIRST_TOKEN
) -> tuple[Provider, Provider]:
    """Hosted first with the engine behind it, and the engine first with hosted behind it."""
    options: dict[str, Any] = {
        "timeouts": AttemptTimeout(connect=first_token / 2, first_token=first_token, idle=first_token),
        "extra": [Resume(ContinueText(), Restart())] if resume else [],
        "budget": RetryBudget(ratio=1.0),  # all streams that an engine's death cuts at once may go on
        "deadline": 60.0,
    }
    return standard(hosted(server), [engine], **options), local_first(engine, hosted(server), **options)


async def hosted_dies(
    stack: Provider, server: FaultServer, fault: str, *, rate: float = 10.0, seconds: float = 3.0
) -> tuple[Outage, list[Call]]:
    """Break the hosted provider under traffic for ``seconds``, and wait until it serves again."""
    async with Traffic(stack, rate=rate).running() as traffic:
        await traffic.until(lambda call: not local(call), since=0.0)
        await anyio.sleep(1.0)
        behaviour = FAULTS[fault]
        began = traffic.now()
        if behaviour is None:
            await anyio.to_thread.run_sync(server.__exit__, None, None, None)
        else:
            server.down(behaviour)
        taken = await traffic.until(local, since=began)
        await anyio.sleep(max(0.0, seconds - (traffic.now() - began)))
        ended = traffic.now()
        if behaviour is None:
            await anyio.to_thread.run_sync(server.__enter__)
        server.up()
        # A call that the other side begins to serve and that its own reset cut does not count as back.
        back = await traffic.until(lambda call: not local(call) and call.result == "right", since=ended)
        await anyio.sleep(0.5)
    return _outage(f"hosted {fault}", traffic, began, ended, taken, back), traffic.calls


async def engine_is_killed(stack: Provider, engine: VLLM, *, rate: float = 10.0) -> tuple[Outage, list[Call]]:
    """Kill the engine's processes under traffic, and wait until it has been restarted and serves again."""
    async with Traffic(stack, rate=rate).running() as traffic:
        await traffic.until(local, since=0.0)
        await anyio.sleep(1.0)
        began = traffic.now()
        for pid in engine_processes(engine):
            os.kill(pid, signal.SIGKILL)
        taken = await traffic.until(lambda call: not local(call), since=began)
        while engine.state == "ready":  # noqa: ASYNC110 - another thread's state
            await anyio.sleep(0.01)
        while engine.state != "ready":  # noqa: ASYNC110
            await anyio.sleep(0.02)
        ready = traffic.now()
        back = await traffic.until(local, since=ready)
        await anyio.sleep(0.5)
    outage = _outage("the engine is killed", traffic, began, ready, taken, back)
    outage.restarted = ready - began
    return outage, traffic.calls


def engine_processes(engine: VLLM) -> list[int]:
    """Ids of the engine's own processes."""
    current = engine._engine.current
    return [] if current is None else list(current.pids)


def _outage(what: str, traffic: Traffic, began: float, ended: float, taken: Call, back: Call) -> Outage:
    touched = [call for call in traffic.calls if call.begun + call.first >= began and call.begun < ended]
    return Outage(
        what=what,
        took_over=taken.begun + taken.first - began,
        longest_stream=max((call.first for call in touched if call.stream), default=0.0),
        longest_whole=max((call.first for call in touched if not call.stream), default=0.0),
        came_back=back.begun + back.first - ended,
        ended=dict(traffic.tally()),
        lost=len(lost(traffic.calls)),
    )


@dataclass(kw_only=True)
class Burst:
    """What a burst came to.

    Attributes:
        what: which stack.
        calls: how many at once.
        local: served by the engine.
        hosted: served by the hosted model.
        lost: calls that were lost.
        waiting: most requests that waited in the engine.
        in_engine: most calls in the engine at once.
        first_p50, first_most: seconds to the first content.
        seconds: until all had ended.
    """

    what: str
    calls: int
    local: int
    hosted: int
    lost: int
    waiting: int
    in_engine: int
    first_p50: float
    first_most: float
    seconds: float

    def row(self) -> str:
        """A line of the table."""
        return (
            f"| {self.what} | {self.local} | {self.hosted} | {self.waiting} | {self.in_engine} | {self.first_p50:.2f} s"
            f" | {self.first_most:.2f} s | {self.seconds:.2f} s | {self.lost} |"
        )


BURST_HEAD = (
    "| 300 calls at once | by the engine | by hosted | most waiting in the engine | most in it | first token, median"
    " | at most | all done | lost |\n|---|---|---|---|---|---|---|---|---|"
)


async def burst(what: str, stack: Provider, engine: VLLM, *, calls: int = 300) -> Burst:
    """Make so many calls at once; watch the engine's queue meanwhile."""
    traffic = Traffic(stack)
    traffic._began = time.monotonic()
    waiting = in_engine = 0
    done = False

    async def watch() -> None:
        nonlocal waiting, in_engine
        while not done:
            stats = engine.stats()
            waiting, in_engine = max(waiting, stats.waiting), max(in_engine, stats.in_flight)
            await anyio.sleep(0.005)

    async with AsyncClient(stack) as client, anyio.create_task_group() as watching:
        watching.start_soon(watch)
        async with anyio.create_task_group() as group:
            for number in range(calls):
                group.start_soon(traffic.one, client, number, True)
        done = True
    firsts = [call.first for call in traffic.calls]
    return Burst(
        what=what,
        calls=calls,
        local=sum(map(local, traffic.calls)),
        hosted=sum(not local(call) for call in traffic.calls if call.result == "right"),
        lost=len(lost(traffic.calls)),
        waiting=waiting,
        in_engine=in_engine,
        first_p50=quantile(firsts, 0.5),
        first_most=max(firsts),
        seconds=traffic.now(),
    )


def record(*found: Outage | Burst) -> list[dict[str, Any]]:
    """What goes into a file."""
    return [asdict(item) for item in found]
