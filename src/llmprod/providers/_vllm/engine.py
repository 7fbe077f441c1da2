"""An engine over its incarnations: started when needed, shared, watched, restarted when it dies, drained and stopped.

    cold → starting → ready → dead → starting → …       stopping → stopped, from which it can be started anew
                 ↘ failed (given up; start() tries again)

All changes of state happen on the engine's own loop, so no lock is needed; callers on other loops read the state, and
those who wait are told each change through their channels.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Coroutine
from typing import Any, Literal
from weakref import WeakSet, WeakValueDictionary

from llmprod.context import Context
from llmprod.errors import EngineNotReady, EngineStartFailed, LLMProdError
from llmprod.mechanisms.engine_meter import EngineMeter
from llmprod.mechanisms.restart import RestartPolicy, Restarts
from llmprod.providers._vllm.crossing import Channel
from llmprod.providers._vllm.home import Home
from llmprod.providers._vllm.incarnation import Incarnation, first_line
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.progress import StartLine

__all__ = ["Engine", "EngineState"]

EngineState = Literal["cold", "starting", "ready", "dead", "failed", "stopping", "stopped"]

_LOOK = 0.2
_EXIT_GRACE = 5.0
_DRAIN_LOOK = 0.02
_log = logging.getLogger("llmprod")
_engines: WeakValueDictionary[EngineOptions, Engine] = WeakValueDictionary()
_running: set[Engine] = set()
_registry = threading.Lock()


class Engine:
    """One engine of the process, for all that ask for the same options.

    Attributes:
        options: what it is started with.
        state: where it stands.
        meter: what it does.
        restarts: how often it died.
        current: the running incarnation, if any.
        holders: who uses it; it is stopped when the last one has gone.
    """

    def __init__(self, options: EngineOptions, restart: RestartPolicy, *, progress: bool) -> None:
        self.options: EngineOptions = options
        self.state: EngineState = "cold"
        self.meter: EngineMeter = EngineMeter()
        self.restarts: Restarts = Restarts(restart)
        self.progress: bool = progress
        self.current: Incarnation | None = None
        self.holders: WeakSet[Any] = WeakSet()
        self.failure: LLMProdError | None = None
        self.last_start: float | None = None
        self._began: float = 0.0
        self._home: Home | None = None
        self._waiting: set[Channel[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._making = threading.Lock()

    @classmethod
    def shared(cls, options: EngineOptions, restart: RestartPolicy, *, progress: bool) -> Engine:
        """Return the process's engine of these options, made if there is none yet."""
        with _registry:
            engine = _engines.get(options)
            if engine is None or (engine._home is not None and engine._home.is_forked):
                engine = _engines[options] = cls(options, restart, progress=progress)
            return engine

    @property
    def home(self) -> Home:
        """Its thread, started when first needed.

        Raises:
            ForkedProcess: it belongs to the process that this one was forked from.
        """
        home = self._home
        if home is None:
            with self._making:
                home = self._home
                if home is None:
                    home = self._home = Home("llmprod-vllm")
        home.check()
        return home

    @property
    def running(self) -> Incarnation | None:
        """The incarnation that takes calls now; None where there is none, or where it has just died."""
        current = self.current
        return current if self.state == "ready" and current is not None and not current.dead else None

    # ---- for callers, on any loop -----------------------------------------------------------------------------------

    async def ready(self, context: Context | None = None) -> Incarnation:
        """Return the running incarnation; start the engine and wait for it if need be.

        With ``context.alternatives`` nobody waits: another target is asked while this one starts.

        Raises:
            EngineNotReady: it is being stopped, or is not there yet and somebody else can be asked.
            EngineStartFailed: it can't be started.
            InvalidArgument: an option is wrong.
            ForkedProcess: it belongs to another process.
        """
        home = self.home
        if (current := self.running) is not None:
            return current
        channel: Channel[None] = home.crossing.channel()
        home.crossing.soon(self._enter, channel)
        try:
            while True:
                if (current := self.running) is not None:
                    return current
                if self.state == "failed" and self.failure is not None:
                    raise _again(self.failure)
                if self.state == "stopping":
                    raise EngineNotReady(provider="vllm", detail="being stopped")
                if context is not None and context.alternatives:
                    raise EngineNotReady(provider="vllm", detail=self._doing(), retry_after=self._left())
                await channel.receive()
        finally:
            home.crossing.soon(self._waiting.discard, channel)

    async def start(self) -> Incarnation:
        """Start it and wait; after a failure it is tried anew."""
        await self.home.crossing.call(self._retry_failed)
        return await self.ready()

    async def stop(self, grace: float) -> None:
        """Let what is running end within ``grace`` seconds, then stop the engine; nothing to do if none runs."""
        if self._home is not None and not self._home.is_forked:
            await self._home.crossing.call(self._stop, grace)

    def stop_unheld(self) -> None:
        """Stop it soon if nobody uses it any more; for finalisers."""
        if self._home is not None and not self._home.is_forked and not self.holders:
            self._home.crossing.soon(self._stop_soon)

    def _doing(self) -> str:
        return {"starting": "starting", "dead": "starting again"}.get(self.state, "not started yet")

    def _left(self) -> float | None:
        """Guess how many seconds the start still takes, by how long the last one took."""
        if self.last_start is None:
            return 1.0 if self.state in ("starting", "dead", "cold", "stopped") else None
        return round(max(1.0, self._began + self.last_start - time.monotonic()), 3)

    # ---- on its own loop --------------------------------------------------------------------------------------------

    def _enter(self, channel: Channel[None]) -> None:
        self._waiting.add(channel)
        if self.state in ("cold", "stopped"):
            self._begin(0.0)
        elif self.state == "ready" and self.running is None:
            self._died()
        channel.send(None)

    async def _retry_failed(self) -> None:
        if self.state in ("failed", "cold", "stopped"):
            self.restarts.forget()
            self._begin(0.0)

    def _to(self, state: EngineState) -> None:
        self.state = state
        for channel in self._waiting:
            channel.send(None)

    def _begin(self, wait: float) -> None:
        self.failure = None
        self._to("starting")
        self._began = time.monotonic() + wait
        self._task = asyncio.get_running_loop().create_task(self._live(wait))

    async def _live(self, wait: float) -> None:
        """Start an incarnation and watch over it until it dies."""
        await asyncio.sleep(wait)
        incarnation = Incarnation(self.home.crossing, self.meter)
        line = StartLine(self.options.model, shown=self.progress, again=self.restarts.total > 0)
        try:
            await incarnation.start(self.options, line.step)
        except LLMProdError as error:
            line.failed()
            self._gave_up(error)
            return
        except BaseException as error:
            line.failed()
            failure = EngineStartFailed(provider="vllm", detail=first_line(error))
            failure.__cause__ = error
            self._gave_up(failure)
            if not isinstance(error, Exception):
                raise
            return
        self.last_start = incarnation.times.total
        self.current = incarnation
        _running.add(self)
        _stop_at_exit()
        line.ready(incarnation.times)
        self._to("ready")
        while not incarnation.dead:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(_LOOK)
        self._died()

    def _gave_up(self, error: LLMProdError) -> None:
        self.failure = error
        self._to("failed")

    def _died(self) -> None:
        """The running incarnation is dead: tell its callers, and start another if the policy allows."""
        incarnation = self.current
        if self.state != "ready" or incarnation is None:
            return
        self.current = None
        incarnation.fail_all()
        watcher, self._task = self._task, None
        if watcher is not None and watcher is not _running_task():
            watcher.cancel()
        self._to("dead")
        wait = self.restarts.died()
        _log.error(
            "the embedded vLLM engine died; %s",
            "it is given up" if wait is None else f"starting it again in {wait:.3g} s",
        )
        self._soon(self._bury(incarnation, wait))

    async def _bury(self, incarnation: Incarnation, wait: float | None) -> None:
        await incarnation.stop()
        if self.state != "dead":
            return
        if wait is None:
            policy = self.restarts.policy
            self._gave_up(
                EngineStartFailed(
                    provider="vllm",
                    detail=f"it died and was given up after {policy.attempts} restarts in {policy.within:g} s",
                )
            )
        else:
            self._begin(wait)

    async def _stop(self, grace: float) -> None:
        while self.state == "starting":  # noqa: ASYNC110 - vLLM can't be interrupted while it loads a model
            await asyncio.sleep(_DRAIN_LOOK)
        incarnation = self.current
        if self.state not in ("ready", "dead") or incarnation is None:
            return
        self._to("stopping")
        end = time.monotonic() + grace
        while self.meter.in_flight and not incarnation.dead and time.monotonic() < end:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(_DRAIN_LOOK)
        self.current = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        await incarnation.stop()
        _running.discard(self)
        self._to("stopped")

    def _soon(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)  # the loop alone would not keep it alive
        task.add_done_callback(self._errands.discard)

    def _stop_soon(self) -> None:
        if not self.holders:
            self._soon(self._stop(0.0))

    def stop_at_exit(self) -> None:
        """Stop it from the main thread as the interpreter exits."""
        home = self._home
        if home is None or home.is_forked or self.state not in ("ready", "dead"):
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._stop(_EXIT_GRACE), home.loop).result(_EXIT_GRACE + 10)


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _again(error: LLMProdError) -> LLMProdError:
    """Return an error for one more caller: each gets an exception of its own, with the first one's cause."""
    if isinstance(error, EngineStartFailed):
        told = EngineStartFailed(provider=error.provider, model=error.model, detail=error.detail)
        told.__cause__ = error.__cause__
        return told
    return error


_exit_registered = False


def _stop_at_exit() -> None:
    """Register once, and after multiprocessing has: its own exit handler would end the engine's processes first."""
    global _exit_registered  # noqa: PLW0603
    if not _exit_registered:
        _exit_registered = True
        atexit.register(_stop_all)


def _stop_all() -> None:
    for engine in list(_running):
        engine.stop_at_exit()
