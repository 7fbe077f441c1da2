"""An engine over its incarnations: started when needed, shared, watched, restarted when it dies, drained and stopped.

    cold → starting → ready → dead → starting → …       stopping → stopped, from which it can be started anew
                 ↘ failed (given up; start() tries again)

An engine that dies is started again by its policy, and so is one whose new start fails; the very first start is tried
once, since what fails it is a wrong option more often than not.

All changes of state happen on the engine's own loop, so no lock is needed; callers on other loops read the state, and
those who wait are told each change through their channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import logging
import os
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any, Literal
from weakref import WeakSet, WeakValueDictionary

from llmprod.context import Context
from llmprod.errors import EngineNotReady, EngineStartFailed, InvalidArgument, LLMProdError
from llmprod.mechanisms.engine_meter import EngineMeter
from llmprod.mechanisms.restart import RestartPolicy, Restarts
from llmprod.providers._vllm.at_exit import living, watch_exit
from llmprod.providers._vllm.crossing import Channel
from llmprod.providers._vllm.home import Home
from llmprod.providers._vllm.incarnation import Incarnation, first_line
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.progress import StartLine

__all__ = ["Engine", "EngineState"]

EngineState = Literal["cold", "starting", "ready", "dead", "failed", "stopping", "stopped"]
"""What an engine is doing. If ``dead``, it is started again by itself; if ``failed``, by ``start()`` alone."""

_LOOK = 0.2
_EXIT_GRACE = 5.0
_DRAIN_LOOK = 0.02
_log = logging.getLogger("llmprod")
_engines: WeakValueDictionary[EngineOptions, Engine] = WeakValueDictionary()
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
        self._turned_away: set[Channel[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._starting: Incarnation | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_by: float = 0.0
        self._refuses: bool = False
        self._errands: set[asyncio.Task[None]] = set()
        self._making = threading.Lock()
        self._providers: set[object] = set()

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
                    weakref.finalize(self, home.close).atexit = False
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
                failure = self.failure
                if self.state == "failed" and failure is not None:
                    raise _again(failure)
                if channel in self._turned_away or (self.state == "stopping" and self._refuses):
                    raise EngineNotReady(provider="vllm", detail="being stopped")
                if context is not None and context.alternatives:
                    raise EngineNotReady(provider="vllm", detail=self._doing(), retry_after=self._left())
                await channel.receive()
        finally:
            home.crossing.soon(self._leave, channel)

    async def start(self) -> Incarnation:
        """Start it and wait; after a failure it is tried anew, and one that is being stopped is started after that."""
        await self.home.crossing.call(self._start_by_hand)
        return await self.ready()

    async def stop(self, grace: float, *, unless_used: bool = False) -> None:
        """Let what is running end within ``grace`` seconds, then stop the engine; nothing to do if none runs.

        A caller that stops waiting does not stop the stop. With ``unless_used`` it is called off if somebody comes to
        use the engine before it has ended.
        """
        if self._home is not None and not self._home.is_forked:
            await self._home.crossing.call(self._stop, grace, unless_used)

    def used_by(self, provider: object, grace: float) -> None:
        """Stop it when ``provider`` and all others are gone, and nobody holds it."""
        token = object()
        self._providers.add(token)
        weakref.finalize(provider, self._lost, token, grace).atexit = False

    def _lost(self, token: object, grace: float) -> None:
        self._providers.discard(token)
        if self._home is not None and not self._home.is_forked and not self._providers:
            self._home.crossing.soon(self._stop_soon, grace)

    @property
    def held(self) -> bool:
        """Somebody holds it; what is being collected does not count."""
        while True:
            try:
                return any(True for _ in self.holders)
            except RuntimeError:  # changed by another thread
                continue

    def _doing(self) -> str:
        doing = {"starting": "starting", "dead": "starting again", "stopping": "being stopped"}
        return doing.get(self.state, "not started yet")

    def _left(self) -> float | None:
        """Guess how many seconds the start still takes, by how long the last one took."""
        if self.last_start is None:
            return 1.0 if self.state in ("starting", "dead", "cold", "stopped") else None
        return round(max(1.0, self._began + self.last_start - time.monotonic()), 3)

    # ---- on its own loop: starting --------------------------------------------------------------------------------

    def _enter(self, channel: Channel[None]) -> None:
        self._waiting.add(channel)
        if self.state in ("cold", "stopped"):
            self._begin(0.0)
        elif self.state == "ready" and self.running is None:
            self._died()
        channel.send(None)

    def _leave(self, channel: Channel[None]) -> None:
        self._waiting.discard(channel)
        self._turned_away.discard(channel)

    async def _start_by_hand(self) -> None:
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        if self.state in ("failed", "cold", "stopped"):
            self.restarts.forget()
            self._begin(0.0)

    def _to(self, state: EngineState) -> None:
        self.state = state
        for channel in self._waiting:
            channel.send(None)

    def _begin(self, wait: float, *, again: bool = False) -> None:
        watch_exit()
        self.failure = None
        self._began = time.monotonic() + wait
        self._task = _task(self._live(wait, again))
        if not wait:
            self._to("starting")

    async def _live(self, wait: float, again: bool) -> None:
        """Start an incarnation, after ``wait`` seconds, and watch over it until it dies."""
        if wait:
            await asyncio.sleep(wait)
            self._to("starting")
        incarnation = self._starting = Incarnation(self.home.crossing, self.meter)
        living.add(self)
        line = StartLine(self.options.model, shown=self.progress, again=again)
        try:
            await incarnation.start(self.options, line.step)
        except BaseException as error:
            line.failed()
            self._start_failed(error if isinstance(error, LLMProdError) else _start_failure(error), again)
            if not isinstance(error, Exception):
                raise
            return
        finally:
            self._starting = None
        self.last_start = incarnation.times.total
        self.current = incarnation
        line.ready(incarnation.times)
        self._to("ready")
        while not incarnation.dead:
            await asyncio.sleep(_LOOK)
            incarnation.trim()
        self._died()

    def _start_failed(self, failure: LLMProdError, again: bool) -> None:
        wait = None
        if again and not isinstance(failure, InvalidArgument):  # it has run before: what ails it may pass
            wait = self.restarts.died()
        if wait is None:
            self._give_up(failure)
            return
        _log.error("the embedded vLLM engine could not be started again; the next try is in %.3g s", wait)
        self._to("dead")
        self._begin(wait, again=True)

    def _give_up(self, failure: LLMProdError) -> None:
        self.failure = failure
        living.discard(self)
        self._to("failed")

    # ---- dying ------------------------------------------------------------------------------------------------------

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
            "the embedded vLLM engine died (%s); %s",
            incarnation.epitaph(),
            "it is given up" if wait is None else f"starting it again in {wait:.3g} s",
        )
        self._task = _task(self._bury(incarnation, wait))

    async def _bury(self, incarnation: Incarnation, wait: float | None) -> None:
        await incarnation.stop()
        if wait is None:
            policy = self.restarts.policy
            often = f"after {policy.attempts} restarts in {policy.within:g} s" if policy.attempts else "at once"
            detail = f"it died ({incarnation.epitaph()}) and was given up {often}"
            self._give_up(EngineStartFailed(provider="vllm", detail=detail))
        else:
            self._begin(wait, again=True)

    # ---- stopping ---------------------------------------------------------------------------------------------------

    async def _stop(self, grace: float, unless_used: bool) -> None:
        end = time.monotonic() + grace
        if self._stopping is None:
            self._stop_by, self._refuses = end, not unless_used
            self._stopping = _task(self._shut())
            self._stopping.add_done_callback(self._has_stopped)
        else:
            self._stop_by = min(self._stop_by, end)
            self._refuses |= not unless_used
        await asyncio.shield(self._stopping)

    def _has_stopped(self, _: object) -> None:
        self._stopping = None
        if self.state == "stopped" and self._waiting:
            if self._refuses:  # who hasn't looked yet would find an engine that is stopped, and wait for ever
                self._turned_away |= self._waiting
                self._to("stopped")
            else:
                self._begin(0.0)
        self._refuses = False

    async def _shut(self) -> None:
        while self.state == "starting":  # noqa: ASYNC110 - vLLM can't be interrupted while it loads a model
            await asyncio.sleep(_DRAIN_LOOK)
        incarnation = self.current
        if self.state == "ready" and incarnation is not None:
            self._to("stopping")
            while self.meter.in_flight and not incarnation.dead and time.monotonic() < self._stop_by:
                await asyncio.sleep(_DRAIN_LOOK)
                if self._wanted:
                    self._to("ready")
                    if incarnation.dead:
                        self._died()
                    return
            self.current = None
            await self._end_task()
            await incarnation.stop()
        elif self.state == "dead":
            self._to("stopping")
            await self._end_task()
        else:
            return
        living.discard(self)
        self._to("stopped")

    @property
    def _wanted(self) -> bool:
        return not self._refuses and (self.held or bool(self._waiting))

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _stop_soon(self, grace: float) -> None:
        if not self.held and not self._providers:
            task = _task(self._stop(grace, True))
            self._errands.add(task)  # the loop alone would not keep it alive
            task.add_done_callback(self._errands.discard)

    def stop_at_exit(self) -> None:
        """Stop it from the main thread as the interpreter exits."""
        home = self._home
        if home is None or home.is_forked:
            return
        starting = self._starting
        if starting is not None:  # its loop is busy, and multiprocessing would wait for what it has started
            starting.abandon()
        elif self.state in ("ready", "dead", "stopping"):
            with contextlib.suppress(Exception):
                stopping = asyncio.run_coroutine_threadsafe(self._stop(_EXIT_GRACE, False), home.loop)
                stopping.result(_EXIT_GRACE + 10)

    def disown(self) -> None:
        """Leave it to the process that this one was forked from."""
        if self.current is not None:
            self.current.disown()


def _task(errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run it in a context of its own: the one of whoever has called first would live as long as the engine."""
    return asyncio.get_running_loop().create_task(errand, context=contextvars.Context())


def _start_failure(error: BaseException) -> EngineStartFailed:
    failure = EngineStartFailed(provider="vllm", detail=first_line(error))
    failure.__cause__ = error
    return failure


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _again(error: LLMProdError) -> LLMProdError:
    """Return an error for one more caller: each gets an exception of its own, with the first one's cause."""
    told = copy.copy(error)
    told.__cause__ = error.__cause__
    return told


def _after_fork() -> None:
    global _registry  # noqa: PLW0603
    _registry = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)
