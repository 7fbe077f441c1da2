"""Requests on their way to the engine: few at a time, none held up for long, none lost."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from llmprod import EngineDied
from llmprod.providers._vllm import intake as intake_module
from llmprod.providers._vllm.asgi import InMemory
from llmprod.providers._vllm.home import Home
from llmprod.providers._vllm.intake import Intake
from tests.providers.fake_engine import Stage, stage, until

__all__ = ["stage"]

whose: ContextVar[str] = ContextVar("whose", default="nobody")


class Engine:
    """As much of AsyncLLM as the intake asks for: takes a request when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.refuses = False

    async def add_request(self, number: int) -> str:
        self.asked.append(number)
        self.gates[number] = asyncio.Event()
        await self.gates[number].wait()
        if self.refuses:
            raise ValueError("no")
        return f"queue {number}"


def on_its_loop(scenario: Any) -> None:
    """Run a scenario on an engine's loop, whatever loop the test runs on."""
    asyncio.run(asyncio.wait_for(scenario(), 20))


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("refuses", [False, True])
def test_the_next_begins_when_the_engine_has_one_before(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    monkeypatch.setattr(intake_module, "_PATIENCE", 1000.0)

    async def scenario() -> None:
        intake, engine, results = Intake(), Engine(), []
        engine.refuses = refuses
        intake.watch(engine)

        async def request(number: int) -> None:
            try:
                results.append(await engine.add_request(number))
            except ValueError:
                results.append(f"refused {number}")
            await asyncio.sleep(1000)  # the answer takes its time: it has its place no more

        tasks: list[asyncio.Task[None]] = []

        def begin(number: int) -> None:
            tasks.append(asyncio.create_task(request(number)))

        for number in range(5):
            intake.enter(lambda number=number: begin(number))
        await turns()
        assert engine.asked == [0, 1]
        engine.gates[1].set()
        await turns()
        assert engine.asked == [0, 1, 2]
        for number in (0, 2, 3, 4):
            engine.gates[number].set()
            await turns()
        assert engine.asked == [0, 1, 2, 3, 4]
        assert results == [f"{'refused' if refuses else 'queue'} {number}" for number in (1, 0, 2, 3, 4)]
        intake.enter(lambda: begin(5))
        intake.enter(lambda: begin(6))
        await turns()
        assert engine.asked[5:] == [5, 6]
        for task in tasks:
            task.cancel()

    on_its_loop(scenario)


def test_one_that_takes_long_gives_up_its_place_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_PATIENCE", 0.01)

    async def scenario() -> None:
        intake, begun = Intake(), []
        passages = [intake.enter(lambda number=number: begun.append(number)) for number in range(3)]
        assert begun == [0, 1]
        while len(begun) < 3:  # noqa: ASYNC110 - a timer's work
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        for passage in passages:
            passage.over()
            passage.over()
        monkeypatch.setattr(intake_module, "_PATIENCE", 1000.0)
        for number in range(3, 6):
            intake.enter(lambda number=number: begun.append(number))
        assert begun == [0, 1, 2, 3, 4]  # two places, no more

    on_its_loop(scenario)


def test_each_begins_in_its_own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_PATIENCE", 0.001)

    async def scenario() -> None:
        intake, seen = Intake(), []

        def begin(name: str) -> None:
            seen.append(whose.get())
            whose.set(name)

        for name in ("ann", "bob", "cat", "dan"):
            intake.enter(lambda name=name: begin(name))
        while len(seen) < 4:  # noqa: ASYNC110 - a timer's work
            await asyncio.sleep(0.001)
        assert seen == ["nobody"] * 4

    on_its_loop(scenario)


async def test_a_call_given_up_while_it_waits_never_reaches_the_application(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "_PATIENCE", 1000.0)
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        await receive()  # until the caller leaves

    stage.app = app
    incarnation = await stage.engine().ready()
    posts = InMemory(incarnation)

    async def ask(body: bytes, cut: anyio.CancelScope) -> None:
        with cut:
            await posts.post("http://vllm/x", [], body, None)

    cuts = [anyio.CancelScope() for _ in range(4)]
    async with anyio.create_task_group() as group:
        for number, cut in enumerate(cuts):
            group.start_soon(ask, b"%d" % number, cut)
            await until(lambda number=number: incarnation.meter.in_flight == number + 1)
        await until(lambda: len(bodies) == 2)
        cuts[2].cancel()
        await anyio.wait_all_tasks_blocked()
        await incarnation.crossing.call(turns)  # that it has left is known there
        cuts[0].cancel()
        await until(lambda: len(bodies) == 3)
        cuts[1].cancel()
        cuts[3].cancel()
    await until(lambda: incarnation.meter.in_flight == 0)
    assert bodies == [b"0", b"1", b"3"]


async def test_calls_that_wait_when_the_engine_dies_are_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_PATIENCE", 1000.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    stage.app = app
    incarnation = await stage.engine().ready()
    told: list[EngineDied] = []

    async def ask() -> None:
        with pytest.raises(EngineDied) as caught:
            await InMemory(incarnation).post("http://vllm/x", [], b"", None)
        told.append(caught.value)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(ask)
        await until(lambda: incarnation.meter.in_flight == 6)
        stage.kill()
    assert len(told) == 6
    await until(lambda: incarnation.meter.in_flight == 0)


def test_the_intake_belongs_to_one_loop() -> None:
    home = Home("test-intake")
    try:

        async def scenario() -> list[int]:
            intake, begun = Intake(), []
            for number in range(4):
                intake.enter(lambda number=number: begun.append(number)).over()
            return begun

        assert anyio.run(home.crossing.call, scenario) == [0, 1, 2, 3]
    finally:
        home.close()
