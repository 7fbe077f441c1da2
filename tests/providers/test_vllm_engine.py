"""The supervisor of an embedded engine: its states and their races, with a fake in the place of vLLM."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import anyio
import anyio.to_thread
import pytest

from llmprod import (
    VLLM,
    AsyncClient,
    EngineDied,
    EngineNotReady,
    EngineStartFailed,
    InvalidArgument,
    RestartPolicy,
)
from llmprod.context import Context
from llmprod.providers._vllm import at_exit
from llmprod.providers._vllm.asgi import InMemory, InMemoryReply
from llmprod.providers._vllm.engine import Engine
from llmprod.providers._vllm.options import EngineOptions
from tests.providers.fake_engine import Stage, stage, until

__all__ = ["stage"]

URL = "http://vllm/v1/chat/completions"
QUICK = RestartPolicy(attempts=3, first_wait=0.01, longest_wait=0.01)


def elsewhere() -> Context:
    return Context.new().but(alternatives=True)


async def never_ends(scope: Any, receive: Any, send: Any) -> None:
    """Answer a first piece, then wait for the client to leave."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await receive()


async def rest(reply: InMemoryReply) -> None:
    while await reply.chunk():
        pass


async def failure_of(call: Any) -> BaseException:
    try:
        await call
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


# ---- starting -------------------------------------------------------------------------------------------------------


async def test_the_first_call_starts_it_once_for_all_that_wait(stage: Stage) -> None:
    engine = stage.engine()
    assert engine.state == "cold"
    assert not stage.made
    stage.gate.clear()
    got: list[object] = []
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            got.append(await engine.ready())

        for _ in range(20):
            group.start_soon(wait)
        threads = [threading.Thread(target=lambda: got.append(anyio.run(engine.ready))) for _ in range(3)]
        for thread in threads:
            thread.start()
        await until(lambda: len(engine._waiting) == 23)
        assert engine.state == "starting"
        assert got == []
        stage.gate.set()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert len(stage.made) == 1
    assert set(map(id, got)) == {id(stage.made[0])}
    assert len(got) == 23
    await until(lambda: not engine._waiting)
    assert await engine.ready() is stage.made[0]


async def test_a_cancelled_waiter_leaves_the_start_and_the_others_alone(stage: Stage) -> None:
    engine = stage.engine()
    stage.gate.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(engine.ready)
        await until(lambda: engine._waiting)
        group.cancel_scope.cancel()
    await until(lambda: not engine._waiting)
    assert engine.state == "starting"
    stage.gate.set()
    assert await engine.ready() is stage.made[0]


async def test_with_alternatives_nobody_waits_and_it_is_told_when_to_come_back(stage: Stage) -> None:
    engine = stage.engine()
    stage.gate.clear()
    with pytest.raises(EngineNotReady, match="start") as first:
        await engine.ready(elsewhere())
    assert first.value.retry_after == 1.0
    await until(lambda: engine.state == "starting")
    with pytest.raises(EngineNotReady, match="starting"):
        await engine.ready(elsewhere())
    stage.gate.set()
    assert await engine.ready() is stage.made[0], "the refused call has started it all the same"
    assert await engine.ready(elsewhere()) is stage.made[0]
    await engine.stop(0.0)
    stage.gate.clear()
    with pytest.raises(EngineNotReady):
        await engine.ready(elsewhere())
    await until(lambda: engine.state == "starting")
    with pytest.raises(EngineNotReady) as again:
        await engine.ready(elsewhere())
    assert again.value.retry_after is not None
    assert 1.0 <= again.value.retry_after <= 2.0, "by how long the last start took"


@pytest.mark.parametrize(
    "failure",
    [
        EngineStartFailed(provider="vllm", detail="no memory"),
        InvalidArgument("dtype", "'int3'", "auto, half"),
        RuntimeError("no memory"),
    ],
    ids=["start", "argument", "unexpected"],
)
async def test_each_waiter_gets_an_error_of_its_own_and_start_tries_again(stage: Stage, failure: Exception) -> None:
    engine = stage.engine()
    stage.failures.append(failure)
    stage.gate.clear()
    errors: list[BaseException] = []
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            errors.append(await failure_of(engine.ready()))

        for _ in range(5):
            group.start_soon(wait)
        await until(lambda: len(engine._waiting) == 5)
        stage.gate.set()
    errors.append(await failure_of(engine.ready()))
    assert len(set(map(id, errors))) == 6
    assert len({str(error) for error in errors}) == 1
    assert isinstance(errors[0], InvalidArgument if isinstance(failure, InvalidArgument) else EngineStartFailed)
    if isinstance(failure, RuntimeError):
        assert "no memory" in str(errors[0])
        assert {id(error.__cause__) for error in errors} == {id(failure)}
    assert engine.state == "failed"
    assert len(stage.made) == 1, "calls do not start it over and over"
    assert engine not in at_exit.living
    assert await engine.start() is stage.made[1]
    assert await engine.ready() is stage.made[1]


# ---- dying ----------------------------------------------------------------------------------------------------------


async def test_a_death_is_told_to_all_and_mended(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine(QUICK)
    first = await engine.ready()
    replies = [await InMemory(first).post(URL, [], b"{}", None) for _ in range(3)]
    assert engine.meter.in_flight == 3
    assert await replies[0].chunk() == b"first"
    stage.kill()
    for reply in replies:
        error = await failure_of(rest(reply))
        assert isinstance(error, EngineDied)
        assert error.in_stream
    second = await engine.ready()
    assert second is not first
    assert (engine.state, engine.restarts.total) == ("ready", 1)
    assert engine.meter.in_flight == 0
    assert stage.vllm[0].shut == 1
    assert first.closed
    assert await failure_of(InMemory(first).post(URL, [], b"{}", None))


async def test_a_call_notices_the_death_before_the_watcher_does(stage: Stage) -> None:
    engine = stage.engine(QUICK)
    first = await engine.ready()
    stage.kill()
    assert await engine.ready() is not first
    assert engine.restarts.total == 1, "counted once"


async def test_it_is_given_up_by_its_policy(stage: Stage) -> None:
    engine = stage.engine(RestartPolicy(attempts=1))
    await engine.ready()
    for _ in range(2):
        stage.kill()
        await until(lambda: engine.state in ("dead", "starting", "failed") or not stage.vllm[-1].errored)
        await until(lambda: engine.state in ("ready", "failed"))
    assert engine.state == "failed"
    with pytest.raises(EngineStartFailed, match="given up after 1 restarts"):
        await engine.ready()
    assert len(stage.made) == 2
    await engine.start()
    assert engine.state == "ready"
    stage.kill()
    assert await engine.ready() is stage.made[3], "a start by hand begins the count anew"


async def test_never_to_be_restarted(stage: Stage) -> None:
    engine = stage.engine(RestartPolicy(attempts=0))
    await engine.ready()
    stage.kill()
    with pytest.raises(EngineStartFailed, match="given up at once"):
        await engine.ready()


async def test_a_restart_that_fails_is_tried_again_and_the_last_error_is_told(stage: Stage) -> None:
    engine = stage.engine(QUICK)
    await engine.ready()
    stage.failures.extend([RuntimeError("memory is not free yet"), None])
    stage.kill()
    assert await engine.ready() is stage.made[2]
    assert engine.restarts.total == 2
    stage.failures.extend([RuntimeError("one"), RuntimeError("two")])
    stage.kill()
    with pytest.raises(EngineStartFailed, match="one"):  # three starts, and then no more
        await engine.ready()


async def test_a_wrong_option_is_not_tried_again(stage: Stage) -> None:
    engine = stage.engine(QUICK)
    await engine.ready()
    stage.failures.append(InvalidArgument("dtype", "'int3'", "auto"))
    stage.kill()
    with pytest.raises(InvalidArgument):
        await engine.ready()
    assert len(stage.made) == 2


# ---- stopping -------------------------------------------------------------------------------------------------------


async def test_stop_while_starting_waits_for_it_and_leaves_nothing(stage: Stage) -> None:
    engine = stage.engine()
    stage.gate.clear()
    outcomes: list[object] = []
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            try:
                outcomes.append(await engine.ready())
            except EngineNotReady as error:
                outcomes.append(error)

        group.start_soon(wait)
        await until(lambda: engine.state == "starting")
        group.start_soon(engine.stop, 0.0)
        await anyio.sleep(0.02)
        assert engine.state == "starting"
        stage.gate.set()
    assert len(outcomes) == 1
    assert (engine.state, stage.running, len(stage.made)) == ("stopped", 0, 1)
    assert engine not in at_exit.living


async def test_who_looks_when_the_stop_is_over_is_told_of_it(stage: Stage) -> None:
    engine = stage.engine()
    stage.gate.clear()
    held, go = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    async def slow() -> None:
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                failures.append(await failure_of(engine.ready()))

            group.start_soon(wait)
            await until(lambda: engine._waiting)
            held.set()
            go.wait(120)  # this loop sees nothing of what happens meanwhile

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, anyio.run, slow)
        await until(held.is_set)
        group.start_soon(engine.stop, 0.0)
        await until(lambda: engine._stopping is not None)
        stage.gate.set()
        await until(lambda: engine.state == "stopped" and engine._stopping is None)
        go.set()
    (failure,) = failures
    assert isinstance(failure, EngineNotReady)
    await until(lambda: not engine._waiting)
    assert not engine._turned_away


async def test_drain_refuses_new_calls_and_a_second_stop_can_cut_it_short(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine()
    reply = await InMemory(await engine.ready()).post(URL, [], b"{}", None)
    stopped: list[str] = []
    async with anyio.create_task_group() as group:

        async def stop(name: str, grace: float) -> None:
            await engine.stop(grace)
            stopped.append(f"{name} {engine.state}")

        group.start_soon(stop, "patient", 3600.0)
        await until(lambda: engine.state == "stopping")
        with pytest.raises(EngineNotReady, match="being stopped"):
            await engine.ready()
        await anyio.sleep(0.05)
        assert stopped == []
        await stop("hasty", 0.0)
    assert sorted(stopped) == ["hasty stopped", "patient stopped"]
    assert await reply.chunk() == b"first"
    assert isinstance(await failure_of(reply.chunk()), EngineDied)
    assert stage.running == 0
    assert await engine.ready() is stage.made[1], "the next call starts it anew"


async def test_drain_ends_as_soon_as_the_last_call_has(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine()
    reply = await InMemory(await engine.ready()).post(URL, [], b"{}", None)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.stop, 3600.0)
        await until(lambda: engine.state == "stopping")
        assert stage.running == 1
        await reply.aclose()
    assert (engine.state, stage.running) == ("stopped", 0)


async def test_a_stop_goes_on_when_its_caller_has_lost_patience(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine()
    reply = await InMemory(await engine.ready()).post(URL, [], b"{}", None)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.stop, 3600.0)
        await until(lambda: engine.state == "stopping")
        group.cancel_scope.cancel()
    assert engine.state == "stopping"
    await reply.aclose()
    await until(lambda: engine.state == "stopped")
    assert stage.running == 0


async def test_death_while_it_drains_is_told_and_not_mended(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine(QUICK)
    reply = await InMemory(await engine.ready()).post(URL, [], b"{}", None)
    assert await reply.chunk() == b"first"
    async with anyio.create_task_group() as group:
        group.start_soon(engine.stop, 3600.0)
        await until(lambda: engine.state == "stopping")
        stage.kill()
        assert isinstance(await failure_of(reply.chunk()), EngineDied)
    assert (engine.state, len(stage.made), engine.restarts.total) == ("stopped", 1, 0)


async def test_stop_while_it_waits_for_its_next_start(stage: Stage) -> None:
    engine = stage.engine(RestartPolicy(first_wait=3600, longest_wait=3600))
    await engine.ready()
    stage.kill()
    await until(lambda: engine.restarts.total == 1)
    await engine.ready()
    stage.kill()
    await until(lambda: engine.restarts.total == 2)
    assert engine.state == "dead"
    with pytest.raises(EngineNotReady, match="starting again") as caught:
        await engine.ready(elsewhere())
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    await engine.stop(0.0)
    assert (engine.state, stage.running) == ("stopped", 0)
    assert await engine.ready() is stage.made[2], "by need it is started at once"


async def test_a_stop_for_want_of_users_is_called_off_by_one(stage: Stage) -> None:
    stage.app = never_ends
    engine = stage.engine()
    first = await engine.ready()
    reply = await InMemory(first).post(URL, [], b"{}", None)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: engine.stop(3600.0, unless_used=True))
        await until(lambda: engine.state == "stopping")
        assert await engine.ready() is first
    assert (engine.state, stage.running) == ("ready", 1)
    await reply.aclose()
    stage.kill()
    assert await engine.ready() is stage.made[1], "it is still watched"


async def test_too_late_to_call_it_off_it_is_started_anew(stage: Stage) -> None:
    engine = stage.engine()
    first = await engine.ready()
    stage.stop_gate.clear()
    got: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: engine.stop(0.0, unless_used=True))
        await until(lambda: first.closed)

        async def use() -> None:
            got.append(await engine.ready())

        group.start_soon(use)
        await until(lambda: engine._waiting)
        with pytest.raises(EngineNotReady, match="being stopped"):
            await engine.ready(elsewhere())
        stage.stop_gate.set()
    assert got == [stage.made[1]]
    assert engine.state == "ready"


async def test_start_after_a_stop_under_way(stage: Stage) -> None:
    engine = stage.engine()
    first = await engine.ready()
    stage.stop_gate.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(engine.stop, 0.0)
        await until(lambda: first.closed)
        group.start_soon(engine.start)
        await anyio.sleep(0.02)
        stage.stop_gate.set()
    assert engine.state == "ready"
    assert len(stage.made) == 2


async def test_a_call_that_comes_as_it_stops_is_told_so_instead_of_waiting(stage: Stage) -> None:
    engine = stage.engine()
    incarnation = await engine.ready()
    await engine.stop(0.0)
    error = await failure_of(InMemory(incarnation).post(URL, [], b"{}", None))
    assert isinstance(error, EngineDied)
    assert error.silent


async def test_at_exit_a_start_is_given_up_and_a_running_one_stopped(stage: Stage) -> None:
    starting, running = stage.engine(), stage.engine(seed=1)
    await running.ready()
    stage.gate.clear()
    with pytest.raises(EngineNotReady):
        await starting.ready(elsewhere())
    await until(lambda: len(stage.made) == 2)
    assert {starting, running} <= at_exit.living
    await anyio.to_thread.run_sync(starting.stop_at_exit)
    await anyio.to_thread.run_sync(running.stop_at_exit)
    assert stage.made[1]._abandoned
    assert running.state == "stopped"
    assert running not in at_exit.living


# ---- who uses it ----------------------------------------------------------------------------------------------------


def test_equal_options_are_one_engine(stage: Stage) -> None:
    one = Engine.shared(EngineOptions(model="fake", seed=5), RestartPolicy(), progress=False)
    assert Engine.shared(EngineOptions(model="fake", seed=5), RestartPolicy(), progress=False) is one
    assert Engine.shared(EngineOptions(model="fake", seed=6), RestartPolicy(), progress=False) is not one


async def test_clients_and_providers_keep_it_alive(stage: Stage) -> None:
    one, two = VLLM("fake", seed=8, progress=False), VLLM("fake", seed=8, progress=False)
    engine = one._engine
    assert engine is two._engine
    stage.engines.append(engine)
    client, other = AsyncClient(one), AsyncClient(two)
    await engine.ready()
    await client.aclose()
    assert engine.state == "ready", "another client holds it"
    await other.aclose()
    assert engine.state == "stopped"
    await engine.ready()
    del one, client
    gc.collect()
    await anyio.sleep(0.05)
    assert engine.state == "ready", "another provider can ask it"
    del two, other
    gc.collect()
    await until(lambda: engine.state == "stopped")
    assert stage.running == 0


async def test_started_by_hand_it_outlives_its_clients(stage: Stage) -> None:
    local = VLLM("fake", seed=9, progress=False)
    stage.engines.append(local._engine)
    async with local:
        async with AsyncClient(local):
            pass
        assert local.state == "ready"
        assert local.capabilities.context_window == 99
        assert local.batch_concurrency == 8
    assert local.state == "stopped"
    assert local.start_times is None


async def test_an_engine_nobody_knows_ends_its_thread(stage: Stage) -> None:
    engine = stage.engine()
    await engine.ready()
    thread, gone = engine.home.thread, weakref.ref(engine)
    await engine.stop(0.0)
    stage.engines.clear()
    del engine
    gc.collect()
    await until(lambda: gc.collect() is not None and gone() is None)
    await until(lambda: not thread.is_alive())
