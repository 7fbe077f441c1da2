"""An engine without vLLM: a supervisor's incarnations with an application that a test writes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from llmprod import RestartPolicy
from llmprod.providers._vllm import engine as supervisor
from llmprod.providers._vllm.engine import Engine
from llmprod.providers._vllm.incarnation import Incarnation
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.surroundings import Surroundings

App = Callable[[Any, Any, Any], Awaitable[None]]


class FakeAsyncLLM:
    """As much of vLLM's as an incarnation asks for."""

    def __init__(self) -> None:
        self.errored = False
        self.shut = 0

    def shutdown(self) -> None:
        self.shut += 1


class Stage:
    """What the incarnations of one test do, and what was done to them."""

    def __init__(self) -> None:
        self.made: list[Incarnation] = []
        self.vllm: list[FakeAsyncLLM] = []
        self.failures: deque[BaseException | None] = deque()
        self.gate = threading.Event()
        self.gate.set()
        self.stop_gate = threading.Event()
        self.stop_gate.set()
        self.app: App = answers_ok
        self.engines: list[Engine] = []

    def engine(self, restart: RestartPolicy | None = None, **options: Any) -> Engine:
        engine = Engine(EngineOptions(model="fake", **options), restart or RestartPolicy(), progress=False)
        self.engines.append(engine)
        return engine

    def kill(self) -> None:
        """The newest engine dies."""
        self.vllm[-1].errored = True

    @property
    def running(self) -> int:
        return sum(engine.shut == 0 for engine in self.vllm)


async def answers_ok(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Stage()

    class FakeIncarnation(Incarnation):
        async def _start(self, options: EngineOptions, tell: Callable[[str], None], around: Surroundings) -> None:
            made.made.append(self)
            await opened(made.gate)
            failure = made.failures.popleft() if made.failures else None
            if failure is not None:
                raise failure
            vllm = FakeAsyncLLM()
            made.vllm.append(vllm)
            self.engine, self.app = vllm, made.app
            self.config = SimpleNamespace(
                model_config=SimpleNamespace(max_model_len=99), scheduler_config=SimpleNamespace(max_num_seqs=7)
            )
            self.tasks = ("generate",)
            self.times.engine = 2.0

        async def stop(self) -> None:
            await super().stop()
            await opened(made.stop_gate)

    monkeypatch.setattr(supervisor, "Incarnation", FakeIncarnation)
    yield made
    made.gate.set()
    made.stop_gate.set()
    for engine in made.engines:
        anyio.run(engine.stop, 0.0)


async def opened(gate: threading.Event) -> None:
    while not gate.is_set():  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.002)


async def until(true: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    with anyio.fail_after(120):
        while not true():  # noqa: ASYNC110 - another thread's state
            await anyio.sleep(0.002)
