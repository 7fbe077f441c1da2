"""Local and hosted together, with a real engine and a hosted provider that can be broken: no call is lost.

The drills are those of ``python -m benchmarks.drill``, which prints how long everything took.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from benchmarks.drill.scenarios import (
    FAULTS,
    HEALTHY,
    burst,
    engine_is_killed,
    hosted,
    hosted_dies,
    stacks,
)
from benchmarks.drill.traffic import HOSTED_TEXT, Traffic, local, lost
from llmprod import VLLM, AsyncClient, AttemptTimeout, ContinueText, Failover, ReadError, Restart, Resume, standard
from llmprod.presets import local_first
from llmprod.testing import FaultServer
from tests.engine.engines import engine as make_engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

PLACES, WAITING = 32, 8
LIMIT = 5.0
"""Seconds to the first token of an attempt: more than a busy machine takes."""
TOO_LATE = 2 * LIMIT
"""Seconds after which a call has waited for two attempts that said nothing."""
PATIENT = AttemptTimeout(connect=300.0, first_token=300.0, idle=300.0)
"""Limits for bursts, in which a busy machine may let the last calls wait for minutes."""


@pytest.fixture(scope="module")
def cold(tiny_model: Path) -> Iterator[VLLM]:
    """An engine that the first test starts by calling it, and that is held until the last."""
    provider = make_engine(tiny_model, max_num_seqs=PLACES)
    yield provider
    anyio.run(provider.stop)


@pytest.fixture
async def engine(cold: VLLM) -> VLLM:
    return await cold.start()


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    server = FaultServer(HEALTHY)
    server.__enter__()
    try:
        yield server
    finally:
        server.__exit__(None, None, None)


async def test_hosted_answers_while_the_engine_starts(cold: VLLM, server: FaultServer) -> None:
    assert cold.state == "cold"
    cold.held_by(test_hosted_answers_while_the_engine_starts)  # the traffic's client is not to stop it
    _, engine_first = stacks(cold, server, first_token=60.0)  # vLLM's imports hold up everything else here
    async with Traffic(engine_first, rate=5).running() as traffic:
        answer = await traffic.until(local, since=0.0)
    before = [call for call in traffic.calls if call.begun + call.first < answer.begun]
    assert before, "none waited for the start"
    assert all(call.result == "right" and not local(call) for call in before)
    assert all(call.attempts == 1 for call in before), "that the engine gave way is no attempt"
    assert traffic.tally() == {"right": len(traffic.calls)}
    assert cold.state == "ready"
    assert local(traffic.calls[-1])


async def test_plain_failover_either_way(engine: VLLM, server: FaultServer) -> None:
    async with AsyncClient(Failover(engine, hosted(server))) as client:
        assert (await client.generate("Hello", max_tokens=8)).provider == engine.name
    assert server.request_count == 0
    async with AsyncClient(Failover(hosted(server), engine)) as client:
        assert (await client.generate("Hello", max_tokens=8)).text == HOSTED_TEXT
        server.down()
        assert (await client.generate("Hello", max_tokens=8)).provider == engine.name
        async with client.stream("Hello", max_tokens=8) as stream:
            await stream.read()
        assert stream.provider == engine.name
        server.up()
        assert (await client.generate("Hello", max_tokens=8)).text == HOSTED_TEXT


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_engine_takes_over_from_hosted_and_gives_back(engine: VLLM, server: FaultServer, fault: str) -> None:
    hosted_first, _ = stacks(engine, server, first_token=LIMIT)
    outage, calls = await hosted_dies(hosted_first, server, fault, seconds=1.5)
    assert lost(calls) == []
    assert not [call for call in calls if call.result == "interrupted"], "what broke in the middle went on"
    assert outage.took_over < TOO_LATE
    assert outage.longest_stream < TOO_LATE
    assert any(call.resumed for call in calls) or fault != "resets in mid-stream"


async def test_without_resume_a_cut_stream_is_marked_and_no_call_is_lost(engine: VLLM, server: FaultServer) -> None:
    hosted_first, _ = stacks(engine, server, resume=False, first_token=LIMIT)
    _, calls = await hosted_dies(hosted_first, server, "resets in mid-stream", seconds=1.0)
    assert lost(calls) == []
    assert [call for call in calls if call.result == "interrupted"]
    assert not [call for call in calls if call.result == "interrupted" and not call.stream]


async def test_a_stream_that_hosted_cut_is_continued_by_the_engine(engine: VLLM, server: FaultServer) -> None:
    cut = FAULTS["resets in mid-stream"]
    assert cut is not None
    server.down(cut)
    stack = standard(hosted(server), [engine], extra=[Resume(ContinueText(), Restart())])
    async with AsyncClient(stack) as client, client.stream("Say the words.", max_tokens=24) as stream:
        await stream.read()
    assert stream.text.startswith(" ".join(HOSTED_TEXT.split()[:8]))
    assert len(stream.text) > len(" ".join(HOSTED_TEXT.split()[:8])) + 1
    assert [entry.target for entry in stream.trace.attempts] == ["openai:hosted", engine.name]
    assert stream.trace.attempts[0].error in (ReadError.__name__, "TruncatedAnswer")


async def test_a_burst_fills_the_engine_and_overflows(engine: VLLM, server: FaultServer) -> None:
    alone = await burst("engine alone", standard(engine, timeouts=PATIENT), engine)
    assert alone.in_engine > PLACES + 4 * WAITING, "else the next lines show nothing"
    stack = local_first(engine, hosted(server), waiting=WAITING, timeouts=PATIENT)
    both = await burst("local_first", stack, engine)
    assert (alone.lost, both.lost) == (0, 0)
    assert both.local + both.hosted == both.calls == 300
    assert both.local >= PLACES
    assert both.hosted == server.request_count
    assert both.waiting <= WAITING
    assert both.in_engine <= PLACES + WAITING
    async with AsyncClient(local_first(engine, hosted(server))) as client:
        assert (await client.generate("After it.", max_tokens=8)).provider == engine.name


async def test_when_hosted_is_down_a_burst_waits_for_the_engine(engine: VLLM, server: FaultServer) -> None:
    server.down()
    stack = local_first(engine, hosted(server), timeouts=PATIENT)
    both = await burst("local_first, hosted down", stack, engine, calls=150)
    assert (both.lost, both.local) == (0, 150)
    assert both.in_engine <= PLACES + WAITING


async def test_hosted_takes_over_from_a_killed_engine_until_it_is_back(engine: VLLM, server: FaultServer) -> None:
    _, engine_first = stacks(engine, server, first_token=LIMIT)
    restarts = engine.restarts
    outage, calls = await engine_is_killed(engine_first, engine)
    assert lost(calls) == []
    assert not [call for call in calls if call.result == "interrupted"]
    assert outage.restarted is not None
    assert outage.took_over < outage.restarted
    assert outage.longest_stream < outage.restarted, "nobody waited for the restart"
    assert engine.restarts == restarts + 1
    assert engine.state == "ready"


def test_the_drill_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.drill", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--seconds" in done.stdout
