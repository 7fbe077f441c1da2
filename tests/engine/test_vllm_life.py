"""The embedded engine's life: shared, aborted, killed, restarted, drained, and gone with its process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from llmprod import (
    VLLM,
    AsyncClient,
    CallError,
    Client,
    EngineDied,
    EngineNotReady,
    EngineStartFailed,
    InvalidArgument,
    RestartPolicy,
    StreamInterrupted,
    standard,
)
from tests.engine.engines import alive, engine, processes, until

# What vLLM and torch warn of inside this process is theirs; ours stay errors.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default", "error:::llmprod")]

LONG: dict[str, Any] = {"max_tokens": 1500, "extra": {"vllm": {"ignore_eos": True}}}


@pytest.fixture
def own(tiny_model: Path, request: pytest.FixtureRequest) -> Iterator[VLLM]:
    """An engine for one test alone, which it may kill."""
    seed = 1000 + zlib.crc32(request.node.name.encode()) % 10_000  # equal options would be an engine of another test
    provider = engine(tiny_model, seed=seed, restart=RestartPolicy(attempts=2))
    anyio.run(provider.start)
    yield provider
    anyio.run(lambda: provider.stop(grace=0))


def kill_engine(provider: VLLM) -> None:
    current = provider._engine.current
    assert current is not None
    for pid in current.pids:
        os.kill(pid, signal.SIGKILL)


async def idle(provider: VLLM) -> None:
    """Wait until the engine itself says that nothing runs or waits in it."""
    async with AsyncClient(provider, wrappers=[]) as client:
        with anyio.fail_after(300):
            while True:
                await client.generate("Done?", max_tokens=1)  # one more step, so that its last word is fresh
                stats = provider.stats()
                if (stats.running, stats.waiting, stats.in_flight) == (0, 0, 0):
                    break


async def freed(provider: VLLM, before: int, calls: int) -> int:
    """Require that so many long calls were not computed to their ends; return the tokens until now."""
    await idle(provider)
    now = provider.stats().generated_tokens
    assert now - before < calls * LONG["max_tokens"] / 2
    return now


# ---- cancellation is abort ------------------------------------------------------------------------------------------


async def test_cancelled_calls_and_closed_streams_free_the_engine(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        finished = local.stats().generated_tokens
        async with anyio.create_task_group() as group:

            async def streamed() -> None:
                async with client.stream("Go on.", **LONG) as stream:
                    await stream.read()

            async def whole() -> None:
                await client.generate("Go on.", **LONG)

            for _ in range(32):
                group.start_soon(streamed)
                group.start_soon(whole)
            await until(lambda: local.stats().running >= 32)
            group.cancel_scope.cancel()
        finished = await freed(local, finished, 64)

        for _ in range(8):
            async with client.stream("Go on.", **LONG) as stream:
                await stream.__anext__()
        finished = await freed(local, finished, 8)
        with pytest.raises(CallError):
            await client.generate("Go on.", deadline=0.3, **LONG)
        await freed(local, finished, 1)


# ---- death ----------------------------------------------------------------------------------------------------------


async def test_death_is_told_at_once_and_mended(own: VLLM) -> None:
    async with AsyncClient(own, wrappers=[]) as client:
        async with client.stream("Go on.", **LONG) as stream:
            await stream.__anext__()
            errors: list[BaseException] = []

            async def whole() -> None:
                try:
                    await client.generate("Go on.", **LONG)
                except Exception as error:
                    errors.append(error)

            async with anyio.create_task_group() as group:
                group.start_soon(whole)
                await until(lambda: own.stats().running == 2)
                kill_engine(own)
                with anyio.fail_after(60), pytest.raises(StreamInterrupted) as caught:
                    await stream.read()
                assert own._engine.running is None, "it was told before the restart was over"
            assert isinstance(caught.value.__cause__, EngineDied)
            assert isinstance(errors[0], EngineDied)
        assert (await client.generate("Back?", max_tokens=4)).text is not None  # it waits for the restart
        assert own.restarts == 1
        assert own.state == "ready"


async def test_a_retry_rides_over_a_death_and_too_many_are_given_up(own: VLLM) -> None:
    client = AsyncClient(standard(own))
    async with anyio.create_task_group() as group:

        async def kill() -> None:
            await until(lambda: own.stats().running > 0)
            kill_engine(own)

        group.start_soon(kill)
        response = await client.generate("Go on.", max_tokens=800, extra={"vllm": {"ignore_eos": True}})
    assert response.complete
    assert len(response.trace.attempts) == 2
    kill_engine(own)  # while it is idle
    await until(lambda: own.restarts == 2 and own._engine.running is not None)
    kill_engine(own)
    await until(lambda: own.state == "failed")
    with pytest.raises(EngineStartFailed, match="given up after 2 restarts"):
        await client.generate("Hello.", max_tokens=4)
    await own.start()  # by hand it is tried again
    assert (await client.generate("Hello.", max_tokens=4)).complete


# ---- stop -----------------------------------------------------------------------------------------------------------


async def test_drain_lets_calls_end_and_refuses_new_ones(own: VLLM) -> None:
    async with AsyncClient(own, wrappers=[]) as client:
        done: list[int] = []
        async with anyio.create_task_group() as group:

            async def one() -> None:
                response = await client.generate("Go on.", **LONG)
                assert response.usage is not None
                done.append(response.usage.total_output)

            for _ in range(4):
                group.start_soon(one)
            await until(lambda: own.stats().running == 4)
            group.start_soon(partial(own.stop, grace=600.0))
            await until(lambda: own.state == "stopping")
            with pytest.raises(EngineNotReady):
                await client.generate("Too late?", max_tokens=4)
        assert done == [LONG["max_tokens"]] * 4
        assert own.state == "stopped"
        pids = processes()
        assert (await client.generate("Again?", max_tokens=4)).complete  # the next call starts it anew
        assert set(processes()) - set(pids)


def test_clients_hold_the_engine_and_the_last_one_stops_it(tiny_model: Path) -> None:
    first, second = engine(tiny_model, seed=77), engine(tiny_model, seed=77)
    assert first._engine is second._engine, "equal options, one engine"
    one, two = Client(first), Client(second)
    assert one.generate("Hello.", max_tokens=4).complete
    assert two.generate("Hello.", max_tokens=4).complete
    assert (first.state, first.restarts) == ("ready", 0)
    one.close()
    assert two.generate("Still?", max_tokens=4).complete
    two.close()
    assert first.state == second.state == "stopped"


async def test_what_vllm_refuses_is_told_quickly_and_by_name(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no_such_argument"):
        await engine(tiny_model, engine_args={"no_such_argument": 1}).start()
    with pytest.raises(InvalidArgument, match="hermes"):
        await engine(tiny_model, tool_call_parser="hermez").start()
    with pytest.raises(InvalidArgument, match="model: got a path"):
        engine(tmp_path / "nowhere" / "model")
    with pytest.raises(EngineStartFailed, match=r"configuration.*awq"):
        await engine(tiny_model, quantization="awq").start()
    failing = engine(tiny_model, kv_cache_gib=100_000)
    with pytest.raises(EngineStartFailed, match=r"engine: ValueError: .*memory.*100000"):
        await failing.start()
    assert failing.state == "failed"
    with pytest.raises(EngineStartFailed, match="memory"):
        await AsyncClient(failing).generate("Hello.")


async def test_killed_while_it_starts(tiny_model: Path) -> None:
    provider = engine(tiny_model, seed=78)
    old = set(processes())

    def kill() -> None:
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            for process in multiprocessing.active_children():
                if process.name.startswith("EngineCore") and process.pid not in old:
                    process.kill()
                    return
            time.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, kill)
        with pytest.raises(EngineStartFailed, match="engine: "):
            await provider.start()
    assert provider.state == "failed"
    await provider.start()
    async with AsyncClient(provider) as client:
        assert (await client.generate("Hello.", max_tokens=4)).complete
    pids = provider._engine.current.pids  # type: ignore[union-attr]
    assert all(map(alive, pids))
    del provider, client  # nobody can ask it any more
    gc.collect()
    await until(lambda: not any(map(alive, pids)))


async def test_two_engines_at_once(local: VLLM, tiny_model: Path) -> None:
    other = engine(tiny_model, max_model_len=256, seed=79)
    async with AsyncClient(local) as one, AsyncClient(other) as two, anyio.create_task_group() as group:

        async def ask(client: AsyncClient) -> None:
            for _ in range(3):
                assert (await client.generate("Hello.", max_tokens=8)).complete

        for client in (one, two) * 4:
            group.start_soon(ask, client)
    assert (local.state, other.state) == ("ready", "stopped"), "each by its own clients"
    async with AsyncClient(local) as one:
        assert (await one.generate("Still there?", max_tokens=4)).complete
